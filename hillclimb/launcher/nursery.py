"""A small process that brings stages up, so that each does not import torch anew.

`python -m hillclimb.launcher.nursery` reads one JSON job a line from its standard input:
`{"run": FOLDER, "kind": KIND, "threads": N, "fork": true}`. It imports the kind's module once,
forks, and the child runs the stage in a session of its own. Where a fork is not safe (another
thread is alive, or an accelerator's driver may be loaded) the child starts a fresh interpreter
instead. How each stage ended is written to `exit.json` in its folder.

Stages outlive whoever asked for them. When the standard input closes, the nursery waits for the
stages that are left and goes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from hillclimb.launcher.records import write_exit, write_process
from hillclimb.stages import __main__ as stage
from hillclimb.stages.registry import KINDS

_BEAT = 0.05
_HEAVY = ("torch", "transformers", "deepspeed")
_WITH_TORCH = ("base_phase", "climb", "student", "consolidation", "scorecard")


def main() -> int:
    """Serve until the owner is gone and every stage has ended; in a child, run its stage."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = Nursery().serve()
    return 0 if job is None else _live(job)


class Nursery:
    """The parent of stages."""

    def __init__(self) -> None:
        import pyarrow  # noqa: F401  its threads survive a fork by handlers of their own

        self._threads = _os_threads()
        self._children: dict[int, Path] = {}
        self._buffer = b""
        self._open = True

    def serve(self) -> dict[str, Any] | None:
        """Bring stages up; returns None in the nursery, and its job in a child."""
        while self._open or self._children:
            for line in self._lines():
                job = json.loads(line)
                if self._bring_up(job):
                    return dict(job)
            self._reap()
        return None

    def _lines(self) -> list[bytes]:
        readable, _, _ = select.select([0] if self._open else [], [], [], _BEAT)
        if not readable:
            return []
        block = os.read(0, 1 << 16)
        self._open = bool(block)
        *lines, self._buffer = (self._buffer + block).split(b"\n")
        return lines

    def _bring_up(self, job: dict[str, Any]) -> bool:
        """Fork; True in the child. A child that execs never returns."""
        fork = job["fork"] and _preload(job["kind"]) and self._may_fork()
        run = Path(job["run"])
        gc.collect()
        gc.freeze()
        pid = os.fork()
        if pid:
            self._children[pid] = run
            return False
        _settle(run)
        if not fork:
            arguments = [sys.executable, "-m", "hillclimb.stages", *_arguments(job)]
            os.execve(sys.executable, arguments, _environment(job["threads"]))
        return True

    def _may_fork(self) -> bool:
        """Whether this thread is alone, but for Arrow's."""
        return threading.active_count() == 1 and _os_threads() <= self._threads

    def _reap(self) -> None:
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                with contextlib.suppress(OSError):
                    write_exit(self._children.pop(pid), os.waitstatus_to_exitcode(status))


def _preload(kind: str) -> bool:
    """Import what the stage needs; False where it cannot be imported here."""
    try:
        if kind in _WITH_TORCH:
            for name in _HEAVY:
                importlib.import_module(name)
        importlib.import_module(KINDS[kind].split(":")[0])
    except ImportError:
        return False
    return True


def _os_threads() -> int:
    """Threads of this process as the kernel counts them, libraries' own included."""
    tasks = Path("/proc/self/task")
    return len(os.listdir(tasks)) if tasks.is_dir() else 2


def _arguments(job: dict[str, Any]) -> list[str]:
    return [job["kind"], "--request", str(Path(job["run"]) / "request.json")]


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def _settle(run: Path) -> None:
    """Make the child a process of its own: session, standard streams, signals."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    log = os.open(run / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    write_process(run, os.getpid())


def _live(job: dict[str, Any]) -> int:
    return stage.main(_arguments(job))


if __name__ == "__main__":
    sys.exit(main())
