"""Stages without a graph: one artifact from others, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hillclimb.artifacts import Artifact, InputRef, Store
from hillclimb.artifacts.fingerprint import code_version
from hillclimb.recipe.graph import CODE, StageSpec
from hillclimb.stages.request import Request


def find(spec: StageSpec, made: dict[str, Artifact], out: Path) -> Artifact | None:
    """The artifact under `out`, made from those of `made` by their names; None for none."""
    return Store(str(out.resolve())).find(spec.name, _fingerprint(spec, made))


def make(spec: StageSpec, made: dict[str, Artifact], out: Path) -> Artifact:
    """The artifact, made now unless it is there; what a killed run left is gone on with.

    Raises:
        CalledProcessError: if the stage fails; its log is under `out/runs`.
    """
    if (found := find(spec, made, out)) is not None:
        return found
    print_, store = _fingerprint(spec, made), Store(str(out.resolve()))
    inputs = {role: made[name] for role, name in spec.inputs.items()}
    request = Request(
        name=spec.name,
        kind=spec.kind,
        output=store.uri(spec.name, print_),
        fingerprint=print_,
        code_version=code_version(CODE[spec.kind]),
        seed=spec.seed,
        inputs={
            role: InputRef(name=a.manifest.name, fingerprint=a.fingerprint, uri=a.uri)
            for role, a in inputs.items()
        },
        config=spec.config,
    )
    folder = out.resolve() / "runs" / spec.name / print_[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "request.json").write_text(request.model_dump_json())
    words = [sys.executable, "-m", "hillclimb.stages", spec.kind]
    with (folder / "log.txt").open("a") as log:
        subprocess.run(
            [*words, "--request", str(folder / "request.json")],
            check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return Artifact(store.uri(spec.name, print_))


def _fingerprint(spec: StageSpec, made: dict[str, Artifact]) -> str:
    return spec.identity({role: made[name].fingerprint for role, name in spec.inputs.items()})
