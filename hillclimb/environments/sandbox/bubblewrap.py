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
import signal
import socket
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import replace

from hillclimb.environments.sandbox.base import (
    Sandbox,
    SandboxDied,
    SandboxLimits,
    SandboxUnavailable,
    stopping,
)
from hillclimb.environments.sandbox.launch import START_TIMEOUT_S, SUPERVISOR_SHELL, Isolated
from hillclimb.environments.sandbox.shell import KILL_GRACE_S, NOBODY, Run, ShellSandbox

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


class BubblewrapSandbox(ShellSandbox):
    """A `Sandbox` under bubblewrap.

    Not for use from two threads at once, and it ends with the thread that started it.
    """

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        """Start it (about 10 ms). Raises `SandboxUnavailable`."""
        self.limits = limits or SandboxLimits()
        argv = [SUPERVISOR_SHELL, "-c", _SUPERVISOR, str(self.limits.processes)]
        room = replace(self.limits, processes=self.limits.processes + _SUPERVISOR_PROCESSES)
        self._tree = Isolated(argv, room)
        for pipe in (self._tree.stdout, self._tree.stderr):
            os.set_blocking(pipe, False)

    def stop(self) -> None:
        """See `Sandbox.stop`."""
        self._tree.stop()

    def _run(self, command: bytes, timeout_s: float, limit: int) -> Run:
        done = Run(limit)
        try:
            self._tree.control.sendall(b"%d\n" % len(command) + command)
            done.code = self._follow(done, time.monotonic() + timeout_s)
        except (OSError, SandboxDied) as error:
            self.stop()
            raise SandboxDied(f"the sandbox ended while it ran a command ({error})") from error
        return done

    def _follow(self, done: Run, deadline: float) -> int:
        """Collect output until the supervisor answers; end the command at its limits."""
        control, told_to_kill, answer = self._tree.control, False, b""
        streams = {self._tree.stdout: done.stdout, self._tree.stderr: done.stderr}
        with selectors.DefaultSelector() as selector:
            selector.register(control, selectors.EVENT_READ)
            for pipe in streams:
                selector.register(pipe, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                ready = {key.fd for key, _ in selector.select(max(0, deadline - time.monotonic()))}
                _drain(done, streams)
                if control.fileno() in ready:
                    answer += _received(control)
                elif not told_to_kill and (done.truncated or time.monotonic() >= deadline):
                    done.timed_out, told_to_kill = not done.truncated, True
                    deadline = time.monotonic() + KILL_GRACE_S
                    self._tree.signal(signal.SIGUSR1)
                elif time.monotonic() >= deadline:
                    raise SandboxDied("its supervisor does not answer")
        _drain(done, streams)
        return int(answer)


def _drain(done: Run, streams: dict[int, bytearray]) -> None:
    """Move what waits in the pipes, until one stream is over its limit."""
    for pipe, stream in streams.items():
        with suppress(BlockingIOError):
            while chunk := os.read(pipe, 65536):
                done.take(stream, chunk)
                if done.truncated:
                    break


def _received(control: socket.socket) -> bytes:
    answer = control.recv(4096)
    if not answer:
        raise SandboxDied("its supervisor is gone")
    return answer


class BubblewrapProvider:
    """A `SandboxProvider` that starts bubblewrap sandboxes with the same limits."""

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self.limits = limits or SandboxLimits()

    def start(self) -> AbstractContextManager[Sandbox]:
        """See `SandboxProvider.start`."""
        return stopping(BubblewrapSandbox(self.limits))

    def check(self) -> None:
        """See `SandboxProvider.check`."""
        check_sandbox()


def check_sandbox() -> None:
    """Prove at start-up that this machine isolates; `SandboxUnavailable` says what it lacks."""
    with BubblewrapProvider(SandboxLimits(processes=16)).start() as sandbox:
        done = sandbox.run("id -u && ls /proc/1/fd 2>&1", timeout_s=START_TIMEOUT_S)
    if done.stdout.splitlines()[0:1] != [str(NOBODY)] or done.exit_code == 0:
        raise SandboxUnavailable(f"the sandbox does not isolate: it printed {done.stdout!r}")
