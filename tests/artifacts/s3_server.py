"""A real S3 server of this machine, and a proxy before it that fails when it is told to."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from s3fs import S3FileSystem

SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
HOP_BY_HOP = ("connection", "expect", "transfer-encoding", "content-length")
CODES = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the server at `port`.

    `faults` are spent on the next requests, one each: an HTTP status, "drop" (the connection ends
    without an answer), "cut" (half of the answer) or "hang" (no answer until `release`). While
    `away` is set every connection is dropped. `seen` has the method and path of what was asked.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = port
        self.faults: deque[int | str] = deque()
        self.only = ""
        self.away = False
        self.seen: list[tuple[str, str]] = []
        self.hanging = threading.Event()
        self.released = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def heal(self) -> None:
        """Answer everything again, and forget."""
        self.faults.clear()
        self.only, self.away = "", False
        self.seen.clear()
        self.released.set()
        self.hanging, self.released = threading.Event(), threading.Event()

    def fault(self, method: str, path: str) -> int | str | None:
        """What to do to a request."""
        with self.lock:
            self.seen.append((method, path))
            if self.away:
                return "drop"
            if self.faults and self.only in f"{method} {path}":
                return self.faults.popleft()
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may go at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault(self.command, self.path)
        if fault == "hang":
            self.server.hanging.set()
            self.server.released.wait(60)
            fault = "drop"
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif isinstance(fault, int):
            text = f"<Error><Code>{CODES[fault]}</Code><Message>injected</Message></Error>".encode()
            self._answer(fault, [("Content-Type", "application/xml")], text, len(text))
        else:
            self._forward(body, cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def _forward(self, body: bytes, cut: bool) -> None:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        with contextlib.closing(upstream):
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
            length = int(answer.headers.get("Content-Length") or len(data))
            kept = [(k, v) for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP]
        self._answer(answer.status, kept, data[: length // 2] if cut else data, length)
        if cut:
            self.close_connection = True

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, length: int
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def moto() -> Iterator[int]:
    """The port of a `moto_server` process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, "moto_server did not start"
            assert time.monotonic() < until, "moto_server does not answer"
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(10)


@contextlib.contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """A proxy before the server at `port`, which no client of an earlier one stands in for."""
    S3FileSystem.clear_instance_cache()
    server = Proxy(port)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.heal()
        server.shutdown()
        server.server_close()


def ask(port: int, method: str, path: str, data: bytes | None = None) -> int:
    """One request to the server itself, past the proxy; returns the status."""
    headers = {"Authorization": SIGNED, "Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
