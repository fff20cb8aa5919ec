"""Who may ask the API for what: as manifests grant it, and as requests need it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from k8s_documents import Object

Grant = tuple[str, str, str]
"""Group, resource with its subresource, verb."""
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def granted(objects: Sequence[Object], account: str) -> set[Grant]:
    """What the roles that are bound to a service account allow."""
    roles = {(item["kind"], item["metadata"]["name"]): item for item in objects}
    found = set()
    for item in objects:
        if item["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if all(subject["name"] != account for subject in item["subjects"]):
            continue
        for rule in roles[item["roleRef"]["kind"], item["roleRef"]["name"]]["rules"]:
            found |= {
                (group, resource, verb)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return found


def needed(method: str, path: str, content: str) -> set[Grant]:
    """The permissions that a request needs.

    Server-side apply needs to create what it does not find. A program is started over a WebSocket,
    which is a GET, and for which newer API servers want `create` too.
    """
    url = urlsplit(path)
    parts = url.path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    resource, name = "/".join([rest[0], *rest[2:]]), len(rest) > 1
    if resource == "pods/exec":
        verbs = {"get", "create"}
    elif method == "GET" and not name:
        verbs = {"watch" if parse_qs(url.query).get("watch") == ["true"] else "list"}
    else:
        verbs = {"get" if method == "GET" else _VERBS[method]}
    if "apply-patch" in content:
        verbs.add("create")
    return {(group, resource, verb) for verb in verbs}


@dataclass
class Recorder:
    """An API server that answers what it is told to; anything else is 404."""

    answers: Callable[[str, str], Object | str | None]
    url: str = ""
    needed: set[Grant] = field(default_factory=set)
    bodies: list[Object] = field(default_factory=list)


@contextmanager
def recording(answers: Callable[[str, str], Object | str | None]) -> Iterator[Recorder]:
    """A recorder on loopback; `answers` is asked with method and path, POST gives its body back."""
    recorder = Recorder(answers)
    handler = type("Handler", (_Handler,), {"recorder": recorder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    recorder.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    recorder: Recorder

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Note what the request needs and answer it."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = self.headers.get("Content-Type", "")
        self.recorder.needed |= needed(self.command, self.path, content)
        answer = self.recorder.answers(self.command, urlsplit(self.path).path)
        if self.command in ("POST", "PATCH"):
            answer = json.loads(body)
            self.recorder.bodies.append(answer)
        status = 404 if answer is None else 201 if self.command == "POST" else 200
        block = (answer if isinstance(answer, str) else json.dumps(answer or {})).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(block)))
        self.end_headers()
        self.wfile.write(block)

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET
