"""What a stage needs from the operating system: one at a time, many ranks, a clean end."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import fsspec

from hillclimb.artifacts.remote import is_local

TERMINATED = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1
_REFUSED = 2
_GRACE = 10.0
_NOTICE = 20.0


class Busy(Exception):
    """Another process is making the same artifact."""


class Terminated(SystemExit):
    """SIGTERM arrived; passes every `except Exception` on its way out."""


def raise_on_sigterm() -> None:
    """Turn SIGTERM into `Terminated`, so that the stage leaves through its `finally` blocks."""

    def handler(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated(TERMINATED)

    signal.signal(signal.SIGTERM, handler)


@contextmanager
def exclusive(output: str) -> Iterator[None]:
    """Hold the right to make `output`, where that is on a local disk.

    The lock belongs to the process, not to its children, and ends with it; of the nodes that share
    a stage the first holds it. Stores that are not local have none: there the launcher's names
    keep two stages apart, and a writer stops when another one has committed (`ArtifactWriter`).

    Raises:
        Busy: if a living process holds it; the message names the process.
    """
    if not is_local(output) or _node():
        yield
        return
    _, path = fsspec.core.url_to_fs(output)
    lock, owner = Path(f"{path.rstrip('/')}.lock"), os.getpid()
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(lock, output)
    try:
        yield
    finally:
        if os.getpid() == owner:
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(lock: Path, output: str) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode() or "unknown"
            os.close(descriptor)
            raise Busy(
                f"process {holder} is making {output}: wait for it to end, or stop it"
            ) from None
        if lock.exists() and os.fstat(descriptor).st_ino == lock.stat().st_ino:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)


def run_ranks(ranks: int, work: Callable[[int], int]) -> int:
    """Run `work(rank)` in forked processes with torchrun's environment variables.

    All `ranks` run here, unless HILLCLIMB_NODES says that pods share them: then each starts an
    equal part of them, JOB_COMPLETION_INDEX says which, and MASTER_ADDR where they meet.

    The calling process only watches: when one rank fails, all are killed, and when this process
    dies, they die. In a rank the call returns what `work` returned; in the watcher it returns the
    exit code of the first rank that failed, or 0. Of several pods, one that fails waits before it
    ends: where its peer was taken away, that one's end is then seen first, and counts as no
    failure. Call it before any thread is started.

    Raises:
        ValueError: if the ranks do not divide over the nodes, or nobody said where they meet.
    """
    if ranks == 1:
        return work(0)
    nodes, node = int(os.environ.get("HILLCLIMB_NODES", "1")), _node()
    if ranks % nodes:
        raise ValueError(f"HILLCLIMB_NODES is {nodes}, which does not divide {ranks} ranks")
    if nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ValueError("set MASTER_ADDR and MASTER_PORT: the ranks of several nodes meet there")
    here, watcher, children = ranks // nodes, os.getpid(), {}
    group = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(here)}
    if nodes == 1:
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    for local in range(here):
        rank = node * here + local
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _become_rank({**group, "RANK": str(rank), "LOCAL_RANK": str(local)}, watcher)
            return work(rank)
        children[pid] = rank
    code = _watch(children)
    return code if nodes == 1 or code in (0, _REFUSED, TERMINATED) else _after_the_others(code)


def _node() -> int:
    """Which of the nodes that share a stage this is."""
    several = int(os.environ.get("HILLCLIMB_NODES", "1")) > 1
    return int(os.environ["JOB_COMPLETION_INDEX"]) if several else 0


def _become_rank(variables: dict[str, str], watcher: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != watcher:
        os._exit(1)
    os.environ.update(variables)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _watch(children: dict[int, int]) -> int:
    code = 0
    try:
        while children and code == 0:
            pid, status = os.wait()
            rank = children.pop(pid, None)
            if rank is not None and (code := os.waitstatus_to_exitcode(status)):
                print(f"rank {rank} ended with {code}: all ranks end", file=sys.stderr)
    except Terminated:
        code = TERMINATED
    _end(children, signal.SIGTERM if code == TERMINATED else signal.SIGKILL)
    return 128 - code if code < 0 else code


def _after_the_others(code: int) -> int:
    try:
        time.sleep(_NOTICE)
    except Terminated:
        return TERMINATED
    return code


def _end(children: dict[int, int], how: signal.Signals) -> None:
    for pid in children:
        os.kill(pid, how)
    until = time.monotonic() + _GRACE
    while children:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid:
            children.pop(pid, None)
        elif time.monotonic() > until:
            for left in children:
                os.kill(left, signal.SIGKILL)
            until = float("inf")
        else:
            time.sleep(0.02)
