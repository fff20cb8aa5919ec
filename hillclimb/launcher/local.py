"""Stages as processes of this machine, which outlive whoever asked for them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from hillclimb.launcher import records
from hillclimb.launcher.base import Handle, Message, Outcome, State, handle_name
from hillclimb.stages.request import Request

NURSERY = (sys.executable, "-m", "hillclimb.launcher.nursery")
T = TypeVar("T")
_GRACE = 15.0
_START = 120.0
_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd")


class LocalLauncher:
    """Starts stages through one nursery per launcher; safe to share between threads.

    Args:
        runs: the folder of all attempts.
        nursery: the command of the process that brings stages up.
        fork: fork stages from the nursery's warm interpreter; by default where no accelerator is.
    """

    def __init__(
        self, runs: Path, nursery: Sequence[str] = NURSERY, fork: bool | None = None
    ) -> None:
        self._runs = runs.resolve()
        self._command = list(nursery)
        self._fork = not any(map(os.path.exists, _ACCELERATORS)) if fork is None else fork
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def submit(self, request: Request) -> Handle:
        """Start the stage, or attach to the process that is already making it.

        Raises:
            RuntimeError: if no process could be started; the message names the log to read.
        """
        folder = self._runs / request.name / request.fingerprint[:16]
        with _locked(folder):
            made = records.attempts(folder)
            if made and records.alive(made[-1]):
                return Handle(handle_name(request.name, request.fingerprint), str(made[-1]))
            if made:
                _sweep(made[-1])
            run = records.next_attempt(folder)
            (run / "request.json").write_text(request.model_dump_json(indent=1))
            self._bring_up(run, request)
        return Handle(handle_name(request.name, request.fingerprint), str(run))

    def find(self, name: str, fingerprint: str) -> Handle | None:
        """The latest attempt at an artifact, running or not; None where there was none."""
        made = records.attempts(self._runs / name / fingerprint[:16])
        return Handle(handle_name(name, fingerprint), str(made[-1])) if made else None

    def poll(self, handle: Handle) -> Outcome:
        """Say where the stage is."""
        run = Path(handle.where)
        if records.alive(run):
            return Outcome(State.RUNNING)
        ended = _wait_for(lambda: records.read_json(run / "exit.json"), 1.0)
        if ended is None:
            return Outcome(
                State.LOST, None, f"{handle.name}: its process is gone, see {run}/log.txt"
            )
        return _outcome(handle, run, int(ended["code"]))

    def messages(self, handle: Handle, offset: int) -> tuple[list[Message], int]:
        """The whole lines after `offset` bytes, and the offset to go on from."""
        try:
            with open(Path(handle.where) / "messages.jsonl", "rb") as stream:
                stream.seek(offset)
                block = stream.read()
        except FileNotFoundError:
            return [], offset
        whole = block[: block.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()], offset + len(whole)

    def cancel(self, handle: Handle) -> None:
        """SIGTERM to the stage; SIGKILL to its whole session when it does not go in 15 s."""
        run = Path(handle.where)
        if pid := records.alive(run):
            (run / "cancelled").touch()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            _wait_for(lambda: records.alive(run) is None, _GRACE)
        _sweep(run)

    def close(self) -> None:
        """Let the nursery go; it stays until its last stage has ended."""
        with self._lock:
            if self._process and self._process.stdin:
                self._process.stdin.close()
            self._process = None

    def _bring_up(self, run: Path, request: Request) -> None:
        job = {
            "run": str(run),
            "kind": request.kind,
            "threads": request.threads,
            "fork": self._fork,
        }
        with self._lock:
            nursery = self._nursery()
            assert nursery.stdin
            nursery.stdin.write(json.dumps(job).encode() + b"\n")
            nursery.stdin.flush()
        begun = (run / "process.json", run / "exit.json")
        if not _wait_for(
            lambda: any(p.exists() for p in begun) or nursery.poll() is not None, _START
        ):
            raise RuntimeError(f"no process for {run} in {_START:.0f} s; see {self._log()}")
        if not any(path.exists() for path in begun):
            raise RuntimeError(f"the process that starts stages died; see {self._log()}")

    def _nursery(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._runs.mkdir(parents=True, exist_ok=True)
            with open(self._log(), "ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={**os.environ, **_SINGLE_THREADED},
                )
        return self._process

    def _log(self) -> Path:
        return self._runs / "nursery.log"


_SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def _outcome(handle: Handle, run: Path, code: int) -> Outcome:
    if code == 0:
        return Outcome(State.DONE, 0)
    if (run / "cancelled").exists():
        return Outcome(State.STOPPED, code, f"{handle.name} was cancelled")
    if code < 0 or code > 128:
        name = signal.Signals(-code if code < 0 else code - 128).name
        return Outcome(State.FAILED, code, f"{handle.name} was killed by {name}, see {run}/log.txt")
    return Outcome(State.FAILED, code, _last_error(run) or f"{handle.name}: see {run}/log.txt")


def _last_error(run: Path) -> str:
    """The sentence that the stage gave for its failure, or the last line of its log."""
    for name, pick in (("messages.jsonl", _error_of), ("log.txt", str.strip)):
        path = run / name
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        for line in reversed(lines):
            if sentence := pick(line):
                return sentence
    return ""


def _error_of(line: str) -> str:
    payload = json.loads(line).get("params", {}) or {}
    custom = payload.get("payload", {})
    return str(custom["message"]) if custom.get("type") == "error" else ""


def _sweep(run: Path) -> None:
    """Kill what is left of an ended attempt's session: workers that lost their stage."""
    process = records.read_json(run / "process.json")
    if process is None:
        return
    pid = int(process["pid"])
    if records.started(pid) in (None, process["started"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One submitter at a time for one fingerprint, also between orchestrators."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _wait_for(probe: Callable[[], T], seconds: float) -> T:
    """Ask until the answer is true or time is up; returns the last answer."""
    until = time.monotonic() + seconds
    while not (answer := probe()) and time.monotonic() < until:
        time.sleep(0.02)
    return answer
