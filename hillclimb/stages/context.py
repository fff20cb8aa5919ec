"""What every stage is given: inputs, config, the writer, and a voice."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from hillclimb.artifacts import Artifact, ArtifactError, ArtifactWriter, Manifest
from hillclimb.stages.request import Request


class Reporter(Protocol):
    """Where progress, metrics and messages go."""

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Say how far the stage is."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record numbers at a step."""

    def log(self, message: str) -> None:
        """Say one sentence."""


@dataclass
class Context:
    """One stage at work. Only rank 0 reports and commits."""

    request: Request
    reporter: Reporter
    rank: int = 0
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.out = ArtifactWriter(self.request.output)
        self._inputs: dict[str, Artifact] = {}

    @property
    def config(self) -> dict[str, Any]:
        """The literal config of the stage."""
        return self.request.config

    @property
    def seed(self) -> int:
        """The stage's seed.

        Raises:
            ValueError: if the stage was declared without one.
        """
        if self.request.seed is None:
            raise ValueError(f"{self.request.name} was asked for without a seed")
        return self.request.seed

    def input(self, role: str) -> Artifact:
        """An input by role, its digests checked when it is first opened.

        Raises:
            ArtifactError: if it is absent, damaged or another one than was asked for.
        """
        if role not in self._inputs:
            artifact = self._named(role)
            artifact.require_intact()
            self._inputs[role] = artifact
        return self._inputs[role]

    def streamed(self, role: str) -> Artifact:
        """An input that may be larger than this machine's disk: a remote one is not copied.

        Its digests are not checked then; whoever reads a file says if it is damaged.
        """
        artifact = self._named(role)
        return self.input(role) if artifact.is_local else artifact

    def _named(self, role: str) -> Artifact:
        ref = self.request.inputs[role]
        artifact = Artifact(ref.uri)
        if artifact.fingerprint != ref.fingerprint:
            raise ArtifactError(
                f"{ref.uri} has the fingerprint {artifact.fingerprint[:12]}, "
                f"but {self.request.name} was asked to read {ref.fingerprint[:12]}"
            )
        return artifact

    def commit(self, metrics: dict[str, float], summary: dict[str, Any] | None = None) -> Manifest:
        """Write the manifest: from here on the artifact exists."""
        request = self.request
        seconds = time.time() - self.started
        return self.out.commit(
            Manifest(
                name=request.name,
                kind=request.kind,
                fingerprint=request.fingerprint,
                code_version=request.code_version,
                seed=request.seed,
                inputs=request.inputs,
                config=request.config,
                files=[],
                metrics={key: float(value) for key, value in metrics.items()},
                summary=summary or {},
                run={"seconds": round(seconds, 3), "ranks": request.ranks, "pid": os.getpid()},
            )
        )


def one_rank(context: Context) -> None:
    """Refuse more ranks than a stage of one process can use.

    Raises:
        ValueError: naming the field to change.
    """
    if context.request.ranks > 1:
        raise ValueError(
            f"{context.request.name} runs in one process, {context.request.ranks} ranks were asked "
            "for: set compute.climb_ranks and compute.sft_ranks to 1"
        )
