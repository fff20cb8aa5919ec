"""What an environment may ask of a sandbox.

Two Protocols, so that one task runs unchanged on a laptop (bubblewrap) and on a cluster (pods).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

MIB = 2**20


class SandboxUnavailable(RuntimeError):
    """This machine cannot isolate a process. The message says what to install or allow.

    Nothing runs then: there is no fallback to an ordinary process.
    """


class SandboxDied(RuntimeError):
    """The sandbox ended (stopped, killed or out of memory) and can run nothing more."""


class SandboxFileError(OSError):
    """A file inside the sandbox could not be read or written; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Bounds on one sandbox; sizes in bytes, times in seconds.

    `memory` (address space) and `cpu_s` hold for each process, `processes` for all of them
    together, `work` for /work and once more for /tmp, `output` for each of a command's two streams.
    """

    memory: int = 512 * MIB
    cpu_s: int = 60
    processes: int = 64
    open_files: int = 256
    file: int = 64 * MIB
    work: int = 64 * MIB
    output: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class Completed:
    """One finished command: what it printed (UTF-8, undecodable bytes replaced) and how it ended.

    `exit_code` is the shell's (128 + signal for a killed command). A command that ran past its
    time has `timed_out`, one that printed more than the limit has `truncated`; both were killed
    with everything that they had started, and their `exit_code` is 137.
    """

    stdout: str
    stderr: str
    exit_code: int
    timed_out: bool = False
    truncated: bool = False


class Sandbox(Protocol):
    """A place of its own for one episode: own files in /work, no network, nothing of the host."""

    def run(self, command: str, timeout_s: float = 10.0) -> Completed:
        """Run one shell command in a new shell in /work; its processes end with the call.

        Files stay for later calls; the working directory and variables do not (report App. D).
        Raises `SandboxDied` if the sandbox has ended.
        """
        ...

    def read(self, path: str) -> str:
        """The text of a file (relative paths start at /work); `SandboxFileError` if unreadable."""
        ...

    def write(self, path: str, text: str) -> None:
        """Write a text file and the folders above it; `SandboxFileError` if that fails."""
        ...

    def stop(self) -> None:
        """End every process and forget every file; a second call does nothing."""
        ...


class SandboxProvider(Protocol):
    """Starts sandboxes; one provider serves many episodes."""

    def start(self) -> AbstractContextManager[Sandbox]:
        """A fresh sandbox, stopped when the context ends. Raises `SandboxUnavailable`."""
        ...

    def check(self) -> None:
        """Prove at start-up that sandboxes isolate; `SandboxUnavailable` says what is lacking."""
        ...


@contextmanager
def stopping(sandbox: Sandbox) -> Iterator[Sandbox]:
    """The context in which a provider hands out a sandbox."""
    try:
        yield sandbox
    finally:
        sandbox.stop()
