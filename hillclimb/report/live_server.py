"""The live page over HTTP: GET only, from files only.

/          the page
/state     what changes of one climb, JSON
/rollout   one rollout whole, JSON
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hillclimb.artifacts import ArtifactError
from hillclimb.report.live import LiveClimbs
from hillclimb.report.live_page import content_policy, frame, state

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost")


class LiveServer(ThreadingHTTPServer):
    """Serves the climbs on loopback; requests under other names, as of rebound DNS, are refused.

    Args:
        port: 0 for any; `url` says which.

    Raises:
        OSError: if the port is taken.
    """

    daemon_threads = True

    def __init__(self, climbs: LiveClimbs, port: int) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.climbs, self.lock = climbs, threading.Lock()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        """Answer one request."""
        host, _, _ = self.headers.get("Host", "").rpartition(":")
        if host not in NAMES:
            self._send(403, "text/plain", f"ask {self.server.url}")
            return
        asked = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        try:
            with self.server.lock:
                self._answer(asked.path, query)
        except (OSError, ArtifactError) as error:
            self._send(503, "text/plain", f"The climb's files cannot be read now: {error}")

    def _answer(self, path: str, query: dict[str, str]) -> None:
        climbs = self.server.climbs
        if path == "/":
            self._send(200, "text/html", frame(climbs))
        elif path == "/state":
            self._json(state(climbs, query.get("climb")))
        elif path == "/rollout":
            self._json(_rollout(climbs, query))
        else:
            self._send(404, "text/plain", "there is no such page")

    def _json(self, value: Any) -> None:
        if value is None:
            self._send(404, "text/plain", "there is no such rollout")
        else:
            self._send(200, "application/json", json.dumps(value, allow_nan=False))

    def _send(self, status: int, kind: str, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(data)),
            "Content-Security-Policy": content_policy(),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page that asks every few seconds would fill the terminal."""


def _rollout(climbs: LiveClimbs, query: dict[str, str]) -> dict[str, Any] | None:
    try:
        update, group, sample = (int(query[name]) for name in ("update", "group", "sample"))
    except (KeyError, ValueError):
        return None
    name = query.get("climb", "")
    known = name in climbs.specs and min(update, group, sample) >= 0
    return climbs.rollout(name, update, group, sample) if known else None
