"""The supervisor that runs Python programs: it lives at pid 1 inside the sandbox.

It imports the standard library once, then forks a child per program: about 3 ms instead of a
Python start. It runs from source inside the sandbox (`python -I -S -c`), so it imports nothing of
this project. The host imports it for `encode` and the frames.

In: a `REQUEST` header, then a JSON job that only the child reads. Out: a `REPLY` header, then the
payload: a script's standard output, or one JSON line per call. With limits as arguments it runs
one job from its standard input instead and prints the payload.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

REQUEST = struct.Struct("!dQQQ")  # wall seconds, then in bytes: memory, longest output, job
REPLY = struct.Struct("!BiQ")  # ending, exit status, payload length in bytes
EXITED, TIMED_OUT, TOO_LONG = range(3)
UNCLEAN = 128
_PR_SET_DUMPABLE = 4
_LIMITS = 16  # RLIM_NLIMITS of Linux
_COMMON = (
    "bisect cmath collections copy datetime decimal fractions functools heapq io itertools math "
    "operator re statistics string typing"
)


def encode(value: object) -> object:
    """A value of Python's built-in types as JSON that keeps the types apart; TypeError otherwise.

    Scalars stay (but {"i": hexadecimal} for large integers); a list is {"l": [...]}, a tuple "t",
    a set "s", a dictionary "d" (pairs).
    """
    if isinstance(value, int) and abs(value) >= 2**63:
        return {"i": hex(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return {"l" if isinstance(value, list) else "t": [encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {"s": sorted((encode(item) for item in value), key=json.dumps)}
    if isinstance(value, dict):
        return {"d": [[encode(key), encode(item)] for key, item in value.items()]}
    raise TypeError(f"a {type(value).__name__} is not a plain value")


def decode(value: object) -> object:
    """The inverse of `encode`; ValueError, TypeError or KeyError for anything else."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "i":
        return int(content, 16)
    if kind == "d":
        return {decode(key): decode(item) for key, item in content}
    items = [decode(item) for item in content]
    return {"l": list, "t": tuple, "s": set}[kind](items)


def main() -> None:
    """Serve until the host closes the control socket (standard input)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=os.dup(0))
    _standard_streams(os.open(os.devnull, os.O_RDWR))
    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError("the kernel did not let this process hide its memory from its children")
    for name in _COMMON.split():
        importlib.import_module(name)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    gc.freeze()
    control.sendall(b"ready\n")
    state = _own_state()
    while header := _received(control, REQUEST.size):
        if not _serve(control, *REQUEST.unpack(header)) or _own_state() != state:
            return  # the host starts another


def _own_state() -> tuple[object, ...]:
    """What one program could change here to the harm of the next one."""
    limits = [resource.getrlimit(number) for number in range(_LIMITS)]
    scheduling = (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))
    return limits, scheduling, os.sched_getaffinity(0)


def _serve(control: socket.socket, wall_s: float, memory: int, longest: int, length: int) -> bool:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _become_program(control, write, length, memory, wall_s)
    os.close(write)
    if not os.read(read, 1):  # the child says that it has read its job
        return False
    ending, payload = _collect(child, read, time.monotonic() + wall_s, longest)
    os.close(read)
    status = _end_all(child)
    control.sendall(REPLY.pack(ending, status, len(payload)) + payload)
    return True


def _collect(child: int, pipe: int, deadline: float, longest: int) -> tuple[int, bytes]:
    payload, exited = b"", os.pidfd_open(child)
    os.set_blocking(pipe, False)
    try:
        while len(payload) <= longest:
            left = deadline - time.monotonic()
            ready = select.select([pipe, exited], [], [], max(0, left))[0]
            if pipe in ready and (chunk := os.read(pipe, 65536)):
                payload += chunk
            elif exited in ready:
                return EXITED, payload
            elif left <= 0:
                return TIMED_OUT, payload
    finally:
        os.close(exited)
    return TOO_LONG, payload[:longest]


def _end_all(child: int) -> int:
    """Kill and reap every other process in here; the child's exit code or minus its signal."""
    status = 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, raw = os.waitpid(-1, 0)
            if pid == child:
                status = os.waitstatus_to_exitcode(raw)
    return status


def _received(control: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = control.recv(min(size - len(data), 2**20))
        if not chunk:
            return b""
        data += chunk
    return data


def _standard_streams(null: int) -> None:
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def _become_program(control: socket.socket, write: int, length: int, memory: int,
                    wall_s: float) -> None:  # fmt: skip
    """Take the job, drop what the program must not have, run it; never returns."""
    code = 1
    try:
        job = json.loads(_received(control, length))
        control.close()
        os.write(write, b"+")
        code = _execute(job, write, memory, wall_s)
    finally:
        os._exit(code)


def run_one(memory: int, wall_s: float) -> int:
    """Run the one job on standard input and print its payload, where no server can be kept.

    Returns the program's exit code, at most 127; or 128 + the signal that ended it, SIGALRM where
    its time was over; or `UNCLEAN`, and it did not run, where files of an earlier one stay.
    """
    job, write, late = json.load(sys.stdin), os.dup(1), []
    try:
        _remove_files("/work", "/tmp")
    except OSError:
        return UNCLEAN
    _standard_streams(os.open(os.devnull, os.O_RDWR))
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _execute(job, write, memory, wall_s)
        finally:
            os._exit(code)

    def end(number: int, frame: object) -> None:
        late.append(number)
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, wall_s)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if late:
        return 128 + signal.SIGALRM
    return 128 - status if status < 0 else min(status, 127)


def _remove_files(*folders: str) -> None:
    def fail(error: OSError) -> None:
        raise error

    for folder in folders:
        for place, below, files in os.walk(folder, topdown=False, onerror=fail):
            for name in (*files, *below):
                path = os.path.join(place, name)
                remove = os.unlink if name in files or os.path.islink(path) else os.rmdir
                remove(path)


def _execute(job: dict[str, Any], write: int, memory: int, wall_s: float) -> int:
    if job["stdin"] is not None:
        os.dup2(_memory_file(job["stdin"].encode()), 0)
        os.dup2(write, 1)
    seconds = int(wall_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    random.seed(0)
    return _script(job) if job["stdin"] is not None else _calls(job, write)


def _memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("stdin")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _script(job: dict[str, Any]) -> int:
    code = 0
    try:
        exec(compile(job["source"], "program.py", "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        _named(error)
        code = 1
    sys.stdout.flush()
    return code


def _calls(job: dict[str, Any], write: int) -> int:
    space: dict[str, Any] = {"__name__": "program"}
    calls: Any = decode(job["calls"])
    with open(write, "w", buffering=1) as results:
        try:
            exec(compile(job["source"], "program.py", "exec"), space)
            function = space[job["entry"]]
        except BaseException as error:
            results.write((json.dumps({"error": _named(error)}) + "\n") * len(calls))
            return 1
        for arguments in calls:
            try:
                line = {"value": encode(function(*arguments))}
            except BaseException as error:
                line = {"error": _named(error)}
            results.write(json.dumps(line) + "\n")
    return 0


def _named(error: BaseException) -> str:
    if isinstance(error, MemoryError | BlockingIOError):  # a limit was met, on memory or processes
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{type(error).__name__}: {error}"[:200]


if __name__ == "__main__":
    if sys.argv[1:]:
        os._exit(run_one(int(sys.argv[1]), float(sys.argv[2])))
    main()
