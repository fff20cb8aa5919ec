"""The API over HTTP: requests, answers, streams, and the faults that meet them."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from fake_cluster.exec import serve_exec
from fake_cluster.faults import Seen
from fake_cluster.kinds import Object, Refusal
from fake_cluster.verbs import Call, route

if TYPE_CHECKING:
    from fake_cluster.cluster import FakeCluster

_VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}


class Server(ThreadingHTTPServer):
    """One listening socket; `close` ends its connections too."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, cluster: FakeCluster, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.cluster = cluster
        self.gone = threading.Event()
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection and answer it in a thread."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection and close it."""
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what went wrong, unless the client only went away."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.cluster.errors.append(error)

    def close(self) -> None:
        """Refuse connections from now on, and end those that are open."""
        self.gone.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing; `FakeCluster.requests` has it."""

    def do_GET(self) -> None:
        """Answer any request."""
        cluster, url = self.server.cluster, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        verb, kind, name = self.command.lower(), "", ""
        try:
            if cluster.token and self.headers.get("Authorization") != f"Bearer {cluster.token}":
                raise Refusal(401, "Unauthorized")
            found, namespace, name, part = route(url.path)
            query, kind = dict(parse_qsl(url.query)), found.name
            call = Call(found, namespace, name, query, body, self.headers.get("Content-Type", ""))
            verb = self._verb(call, part)
            fault = cluster.faults.strike(verb, kind)
            if fault and fault.seconds and self.server.gone.wait(fault.seconds):
                raise ConnectionAbortedError
            if fault and fault.status:
                said = fault.message or f"injected answer to {verb} {kind} {name}"
                raise Refusal(fault.status, said)
            if verb == "watch":
                cluster.requests.append(Seen(verb, kind, name, 200))
                self._stream(call)
                return
            if verb == "exec":
                _, pod = cluster.verbs.get(call)
                serve_exec(self, cluster.kubelet.running(pod), name)
                cluster.requests.append(Seen(verb, kind, name, 101))
                return
            status, answer = getattr(cluster.verbs, verb)(call)
            if fault and fault.lost:
                cluster.requests.append(Seen(verb, kind, name, 0))
                self.close_connection = True
                return
        except Refusal as refused:
            status, answer = refused.status, refused.body()
        cluster.requests.append(Seen(verb, kind, name, status))
        self._send(status, answer)

    do_POST = do_PATCH = do_DELETE = do_GET

    def _verb(self, call: Call, part: str) -> str:
        if self.command == "GET":
            single = part if part in ("log", "exec") else "get"
            return single if call.name else "watch" if call.flag("watch") else "list"
        return _VERBS[self.command]

    def _send(self, status: int, answer: Object | str) -> None:
        plain = isinstance(answer, str)
        block = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if plain else "application/json")
        self.send_header("Content-Length", str(len(block)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(block)

    def _stream(self, call: Call) -> None:
        changes = self.server.cluster.verbs.watch(call, self.server.gone)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for how, made in changes:
            line = json.dumps({"type": how, "object": made}).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
