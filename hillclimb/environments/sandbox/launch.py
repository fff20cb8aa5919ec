"""Start one isolated process tree under bubblewrap, and end it for certain.

Inside: a read-only /usr (and the Python installation that runs this program, read-only at its own
path), a generated /etc, own /proc and /dev, /tmp and /work in bounded memory, user `nobody` without
capabilities, no network, no variable of the host, no further user namespaces, own limits. The first
process (pid 1) is the caller's supervisor: when it dies, the kernel ends every other one.

A caller who is root becomes `nobody` first, because the limit on processes does not bind root.

Not covered: the kernel itself (a flaw in it is a way out; gVisor pods are the stronger wall), and
the memory of all processes together, which is bounded only by processes x memory each. They are the
first to go when the machine runs out of memory; put a cgroup around the whole where that matters.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path

from hillclimb.environments.sandbox.base import SandboxDied, SandboxLimits, SandboxUnavailable
from hillclimb.environments.sandbox.shell import NOBODY, VARIABLES

START_TIMEOUT_S = 30.0
INSTALL = "install it with `apt-get install bubblewrap util-linux` (bubblewrap 0.8 or newer)"
PYTHON_HOME = Path(sys.base_prefix).resolve()
PYTHON = PYTHON_HOME / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
SUPERVISOR_SHELL = "/etc/supervisor"
_ETC = {
    "passwd": f"nobody:x:{NOBODY}:{NOBODY}:nobody:/work:/bin/sh\n",
    "group": f"nogroup:x:{NOBODY}:\n",
}
_PATH = f"{PYTHON_HOME}/bin:/usr/local/bin:/usr/bin:/bin"


class Isolated:
    """A running isolated tree: a control socket to its supervisor, and its two output pipes.

    The supervisor has the socket as its standard input and says `ready` on it first. Start a tree
    from a thread that outlives it: the kernel ends the tree when the thread that started it ends.
    """

    def __init__(self, argv: list[str], limits: SandboxLimits, *, writable: bool = True) -> None:
        """`writable=False` leaves no writable file system at all. Raises `SandboxUnavailable`."""
        _require_tools()
        with ExitStack() as ours, ExitStack() as starting, ExitStack() as theirs:
            control, inner = socket.socketpair()
            ours.callback(control.close)
            theirs.callback(inner.close)
            stdout, stdout_end = _pipe(ours, theirs)
            stderr, stderr_end = _pipe(ours, theirs)
            info, info_end = _pipe(starting, theirs)
            etc = {name: _memory_file(theirs, text) for name, text in _ETC.items()}
            etc["supervisor"] = os.open("/bin/sh", os.O_RDONLY)
            theirs.callback(os.close, etc["supervisor"])
            command = _as_nobody(_bwrap(limits, info_end, etc, writable) + _limited(limits, argv))
            process = subprocess.Popen(
                command, stdin=inner.fileno(), stdout=stdout_end, stderr=stderr_end, cwd="/",
                pass_fds=(info_end, *etc.values()), env={"PATH": os.getenv("PATH", os.defpath)},
            )  # fmt: skip
            ours.callback(_reap, process)
            theirs.close()
            pidfd = _handshake(process, info, control, stderr)
            ours.callback(os.close, pidfd)
            ours.callback(_kill, pidfd)
            self.control, self.stdout, self.stderr, self.pidfd = control, stdout, stderr, pidfd
            self._end = weakref.finalize(self, ours.pop_all().close)

    @property
    def alive(self) -> bool:
        return self._end.alive

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor; `SandboxDied` if it is gone."""
        if not self.alive:
            raise SandboxDied("the sandbox was stopped")
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            raise SandboxDied("the sandbox's first process is gone") from None

    def stop(self) -> None:
        """Kill the tree and return when no process of it is left; a second call does nothing."""
        self._end()


def _require_tools() -> None:
    """Raise `SandboxUnavailable` where a program that isolation needs is missing."""
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable("the local sandbox needs Linux: run this on Linux or in a pod")
    for tool in ("bwrap", "choom", "mount", "prlimit", "setpriv", "unshare"):
        if shutil.which(tool) is None:
            raise SandboxUnavailable(f"the sandbox needs `{tool}`, which is missing: {INSTALL}")


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    if os.geteuid() == 0:
        os.fchown(write, NOBODY, NOBODY)  # so that `> /dev/stdout` opens inside
    return read, write


def _memory_file(stack: ExitStack, text: str) -> int:
    descriptor = os.memfd_create("etc")
    stack.callback(os.close, descriptor)
    os.write(descriptor, text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _bwrap(limits: SandboxLimits, info: int, etc: dict[str, int], writable: bool) -> list[str]:
    argv = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    argv += ["--new-session", "--as-pid-1", "--clearenv", "--hostname", "sandbox"]
    argv += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--info-fd", str(info)]
    for name, value in {"PATH": _PATH, **VARIABLES}.items():
        argv += ["--setenv", name, value]
    argv += _system_folders()
    argv += ["--file", str(etc["passwd"]), "/etc/passwd", "--file", str(etc["group"]), "/etc/group"]
    # A program that its user may run but not read cannot be traced or looked into by that user.
    argv += ["--perms", "0111", "--file", str(etc["supervisor"]), SUPERVISOR_SHELL]
    argv += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/work"):
        argv += ["--size", str(limits.work), "--tmpfs", folder]
        argv += [] if writable else ["--remount-ro", folder]
    return [*argv, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/work", "--"]


def _system_folders() -> list[str]:
    argv = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    argv += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for folder in ("/bin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(folder):
            argv += ["--symlink", os.readlink(folder), folder]
        else:
            argv += ["--ro-bind-try", folder, folder]
    if not PYTHON_HOME.is_relative_to("/usr"):
        argv += ["--ro-bind", _visible_python_home(), str(PYTHON_HOME)]
    return argv


def _limited(limits: SandboxLimits, argv: list[str]) -> list[str]:
    # Set inside, where the limit on processes counts this tree alone (Linux 5.14 and newer).
    return [
        "choom", "-n", "1000", "--",
        "prlimit", f"--nproc={limits.processes}", f"--as={limits.memory}", f"--cpu={limits.cpu_s}",
        f"--fsize={limits.file}", f"--nofile={limits.open_files}", "--core=0", "--", *argv,
    ]  # fmt: skip


def _hidden_from_nobody() -> bool:
    folders = [PYTHON_HOME, *PYTHON_HOME.parents]
    return os.geteuid() == 0 and not all(os.stat(folder).st_mode & 0o001 for folder in folders)


def _visible_python_home() -> str:
    return "/mnt" if _hidden_from_nobody() else str(PYTHON_HOME)


def _as_nobody(command: list[str]) -> list[str]:
    """Root becomes nobody, with Python shown at /mnt where only root can reach it.

    Each step replaces the one before, so that bubblewrap is a child of this very process and dies
    with it.
    """
    if os.geteuid() != 0:
        return command
    identity = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    command = ["setpriv", *identity, "--", *command]
    if _hidden_from_nobody():
        show = 'mount --bind "$0" /mnt && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", show, str(PYTHON_HOME), *command]
    return command


def _handshake(process: subprocess.Popen[bytes], info: int, control: socket.socket,
               stderr: int) -> int:  # fmt: skip
    """Wait until the supervisor is ready; return a pid file descriptor of it."""
    deadline = time.monotonic() + START_TIMEOUT_S
    told = _until(info, b"}", deadline)
    with suppress(ValueError, ProcessLookupError):
        pidfd = os.pidfd_open(json.loads(told)["child-pid"])
        if _until(control.fileno(), b"\n", deadline) == b"ready\n":
            return pidfd
        os.close(pidfd)
    process.kill()
    process.wait()
    raise SandboxUnavailable(_explain(_until(stderr, None, deadline).decode(errors="replace")))


def _until(descriptor: int, end: bytes | None, deadline: float) -> bytes:
    """Read until `end` was seen, the writers are gone, or the deadline passed."""
    data, poll = b"", select.poll()
    poll.register(descriptor, select.POLLIN)
    while end is None or end not in data:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            break
        chunk = os.read(descriptor, 4096)
        if not chunk:
            break
        data += chunk
    return data


def _explain(complaint: str) -> str:
    complaint = " ".join(complaint.split()) or "no answer within its time"
    if "nknown option" in complaint:
        return f"bubblewrap is too old ({complaint}): {INSTALL}"
    return (
        f"bubblewrap cannot isolate here ({complaint}): allow unprivileged user namespaces "
        "(sysctl kernel.apparmor_restrict_unprivileged_userns=0, user.max_user_namespaces above 0; "
        "in a container, a seccomp profile that permits them)"
    )


def _kill(pidfd: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
