"""The voice of a stage: Dagster Pipes messages, appended to one file per attempt.

The file is written whether or not Dagster is there to read it; launchers and the command line
read the same lines. Besides Pipes' own messages it holds custom ones, told apart by `type`:
`progress` (done, total, note), `metrics` (step, values), `note` and `error` (message).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster_pipes import (
    PipesContext,
    PipesContextData,
    PipesContextLoader,
    PipesParams,
    PipesParamsLoader,
    open_dagster_pipes,
)

from hillclimb.artifacts import Manifest
from hillclimb.stages.messages import MessageWriter
from hillclimb.stages.request import Request

_PROGRESS_EVERY, _PROGRESS_SLOWEST = 0.2, 60.0


class PipesReporter:
    """Reports through an open Pipes context; every line carries the time in seconds."""

    def __init__(self, pipes: PipesContext) -> None:
        self._pipes = pipes
        self._began = time.monotonic()
        self._last = 0.0

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Say how far the stage is; at most five times a second, once a minute after a day."""
        now = time.monotonic()
        pause = max(_PROGRESS_EVERY, min(_PROGRESS_SLOWEST, (now - self._began) / 1000))
        if now - self._last >= pause or done >= total:
            self._last = now
            self._send("progress", done=float(done), total=float(total), note=note)

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record numbers at a step."""
        self._send("metrics", step=int(step), values={k: float(v) for k, v in values.items()})

    def log(self, message: str) -> None:
        """Say one sentence."""
        print(message, flush=True)
        self._send("note", message=message)

    def error(self, message: str) -> None:
        """Say why the stage ends without an artifact."""
        self._send("error", message=message)

    def made(self, manifest: Manifest) -> None:
        """Report the artifact: its fingerprint is the data version."""
        self._pipes.report_asset_materialization(
            metadata={
                key: {"raw_value": v, "type": "float"} for key, v in manifest.metrics.items()
            },
            data_version=manifest.fingerprint,
        )

    def _send(self, type_: str, **fields: Any) -> None:
        self._pipes.report_custom_message({"type": type_, "at": time.time(), **fields})


class SilentReporter:
    """The voice of the ranks that are not the first.

    What ends one is written to `path`, where there is one: the rank that fails first takes the
    others along, and its log may be gone with its pod.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Say nothing."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Say nothing."""

    def log(self, message: str) -> None:
        """Say it in the log only."""
        print(message, flush=True)

    def error(self, message: str) -> None:
        """Say it in the log, and in the file with the time in seconds."""
        print(message, flush=True)
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.write_text(json.dumps({"at": time.time(), "message": message}))

    def made(self, manifest: Manifest) -> None:
        """Say nothing."""


class _Params(PipesParamsLoader):
    """Where messages go, without a Dagster process having said so."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def is_dagster_pipes_process(self) -> bool:
        return True

    def load_context_params(self) -> PipesParams:
        return {}

    def load_messages_params(self) -> PipesParams:
        return {"path": str(self._path)}


class _StageContext(PipesContextLoader):
    """A stage knows its asset from the request."""

    def __init__(self, request: Request) -> None:
        self._request = request

    @contextmanager
    def load_context(self, params: PipesParams) -> Iterator[PipesContextData]:
        name = self._request.name
        yield PipesContextData(
            asset_keys=[name],
            code_version_by_asset_key={name: self._request.code_version},
            provenance_by_asset_key={name: None},
            partition_key=None,
            partition_key_range=None,
            partition_time_window=None,
            run_id=self._request.fingerprint,
            job_name=None,
            retry_number=0,
            extras={},
        )


@contextmanager
def open_reporter(request: Request, path: Path) -> Iterator[PipesReporter]:
    """Open the message file at `path`; an exception is written into its closing message."""
    pipes = open_dagster_pipes(
        params_loader=_Params(path),
        context_loader=_StageContext(request),
        message_writer=MessageWriter(),
    )
    with pipes:
        yield PipesReporter(pipes)
