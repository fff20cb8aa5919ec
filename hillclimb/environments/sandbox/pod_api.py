"""The calls of the Kubernetes API that sandbox pods need, through the official client.

The only module of its floor that imports `kubernetes`; import it where pods are asked for.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import urllib3
import websocket
from kubernetes import client, config
from kubernetes.client.rest import ApiException
from kubernetes.stream import ws_client

from hillclimb.environments.sandbox.base import SandboxUnavailable
from hillclimb.environments.sandbox.pod_spec import CLAIMS, CONTAINER, Object

STDOUT, STATUS = 1, 3
_TIMEOUT = (5.0, 30.0)  # seconds to connect, and between two bytes
_FRAME = 32 * 1024
_GRANT = "grant the stage's service account what docs/security.md lists"
websocket.setdefaulttimeout(_TIMEOUT[1])


class ApiAway(Exception):
    """The API did not answer for as long as patience lasted."""


class ExecLost(Exception):
    """A program in a pod cannot be started, or its connection ended before it did."""


class Full(SandboxUnavailable):
    """The namespace's quota is used up for now."""


class Api:
    """One namespace's pods. Calls go on trying while the API is away, up to `patience_s`.

    Every call raises `ApiAway`, or `SandboxUnavailable` where the API refuses.
    """

    def __init__(self, namespace: str, patience_s: float, configuration: Any = None) -> None:
        """`configuration` is the client's; left out, the pod's own or the kubeconfig's.

        Raises:
            SandboxUnavailable: if there is neither.
        """
        self.namespace, self.patience_s = namespace, patience_s
        self.configuration = configuration or _configuration()
        self.configuration.retries = False  # who asks knows better how often
        self._client = client.ApiClient(self.configuration)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the API server."""
        url = urlsplit(self.configuration.host)
        return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)

    def create_pod(self, manifest: Object) -> Object:
        """Create it; one of the same name is ours, from a call whose answer was lost.

        Raises:
            Full: if the namespace's quota is used up.
        """
        place = self._place("v1", "pods")
        made = self._ask("POST", place, body=manifest)
        found = made or self.pod(manifest["metadata"]["name"])
        if found is None:
            raise SandboxUnavailable(
                f"namespace {self.namespace!r} does not exist: create it, or correct "
                "HILLCLIMB_SANDBOX_NAMESPACE"
            )
        return found

    def pod(self, name: str) -> Object | None:
        """The pod, or None."""
        return self._ask("GET", self._place("v1", "pods", name))

    def pods(self, labels: str) -> list[Object]:
        """The pods that a label selector matches."""
        return self._list(self._place("v1", "pods"), labelSelector=labels)

    def delete_pod(self, name: str, patience_s: float | None = None) -> None:
        """Delete it; nothing happens where it is gone."""
        self._ask("DELETE", self._place("v1", "pods", name), patience_s=patience_s)

    def warning(self, pod: str) -> str:
        """The last warning about a pod; nothing where there is none, or it may not be read."""
        about = f"involvedObject.name={pod},type=Warning"
        try:
            found = self._list(self._place("v1", "events"), fieldSelector=about)
        except SandboxUnavailable:
            return ""
        said = sorted(found, key=_when)
        return " ".join(str(said[-1].get("message", "")).split()) if said else ""

    def runtime_class(self, name: str) -> Object | None:
        """The RuntimeClass, or None."""
        return self._ask("GET", f"/apis/node.k8s.io/v1/runtimeclasses/{name}")

    def network_policies(self) -> list[Object]:
        """The namespace's NetworkPolicies."""
        return self._list(self._place("networking.k8s.io/v1", "networkpolicies"))

    def create_claim(self, manifest: Object) -> Object | None:
        """Create a SandboxClaim; None where agent-sandbox is not installed."""
        made = self._ask("POST", self._place(CLAIMS, "sandboxclaims"), body=manifest)
        return made or self.claim(manifest["metadata"]["name"])

    def claim(self, name: str) -> Object | None:
        """The SandboxClaim, or None."""
        return self._ask("GET", self._place(CLAIMS, "sandboxclaims", name))

    def claims(self, labels: str) -> list[Object]:
        """The SandboxClaims that a label selector matches."""
        return self._list(self._place(CLAIMS, "sandboxclaims"), labelSelector=labels)

    def delete_claim(self, name: str, patience_s: float | None = None) -> None:
        """Delete a SandboxClaim, and with it its sandbox."""
        self._ask("DELETE", self._place(CLAIMS, "sandboxclaims", name), patience_s=patience_s)

    def _place(self, version: str, plural: str, name: str = "") -> str:
        root = "apis" if "/" in version else "api"
        place = f"/{root}/{version}/namespaces/{self.namespace}/{plural}"
        return f"{place}/{name}" if name else place

    def _list(self, place: str, **query: str) -> list[Object]:
        return list((self._ask("GET", place, list(query.items())) or {}).get("items") or [])

    def _ask(
        self,
        verb: str,
        place: str,
        query: Sequence[tuple[str, str]] = (),
        body: Object | None = None,
        patience_s: float | None = None,
    ) -> Object | None:
        """The answer as the API writes it; None for what is not there, or was there already."""
        patience = self.patience_s if patience_s is None else patience_s
        until, pause = time.monotonic() + patience, 0.1
        while True:
            try:
                return self._once(verb, place, query, body)
            except ApiException as error:
                if error.status in (404, 409):
                    return None
                if error.status and error.status < 500 and error.status != 429:
                    raise _refusal(error) from error
                problem: Exception = error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                problem = error
            if time.monotonic() + pause > until:
                raise ApiAway(f"the Kubernetes API is away: {one_line(problem)}") from problem
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _once(
        self, verb: str, place: str, query: Sequence[tuple[str, str]], body: Object | None
    ) -> Object:
        """One attempt. The answer stays plain: the client's models would drop newer fields."""
        types = {"Accept": "application/json", "Content-Type": "application/json"}
        try:
            answer = self._client.call_api(
                place, verb, query_params=list(query), header_params=types, body=body,
                auth_settings=["BearerToken"], _preload_content=False, _request_timeout=_TIMEOUT,
            )  # fmt: skip
        except AttributeError as error:  # the client, about to report a failed TLS handshake
            raise OSError("no TLS connection to it can be made") from error
        plain: Object = json.loads(answer.data)
        return plain


class Exec:
    """A program started in a pod: its input, its output and its end over one WebSocket.

    The client's own reader polls the raw socket, and so misses frames that TLS has already
    decrypted; this one asks TLS first.
    """

    def __init__(self, api: Api, pod: str, argv: list[str]) -> None:
        """Start it.

        Raises:
            ExecLost: if that fails; the program has then got no input.
            SandboxUnavailable: if the API does not allow it.
        """
        place = f"/api/v1/namespaces/{api.namespace}/pods/{pod}/exec"
        asked = [("container", CONTAINER), *((name, "true") for name in ("stdin", "stdout"))]
        asked += [("command", word) for word in argv]
        url = ws_client.get_websocket_url(api.configuration.host + place, asked)
        given = api.configuration.auth_settings().values()
        headers = {auth["key"]: auth["value"] for auth in given if auth["in"] == "header"}
        try:
            self._socket = ws_client.create_websocket(api.configuration, url, headers)
        except websocket.WebSocketBadStatusException as error:
            if error.status_code in (401, 403):
                raise SandboxUnavailable(
                    f"the Kubernetes API refuses exec in pods of {api.namespace!r}: {_GRANT}"
                ) from error
            raise ExecLost(one_line(error)) from error
        except (websocket.WebSocketException, OSError) as error:
            raise ExecLost(one_line(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._socket.shutdown()

    def send(self, data: bytes) -> None:
        """Give it input. Raises `ExecLost`."""
        try:
            for start in range(0, len(data), _FRAME):
                self._socket.send_binary(b"\0" + data[start : start + _FRAME])
        except (websocket.WebSocketException, OSError) as error:
            raise ExecLost(one_line(error)) from error

    def receive(self, timeout_s: float) -> tuple[int, bytes] | None:
        """The next bytes of STDOUT or STATUS; None when none came in time. Raises `ExecLost`."""
        deadline = time.monotonic() + timeout_s
        try:
            while self._readable(deadline - time.monotonic()):
                opcode, frame = self._socket.recv_data_frame(True)
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    raise ExecLost("the connection to the pod was closed")
                if opcode == websocket.ABNF.OPCODE_BINARY and len(frame.data) > 1:
                    return frame.data[0], bytes(frame.data[1:])
        except (websocket.WebSocketException, OSError) as error:
            raise ExecLost(f"the connection to the pod broke: {one_line(error)}") from error
        return None

    def _readable(self, timeout_s: float) -> bool:
        raw = self._socket.sock
        if getattr(raw, "pending", int)():
            return True
        poll = select.poll()
        poll.register(raw, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))


def _when(event: Object) -> str:
    return str(event.get("lastTimestamp") or event["metadata"].get("creationTimestamp") or "")


def one_line(error: Exception) -> str:
    """What an error says, shortened."""
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split())[:300]


def _configuration() -> Any:
    found = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=found)
        else:
            config.load_kube_config(client_configuration=found)
    except config.ConfigException as error:
        raise SandboxUnavailable(
            f"there is no access to a Kubernetes API ({one_line(error)}): give the stage's pod "
            "a service account token, or set KUBECONFIG"
        ) from error
    return found


def _refusal(error: ApiException) -> SandboxUnavailable:
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        said = error.reason
    if "exceeded quota" in said:
        return Full(
            f"{said}: raise the ResourceQuota of its namespace, or run fewer climbs at once"
        )
    fix = f"; {_GRANT}" if "cannot" in said else ""
    return SandboxUnavailable(f"the Kubernetes API refuses: {said}{fix}")
