"""The first process of a sandbox pod: it runs every command there and ends what a command leaves.

It runs from source inside the pod (`python3 -I -S -c`), so it imports nothing of this project. The
host imports it for the messages.

A request and its answer travel through a relay, a process that the API's `exec` starts in the pod
for one of them. Commands have the relay's user, so a relay is trusted with nothing: messages carry
a keyed hash, and the key comes with the first request, before any command has run. Requests are
numbered. The last one may be asked again where its answer was lost; it does not run again.

Nobody inside can look into this process (it hides its memory, so the kernel lets no process of its
own user trace it) or end it by a signal (it is process 1). When a command is over, every process
but this one is killed at once (`kill -9 -1`, which a fork bomb cannot outrun), unless only the
relay of the request is there. So nothing of one command is alive when the next one starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import hmac
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

SIZE = struct.Struct("!Q")
REQUEST, ANSWER = b"request", b"answer"
_NAME = "\0hillclimb-guard"
_SEAL_BYTES, _LONGEST = 32, 64 * 2**20
_TRANSFER_S, _END_S = 60.0, 10.0
_PR_SET_DUMPABLE = 4

# What `exec` starts: it carries one request from its input to the guard, and the answer back.
RELAY = rf"""
import ctypes, os, sys
from _socket import AF_UNIX, socket  # a third of the time that the whole module takes
if ctypes.CDLL(None).prctl({_PR_SET_DUMPABLE}, 0, 0, 0, 0):
    sys.exit(1)
guard = socket(AF_UNIX)
guard.connect({_NAME!r})
head = b""
while len(head) < {SIZE.size}:
    head += os.read(0, {SIZE.size} - len(head)) or sys.exit(1)
guard.sendall(head)
left = int.from_bytes(head, "big")
while left:
    chunk = os.read(0, min(left, 65536)) or sys.exit(1)
    guard.sendall(chunk)
    left -= len(chunk)
while chunk := guard.recv(65536):
    while chunk:
        chunk = chunk[os.write(1, chunk):]
"""


def seal(key: bytes, kind: bytes, header: dict[str, Any], body: bytes) -> bytes:
    """A message: a keyed hash of what follows, a line of JSON, then bytes."""
    text = json.dumps(header).encode() + b"\n" + body
    return _hash(key, kind, text) + text


def unseal(key: bytes, kind: bytes, message: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a message. Raises ValueError where it was not sealed with this key."""
    given, text = message[:_SEAL_BYTES], message[_SEAL_BYTES:]
    if not hmac.compare_digest(given, _hash(key, kind, text)):
        raise ValueError("a message in the pod does not carry the sandbox's seal")
    line, _, body = text.partition(b"\n")
    header: dict[str, Any] = json.loads(line)
    return header, body


def _hash(key: bytes, kind: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=_SEAL_BYTES, key=key, person=kind).digest()


class Guard:
    """Answers one request at a time, for as long as the pod lives."""

    def __init__(self) -> None:
        self._key, self._number, self._answer = b"", -1, b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(_NAME)
        self._listener.listen(16)
        self._woken, self._child, self._code = _wake_by_children(), 0, 0
        self._state = _own_state()

    def serve(self) -> None:
        """Never returns; an error ends the pod, and with it the sandbox."""
        while True:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(_TRANSFER_S)
                with contextlib.suppress(OSError, ValueError, KeyError):
                    header, command = self._request(connection)
                    if header["number"] == self._number + 1:
                        self._take(connection, header, command)
                    if header["number"] == self._number:
                        connection.sendall(self._answer)

    def _request(self, connection: socket.socket) -> tuple[dict[str, Any], bytes]:
        (size,) = SIZE.unpack(_received(connection, SIZE.size))
        if size > _LONGEST:
            raise ValueError("the request is too long")
        message = _received(connection, size)
        line = message[_SEAL_BYTES:].partition(b"\n")[0]
        key = self._key or bytes.fromhex(json.loads(line)["key"])
        opened = unseal(key, REQUEST, message)
        self._key = key
        return opened

    def _take(self, connection: socket.socket, header: dict[str, Any], command: bytes) -> None:
        """Run the command of a request and keep its answer."""
        relay = _peer(connection)
        if _others() != {relay}:
            self._clear()
            return
        try:
            first = self._number < 0
            done, body = ({}, b"") if first else self._run(connection, relay, header, command)
        except Exception as error:
            sys.exit(f"a command was not carried out: {error}")
        self._number += 1
        self._answer = seal(self._key, ANSWER, {"number": self._number, **done}, body)

    def _run(
        self, connection: socket.socket, relay: int, header: dict[str, Any], command: bytes
    ) -> tuple[dict[str, Any], bytes]:
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        self._child = os.fork()
        if self._child == 0:
            _become(command, out_end, err_end, header)
        os.close(out_end)
        os.close(err_end)
        printed = {out: bytearray(), err: bytearray()}
        deadline = time.monotonic() + header["seconds"]
        ending = self._follow(printed, header["limit"], deadline)
        self._clear(relay, connection)
        if ending == "exited":
            ending = _drained(printed, header["limit"])
        for pipe in printed:
            os.close(pipe)
        if _own_state() != self._state:
            raise RuntimeError("it changed the process that watches over it")
        stdout, stderr = printed.values()
        return {"ending": ending, "code": self._code, "stdout": len(stdout)}, bytes(stdout + stderr)

    def _follow(self, printed: dict[int, bytearray], limit: int, deadline: float) -> str:
        """Collect what the command prints until it exits or a limit is met."""
        poll = select.poll()
        for source in (*printed, self._woken):
            poll.register(source, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            for source, _ in poll.poll(left * 1000):
                chunk = os.read(source, 65536)
                if source == self._woken:
                    continue
                if not chunk:
                    poll.unregister(source)
                elif _over(printed[source], chunk, limit):
                    return "truncated"
            if self._reaped():
                return "exited"
        return "timed_out"

    def _reaped(self) -> bool:
        """Reap whoever has ended; whether the command's shell was, or had been, among them."""
        with contextlib.suppress(ChildProcessError):
            while pid := (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if pid == self._child:
                    code = os.waitstatus_to_exitcode(ended[1])
                    self._child, self._code = 0, 128 - code if code < 0 else code
        return self._child == 0

    def _clear(self, relay: int = 0, connection: socket.socket | None = None) -> None:
        """Leave nobody else alive but the relay, if it is alone and still the one that asked.

        Its process id could belong to another by now; then its connection has ended.
        """
        until = time.monotonic() + _END_S
        while True:
            self._reaped()
            others = _others()
            if not others or (connection and others == {relay} and _open(connection)):
                return
            if time.monotonic() > until:
                sys.exit("what a command has left does not end")
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            time.sleep(0.001)


def _others() -> set[int]:
    return {int(entry) for entry in os.listdir("/proc") if entry.isdigit()} - {os.getpid()}


def _peer(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[0])


def _open(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)


def _received(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(min(size - len(data), 2**16))
        if not chunk:
            raise ValueError("a request ended early")
        data += chunk
    return bytes(data)


def _over(stream: bytearray, chunk: bytes, limit: int) -> bool:
    over = len(stream) + len(chunk) > limit
    stream += chunk[: limit - len(stream)]
    return over


def _drained(printed: dict[int, bytearray], limit: int) -> str:
    """Take what still waits in the pipes, whose writers are dead; how the command has ended."""
    for pipe, stream in printed.items():
        while chunk := os.read(pipe, 65536):
            if _over(stream, chunk, limit):
                return "truncated"
    return "exited"


def _become(command: bytes, out: int, err: int, header: dict[str, Any]) -> None:
    """Turn this fork into the command's shell; never returns."""
    try:
        os.setsid()
        for number, source in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
            os.dup2(source, number)
        _on_all_signals(signal.SIG_DFL)
        os.umask(0o022)
        os.chdir("/work")
        for name, wanted in header["limits"].items():
            kind = getattr(resource, f"RLIMIT_{name}")
            most = resource.getrlimit(kind)[1]
            bound = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
            resource.setrlimit(kind, (bound, bound))
        variables = {"PATH": os.environ.get("PATH", os.defpath)}
        variables.update(header["variables"])
        os.execvpe("sh", [b"sh", b"-c", command], variables)
    except BaseException as error:
        os.write(2, f"sh: {error}\n".encode())
    finally:
        os._exit(126)


def _wake_by_children() -> int:
    """A descriptor that can be read when a child has ended."""
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read


def _on_all_signals(what: signal.Handlers) -> None:
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, what)


def _own_state() -> list[object]:
    """What a command could change here to the harm of the next one, and nobody else does."""
    found: list[object] = [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)]
    for number in range(16):
        with contextlib.suppress(OSError, ValueError):
            found.append(resource.getrlimit(number))
    return found


def main() -> None:
    """Refuse to be anything but process 1; then serve."""
    if os.getpid() != 1:
        sys.exit("this must be the first process of a container")
    _on_all_signals(signal.SIG_IGN)
    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        sys.exit("the kernel did not let this process hide its memory")
    Guard().serve()


if __name__ == "__main__":
    main()
