"""`exec` in a pod: a WebSocket whose first byte of every message names a channel.

Channels: 0 standard input, 1 standard output, 2 standard error, 3 a `Status` object with the exit
code, 255 in version 5 of the protocol "this channel is closed".
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import struct
import threading
from http.server import BaseHTTPRequestHandler
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from fake_cluster.kinds import Object, Refusal
from fake_cluster.sandboxed import Sandboxed

_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10


def serve_exec(handler: BaseHTTPRequestHandler, container: Any, pod: str) -> None:
    """Upgrade the connection and run the program that the query names.

    Raises:
        Refusal: 400 where the request is no WebSocket upgrade, 500 where nothing runs in the pod.
    """
    query = parse_qs(urlsplit(handler.path).query)
    if not isinstance(container, Sandboxed):
        raise Refusal(500, f'error dialing backend: no sandbox runs in pod "{pod}"')
    key, offered = handler.headers["Sec-WebSocket-Key"], handler.headers["Sec-WebSocket-Protocol"]
    spoken = [p for p in _PROTOCOLS if p in (offered or "").replace(" ", "").split(",")]
    if not key or not spoken:
        raise Refusal(400, "Upgrade request required")
    proof = base64.b64encode(hashlib.sha1((key + _MAGIC).encode()).digest()).decode()
    handler.close_connection = True
    handler.wfile.write(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {proof}\r\nSec-WebSocket-Protocol: {spoken[0]}\r\n\r\n".encode()
    )
    handler.wfile.flush()
    _Session(handler.rfile, handler.wfile, container).run(query["command"])


class _Session:
    """One program and its connection; the program goes on where the connection breaks."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes], container: Sandboxed) -> None:
        self._incoming, self._outgoing, self._container = incoming, outgoing, container
        self._sending = threading.Lock()

    def run(self, argv: list[str]) -> None:
        """Start it, carry its streams, say how it ended."""
        stdin, feed = os.pipe()
        pumps, ends = [], []
        for channel in (1, 2):
            read, write = os.pipe()
            ends.append(write)
            pumps.append(threading.Thread(target=self._pump, args=(channel, read), daemon=True))
        process = self._container.run(argv, stdin, *ends)
        for end in (stdin, *ends):
            os.close(end)
        threading.Thread(target=self._feed, args=(feed,), daemon=True).start()
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        self._send(_BINARY, b"\3" + json.dumps(_status(process.wait())).encode())
        self._send(_CLOSE, struct.pack("!H", 1000))

    def _pump(self, channel: int, pipe: int) -> None:
        with open(pipe, "rb", buffering=0) as stream:
            while chunk := stream.read(32768):
                self._send(_BINARY, bytes([channel]) + chunk)

    def _feed(self, pipe: int) -> None:
        with open(pipe, "wb", buffering=0) as stdin, contextlib.suppress(OSError, ValueError):
            while (message := self._message()) is not None:
                if message[:1] == b"\0":
                    stdin.write(message[1:])
                elif message == b"\xff\0":
                    return

    def _message(self) -> bytes | None:
        """The next message of the client, or None at the end of the connection."""
        while header := self._incoming.read(2):
            opcode, size = header[0] & 15, header[1] & 127
            if size > 125:
                form = "!H" if size == 126 else "!Q"
                (size,) = struct.unpack(form, self._incoming.read(struct.calcsize(form)))
            mask, masked = self._incoming.read(4), self._incoming.read(size)
            if len(masked) < size or opcode == _CLOSE:
                return None
            whole = (mask * (size // 4 + 1))[:size]
            message = (int.from_bytes(masked) ^ int.from_bytes(whole)).to_bytes(size)
            if opcode == _PING:
                self._send(_PONG, message)
            else:
                return message
        return None

    def _send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        length = bytes([size]) if size < 126 else struct.pack("!BH", 126, size)
        if size >= 2**16:
            length = struct.pack("!BQ", 127, size)
        with self._sending, contextlib.suppress(OSError, ValueError):
            self._outgoing.write(bytes([0x80 | opcode]) + length + payload)
            self._outgoing.flush()


def _status(code: int) -> Object:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }  # fmt: skip
