"""Run candidate Python programs in one warm sandboxed interpreter, a few milliseconds each.

Two ways to ask: `call` a function with arguments, or run a script with a standard input. Either
way only what the program computed comes back; expected results never enter the sandbox, the caller
compares. So a program that prints, exits or writes to every descriptor that it finds can change
nothing but its own answers, and cannot read or touch another's: each has a forked process of its
own, no writable file system, and nothing of it is alive when the next one starts.

Not covered: programs see the standard library only; a program sees its tests' inputs and may answer
them one by one (use many); and what `launch` names.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from hillclimb.environments.sandbox import program_server
from hillclimb.environments.sandbox.base import MIB, SandboxDied, SandboxLimits
from hillclimb.environments.sandbox.launch import PYTHON, Isolated
from hillclimb.environments.sandbox.program_server import (
    EXITED,
    REPLY,
    REQUEST,
    TIMED_OUT,
    decode,
    encode,
)

Ending = Literal["exited", "timeout", "output", "killed"]
_SOURCE = Path(program_server.__file__).read_text(encoding="utf-8")
_HOST_GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class ProgramLimits:
    """Bounds on one program: seconds of wall clock, bytes of memory and of output."""

    wall_s: float = 2.0
    memory: int = 256 * MIB
    output: int = 64 * 1024
    processes: int = 16


@dataclass(frozen=True, slots=True)
class CallResult:
    """What one call returned (`error` is None), or the error that it raised."""

    value: object = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """How a program ended, and what it had produced by then.

    `ending`: "exited" by itself with `exit_code`; "timeout", "output" (too much of it) or "killed"
    (by a signal, such as a crash of the interpreter) when it did not end by itself.
    """

    ending: Ending
    exit_code: int
    results: tuple[CallResult, ...] = ()
    stdout: str = ""


class CodeRunner:
    """A context manager around the warm interpreter; it is started when first needed.

    Not for use from two threads at once. If the interpreter is lost, the next program gets a new
    one. Raises `SandboxUnavailable` where this machine cannot isolate.
    """

    def __init__(self, limits: ProgramLimits | None = None) -> None:
        self.limits = limits or ProgramLimits()
        self._server: Isolated | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.stop()

    def call(self, source: str, entry: str, calls: Sequence[tuple[object, ...]]) -> ProgramRun:
        """Define the program and call its function `entry` once per tuple of arguments.

        Arguments are plain values (see `encode`). Fewer results than calls: it ended early.
        """
        job = {"source": source, "entry": entry, "calls": encode(list(calls)), "stdin": None}
        ending, code, payload = self._run(job)
        text = payload.decode(errors="replace")
        return ProgramRun(ending, code, results=read_results(text, len(calls)))

    def script(self, source: str, stdin: str = "") -> ProgramRun:
        """Run the program as `__main__` with a standard input; its standard output comes back."""
        ending, code, payload = self._run({"source": source, "stdin": stdin})
        return ProgramRun(ending, code, stdout=payload.decode(errors="replace"))

    def stop(self) -> None:
        """End the interpreter; a later program starts another."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _run(self, job: dict[str, object]) -> tuple[Ending, int, bytes]:
        body, limits = json.dumps(job).encode(), self.limits
        request = REQUEST.pack(limits.wall_s, limits.memory, limits.output, len(body)) + body
        for _ in range(2):  # a program may have harmed the server it leaves to the next one
            try:
                return self._ask(self._running().control, request)
            except (OSError, SandboxDied):
                self.stop()
        return "killed", -9, b""

    def _ask(self, control: socket.socket, request: bytes) -> tuple[Ending, int, bytes]:
        control.settimeout(self.limits.wall_s + _HOST_GRACE_S)
        control.sendall(request)
        ending, status, length = REPLY.unpack(_received(control, REPLY.size))
        payload = _received(control, min(length, self.limits.output))
        if ending == EXITED:
            return ("exited" if status >= 0 else "killed"), status, payload
        return ("timeout" if ending == TIMED_OUT else "output"), status, payload

    def _running(self) -> Isolated:
        if self._server is not None and self._server.alive:
            return self._server
        limits = SandboxLimits(
            memory=self.limits.memory + 256 * MIB,
            cpu_s=2**31,
            processes=self.limits.processes,
            file=16 * MIB,
        )
        argv = [str(PYTHON), "-I", "-S", "-B", "-c", _SOURCE]
        self._server = Isolated(argv, limits, writable=False)
        return self._server


class ProgramRunner(Protocol):
    """Runs untrusted programs, whatever isolates them."""

    def call(self, source: str, entry: str, calls: Sequence[tuple[object, ...]]) -> ProgramRun:
        """See `CodeRunner.call`."""

    def script(self, source: str, stdin: str = "") -> ProgramRun:
        """See `CodeRunner.script`."""

    def stop(self) -> None:
        """See `CodeRunner.stop`."""


def _received(control: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = control.recv(size - len(data))
        if not chunk:
            raise SandboxDied("the program server is gone")
        data += chunk
    return data


def read_results(payload: str, calls: int) -> tuple[CallResult, ...]:
    """The results in the payload of a job of so many calls."""
    return tuple(_result(line) for line in payload.split("\n")[:-1][:calls])


def _result(line: str) -> CallResult:
    try:
        answer = json.loads(line)
        if "error" in answer:
            return CallResult(error=str(answer["error"]))
        return CallResult(value=decode(answer["value"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return CallResult(error=f"unreadable result ({type(error).__name__})")
