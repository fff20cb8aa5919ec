"""Pods with a runtime class: real bubblewrap trees, which programs may be started in from outside.

As under a container runtime, the pod's command is the first process of a PID namespace, and a
program started by `exec` has its parent outside. A RuntimeClass whose handler is "leaky-PORT"
isolates badly: in its pods, somebody answers at that port of loopback.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fake_cluster.kinds import Object, Refusal
from fake_cluster.store import Store
from hillclimb.environments.sandbox.base import MIB, SandboxLimits, SandboxUnavailable
from hillclimb.environments.sandbox.launch import PYTHON_HOME, Isolated
from hillclimb.environments.sandbox.shell import NOBODY

LEAKY = "leaky-"
_KILLED = 137
_WEBHOOKS: list[Callable[[Object], None]] = []
_PATH = f"{PYTHON_HOME}/bin:/usr/local/bin:/usr/bin:/bin"

# The first process says on its control socket that it is there, then becomes the pod's command.
_BEGIN = 'echo ready >&0 && exec "$@" </dev/null'

# Arguments: the first process as this machine numbers it, a port or "", a user, a program. It
# enters the user namespace that owns the others, the others, and last the one inside; gives up its
# capabilities; forks into the PID namespace. It never runs the program outside of that. With a port
# it listens there in the pod's network instead.
_ENTER = r"""
import ctypes, fcntl, os, sys
pid, port, user, *argv = sys.argv[1:]
if port:
    import socket
libc = ctypes.CDLL(None, use_errno=True)
def need(result):
    if result:
        raise OSError(ctypes.get_errno(), "the sandbox cannot be entered")
here = os.readlink("/proc/self/ns/pid")
inner = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
outer = fcntl.ioctl(inner, 0xB702)
kinds = ["net"] if port else ["pid", "ipc", "uts", "net", "mnt"]
others = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in kinds]
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(int(user), int(user), int(user))
    os.setresuid(int(user), int(user), int(user))
for namespace in [outer, *others, inner]:
    need(libc.setns(namespace, 0))
if port:
    with socket.create_server(("127.0.0.1", int(port))):
        os.write(1, b"listening")
        os.read(0, 1)
    raise SystemExit
need(libc.prctl(38, 1, 0, 0, 0))
for capability in range(64):
    if libc.prctl(24, capability, 0, 0, 0):
        break
child = os.fork()
if child:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)
try:
    if os.readlink("/proc/self/ns/pid") == here:
        raise OSError("this is not the sandbox")
    os.closerange(3, 64)
    os.setsid()
    os.chdir("/work")
    os.execvp(argv[0], argv)
finally:
    os._exit(126)
"""


class Sandboxed:
    """The container of such a pod; the same methods as `containers.Container`."""

    def __init__(self, pod: Object, port: str) -> None:
        """Start it, with a hole at `port` if that is not empty.

        Raises:
            OSError: where this machine cannot isolate.
        """
        self.killed_for_memory = False
        self._kill_at = float("inf")
        self._ending, self._begun, self._over = threading.Event(), threading.Event(), False
        self._hole: subprocess.Popen[bytes] | None = None
        self._tree: Isolated | None = None
        self._pid = 0
        self._trouble = ""
        self._thread = threading.Thread(target=self._live, args=(pod,), daemon=True)
        self._thread.start()  # the kernel ends the tree with the thread that started it
        self._begun.wait()
        if self._tree is None:
            raise OSError(self._trouble)
        if port:
            self._leak(port)

    def run(self, argv: list[str], stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
        """Start a program inside; its exit code is 128 + the signal that killed it."""
        if os.geteuid() == 0:
            for pipe in (stdin, stdout, stderr):
                os.fchown(pipe, NOBODY, NOBODY)  # as a container runtime does
        return subprocess.Popen(
            [*self._enter(""), *argv], stdin=stdin, stdout=stdout, stderr=stderr,
            env={"PATH": _PATH, "KUBERNETES_SERVICE_HOST": "10.96.0.1"},
        )  # fmt: skip

    def ended(self) -> int | None:
        """The exit code, or None while it runs."""
        if time.monotonic() > self._kill_at:
            self.kill()
        if not self._over:
            return None
        self._thread.join()
        return _KILLED if self._ending.is_set() else 0

    def stop(self, grace: float) -> None:
        """SIGTERM, which the first process of a namespace does not see, then SIGKILL."""
        self._kill_at = min(self._kill_at, time.monotonic() + grace)

    def kill(self) -> None:
        """SIGKILL to every process of the pod."""
        self._ending.set()
        self._thread.join()

    def _enter(self, port: str) -> list[str]:
        place = [str(self._pid), port, str(NOBODY)]
        return [sys.executable, "-I", "-S", "-c", _ENTER, *place]

    def _leak(self, port: str) -> None:
        pipe = subprocess.PIPE
        self._hole = subprocess.Popen(self._enter(port), stdin=pipe, stdout=pipe)
        assert self._hole.stdout is not None
        self._hole.stdout.read(len(b"listening"))

    def _live(self, pod: Object) -> None:
        try:
            words = pod["spec"]["containers"][0]["command"]
            size = int(pod["spec"]["volumes"][0]["emptyDir"]["sizeLimit"])
            limits = SandboxLimits(
                memory=2048 * MIB, cpu_s=10**6, processes=16, file=1024 * MIB, work=size
            )
            self._tree = Isolated(["/bin/sh", "-c", _BEGIN, "sh", *words], limits)
            self._pid = _pid_of(self._tree.pidfd)
        except SandboxUnavailable as error:
            self._trouble = str(error)
            return
        finally:
            self._begun.set()
        while not self._ending.is_set() and not select.select([self._tree.pidfd], [], [], 0.02)[0]:
            pass
        self._tree.stop()
        if self._hole is not None:
            self._hole.communicate()
        self._over = True


@contextmanager
def webhook(change: Callable[[Object], None]) -> Iterator[None]:
    """Let `change` alter pods before they are admitted, as a mutating admission webhook does."""
    _WEBHOOKS.append(change)
    try:
        yield
    finally:
        _WEBHOOKS.remove(change)


def admit_runtime(store: Store, pod: Object) -> None:
    """Let webhooks change a pod; refuse one whose runtime class is not there.

    Raises:
        Refusal: 403.
    """
    for change in _WEBHOOKS:
        change(pod)
    wanted, name = pod.get("spec", {}).get("runtimeClassName"), pod["metadata"].get("name")
    if wanted is not None and store.get("RuntimeClass", "", wanted) is None:
        text = f'pods "{name}" is forbidden: pod rejected: RuntimeClass "{wanted}" not found'
        raise Refusal(403, text, "Forbidden")


def sandboxed(store: Store, pod: Object) -> Sandboxed | None:
    """The container of a pod with a runtime class, started; None for any other pod.

    Raises:
        OSError: where this machine cannot isolate.
    """
    wanted = pod["spec"].get("runtimeClassName")
    if wanted is None:
        return None
    handler = str((store.get("RuntimeClass", "", wanted) or {}).get("handler"))
    return Sandboxed(pod, handler.removeprefix(LEAKY) if handler.startswith(LEAKY) else "")


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["Pid"])
