"""The local sandbox: one bubblewrap tree per episode, whose supervisor runs one command at a time.

The supervisor is a shell loop at pid 1. A command cannot speak in its name: the control channel is
a socket that commands do not inherit, and pid 1 runs from a program file without read permission,
so the kernel lets nobody inside trace it or look into its memory and descriptors. After each
command, and when told by a signal that its time is up, the supervisor kills every other process of
the tree at once (`kill -9 -1`, which a fork bomb cannot outrun).
"""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import socket
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace

from hillclimb.environments.sandbox.base import (
    Completed,
    Sandbox,
    SandboxDied,
    SandboxFileError,
    SandboxLimits,
    SandboxUnavailable,
    stopping,
)
from hillclimb.environments.sandbox.launch import (
    NOBODY,
    START_TIMEOUT_S,
    SUPERVISOR_SHELL,
    Isolated,
)

KILL_GRACE_S = 10.0
FILE_TIMEOUT_S = 10.0
_CHUNK = 16 * 1024  # a quoted chunk must fit one argument of a process (128 KiB)

# Forks that stay possible for the supervisor while the dead of a fork bomb wait to be reaped.
_SUPERVISOR_PROCESSES = 16

# In: "<length in bytes>\n" and the command. Out: "<exit code>\n".
_SUPERVISOR = r"""
exec 3<&0 </dev/null
ulimit -u >/dev/null 2>&1 && processes=-u || processes=-p
interrupted=
trap 'interrupted=1; kill -9 -1 2>/dev/null' \
    HUP INT QUIT ABRT USR1 USR2 PIPE ALRM TERM VTALRM PROF XCPU XFSZ
sweep() {
    kill -9 -1 2>/dev/null
    until set -- /proc/[0-9]* && [ $# -eq 1 ]; do (:); done
}
echo ready >&3
while :; do
    read -r length <&3 || { [ "$interrupted" ] || exit; interrupted=; continue; }
    command=$(head -c "$length" <&3; echo x)
    (ulimit $processes "$0" && exec sh -c "${command%x}") 3<&- </dev/null &
    wait $!
    code=$?
    sweep
    interrupted=
    echo "$code" >&3
done
"""


@dataclass
class _Run:
    """One command: what it has printed so far, up to a limit on each stream, and its end."""

    limit: int
    printed: dict[int, bytearray]
    answer: bytes = b""
    timed_out: bool = False
    truncated: bool = False

    def drain(self, pipe: int) -> None:
        """Move what waits in a pipe; what exceeds the limit is counted and thrown away."""
        stream = self.printed[pipe]
        with suppress(BlockingIOError):
            while chunk := os.read(pipe, 65536):
                self.truncated |= len(stream) + len(chunk) > self.limit
                stream += chunk[: self.limit - len(stream)]
                if self.truncated:
                    return

    @property
    def exit_code(self) -> int:
        killed = self.timed_out or self.truncated
        return 128 + signal.SIGKILL if killed else int(self.answer)


class BubblewrapSandbox:
    """A `Sandbox` under bubblewrap.

    Not for use from two threads at once, and it ends with the thread that started it.
    """

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        """Start it (about 10 ms). Raises `SandboxUnavailable`."""
        self.limits = limits or SandboxLimits()
        argv = [SUPERVISOR_SHELL, "-c", _SUPERVISOR, str(self.limits.processes)]
        room = replace(self.limits, processes=self.limits.processes + _SUPERVISOR_PROCESSES)
        self._tree = Isolated(argv, room)
        self._pipes = (self._tree.stdout, self._tree.stderr)
        for pipe in self._pipes:
            os.set_blocking(pipe, False)

    def run(self, command: str, timeout_s: float = 10.0) -> Completed:
        """See `Sandbox.run`."""
        done = self._run(command.encode(errors="replace"), timeout_s, self.limits.output)
        stdout, stderr = (done.printed[pipe].decode(errors="replace") for pipe in self._pipes)
        return Completed(stdout, stderr, done.exit_code, done.timed_out, done.truncated)

    def read(self, path: str) -> str:
        """See `Sandbox.read`."""
        command = f"cat < {shlex.quote(path)}".encode()
        content = self._file_command(command, f"cannot read {path!r}")
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise SandboxFileError(f"cannot read {path!r}: it is not UTF-8 text") from error

    def write(self, path: str, text: str) -> None:
        """See `Sandbox.write`."""
        target, content = shlex.quote(path), text.encode()
        put = (
            b"put() { printf %b " + _shell_literal(content[:_CHUNK]) + f" > {target}; }}; ".encode()
        )
        folders = f'mkdir -p -- "$(dirname -- {target})"'
        first = put + f"put 2>/dev/null || {{ {folders} && put; }}".encode()
        self._file_command(first, f"cannot write {path!r}")
        for start in range(_CHUNK, len(content), _CHUNK):
            append = b"printf %b " + _shell_literal(content[start : start + _CHUNK])
            self._file_command(append + f" >> {target}".encode(), f"cannot write {path!r}")

    def stop(self) -> None:
        """See `Sandbox.stop`."""
        self._tree.stop()

    def _file_command(self, command: bytes, failure: str) -> bytes:
        done = self._run(command, FILE_TIMEOUT_S, self.limits.file)
        stdout, stderr = (bytes(done.printed[pipe]) for pipe in self._pipes)
        if done.exit_code:
            reason = stderr.decode(errors="replace").strip().rpartition(": ")[2]
            raise SandboxFileError(f"{failure}: {reason or 'it took too long or is too large'}")
        return stdout

    def _run(self, command: bytes, timeout_s: float, limit: int) -> _Run:
        done = _Run(limit, {pipe: bytearray() for pipe in self._pipes})
        try:
            self._tree.control.sendall(b"%d\n" % len(command) + command)
            self._follow(done, time.monotonic() + timeout_s)
        except (OSError, SandboxDied) as error:
            self.stop()
            raise SandboxDied(f"the sandbox ended while it ran a command ({error})") from error
        return done

    def _follow(self, done: _Run, deadline: float) -> None:
        """Collect output until the supervisor answers; end the command at its limits."""
        control, told_to_kill = self._tree.control, False
        with selectors.DefaultSelector() as selector:
            for source in (control, *self._pipes):
                selector.register(source, selectors.EVENT_READ)
            while not done.answer.endswith(b"\n"):
                ready = {key.fd for key, _ in selector.select(max(0, deadline - time.monotonic()))}
                for pipe in self._pipes:
                    done.drain(pipe)
                if control.fileno() in ready:
                    done.answer += _received(control)
                elif not told_to_kill and (done.truncated or time.monotonic() >= deadline):
                    done.timed_out, told_to_kill = not done.truncated, True
                    deadline = time.monotonic() + KILL_GRACE_S
                    self._tree.signal(signal.SIGUSR1)
                elif time.monotonic() >= deadline:
                    raise SandboxDied("its supervisor does not answer")
        for pipe in self._pipes:
            done.drain(pipe)


def _received(control: socket.socket) -> bytes:
    answer = control.recv(4096)
    if not answer:
        raise SandboxDied("its supervisor is gone")
    return answer


def _shell_literal(content: bytes) -> bytes:
    """A single-quoted argument that `printf %b` turns back into these bytes."""
    escaped = content.replace(b"\\", b"\\\\").replace(b"\0", b"\\0000")
    return b"'" + escaped.replace(b"'", b"'\"'\"'") + b"'"


class BubblewrapProvider:
    """A `SandboxProvider` that starts bubblewrap sandboxes with the same limits."""

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self.limits = limits or SandboxLimits()

    def start(self) -> AbstractContextManager[Sandbox]:
        """See `SandboxProvider.start`."""
        return stopping(BubblewrapSandbox(self.limits))


def check_sandbox() -> None:
    """Prove at start-up that this machine isolates; `SandboxUnavailable` says what it lacks."""
    with BubblewrapProvider(SandboxLimits(processes=16)).start() as sandbox:
        done = sandbox.run("id -u && ls /proc/1/fd 2>&1", timeout_s=START_TIMEOUT_S)
    if done.stdout.splitlines()[0:1] != [str(NOBODY)] or done.exit_code == 0:
        raise SandboxUnavailable(f"the sandbox does not isolate: it printed {done.stdout!r}")
