"""What sandboxes share that run everything through a shell inside: files, variables, outcomes."""

from __future__ import annotations

import shlex
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

from hillclimb.environments.sandbox.base import Completed, SandboxFileError, SandboxLimits

NOBODY = 65534
KILL_GRACE_S = 10.0
FILE_TIMEOUT_S = 10.0
VARIABLES = {
    "HOME": "/work",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
}
_PIECE = 112 * 1024  # what is quoted must fit one argument of a process (128 KiB)


@dataclass
class Run:
    """One command: what it has printed so far, up to `limit` bytes a stream, and its end."""

    limit: int
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    code: int = 0
    timed_out: bool = False
    truncated: bool = False

    def take(self, stream: bytearray, chunk: bytes) -> None:
        """Append to `stdout` or `stderr`; what exceeds the limit is noted and thrown away."""
        self.truncated |= len(stream) + len(chunk) > self.limit
        stream += chunk[: self.limit - len(stream)]

    @property
    def killed(self) -> bool:
        """Whether a limit ended it."""
        return self.timed_out or self.truncated

    @property
    def exit_code(self) -> int:
        """The shell's, or that of SIGKILL."""
        return 128 + signal.SIGKILL if self.killed else self.code


class ShellSandbox(ABC):
    """A `Sandbox` made from one thing: running a shell command inside."""

    limits: SandboxLimits

    @abstractmethod
    def _run(self, command: bytes, timeout_s: float, limit: int) -> Run:
        """Run one command, nothing of it left afterwards. Raises `SandboxDied`."""

    @abstractmethod
    def stop(self) -> None:
        """See `Sandbox.stop`."""

    def run(self, command: str, timeout_s: float = 10.0) -> Completed:
        """See `Sandbox.run`."""
        done = self._run(command.encode(errors="replace"), timeout_s, self.limits.output)
        stdout, stderr = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        return Completed(stdout, stderr, done.exit_code, done.timed_out, done.truncated)

    def read(self, path: str) -> str:
        """See `Sandbox.read`."""
        content = self._file(f"cat < {shlex.quote(path)}".encode(), f"cannot read {path!r}")
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise SandboxFileError(f"cannot read {path!r}: it is not UTF-8 text") from error

    def write(self, path: str, text: str) -> None:
        """See `Sandbox.write`."""
        target, (first, *more) = shlex.quote(path), _pieces(text.encode())
        put = b"put() { printf %b " + first + f" > {target}; }}; ".encode()
        folders = f'mkdir -p -- "$(dirname -- {target})"'
        command = put + f"put 2>/dev/null || {{ {folders} && put; }}".encode()
        self._file(command, f"cannot write {path!r}")
        for piece in more:
            append = b"printf %b " + piece + f" >> {target}".encode()
            self._file(append, f"cannot write {path!r}")

    def _file(self, command: bytes, failure: str) -> bytes:
        done = self._run(command, FILE_TIMEOUT_S, self.limits.file)
        if done.exit_code:
            reason = done.stderr.decode(errors="replace").strip().rpartition(": ")[2]
            raise SandboxFileError(f"{failure}: {reason or 'it took too long or is too large'}")
        return bytes(done.stdout)


def _pieces(content: bytes) -> Iterator[bytes]:
    """Single-quoted arguments that `printf %b` turns back into these bytes; at least one."""
    while True:
        size = _PIECE
        while len(piece := _literal(content[:size])) > _PIECE:
            size //= 2
        yield piece
        content = content[size:]
        if not content:
            return


def _literal(content: bytes) -> bytes:
    escaped = content.replace(b"\\", b"\\\\").replace(b"\0", b"\\0000")
    return b"'" + escaped.replace(b"'", b"'\"'\"'") + b"'"
