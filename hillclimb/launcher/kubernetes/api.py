"""The few requests that the launcher makes, through the official client; objects are plain dicts.

The client is asked for bytes: its models would drop the fields of a server newer than itself.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from hillclimb.launcher.kubernetes.answers import (
    Absent,
    ApiAway,
    ApiRefused,
    Conflict,
    Invalid,
    Unknown,
    meaning,
    parsed,
)
from hillclimb.launcher.kubernetes.kinds import (
    EVENT,
    JOB,
    JOBSET,
    LAUNCHED,
    POD,
    WORKLOADS,
    Kind,
    Object,
    Objects,
)
from hillclimb.launcher.kubernetes.waiting import OWN

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration

__all__ = [
    "JOB", "JOBSET", "LAUNCHED", "Api", "ApiAway", "ApiRefused", "Kind", "Object", "configuration",
]  # fmt: skip
_APPLY = "application/apply-patch+yaml"
_TIMEOUT = (5.0, 20.0)
Query = list[tuple[str, str]]


def configuration() -> Configuration:
    """How to reach the cluster: as a pod of it, else by KUBECONFIG or ~/.kube/config.

    Raises:
        ApiRefused: where neither is there.
    """
    from kubernetes import client, config

    made = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=made)
        else:
            config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=made)
    except config.ConfigException as error:
        raise ApiRefused(
            f"no cluster is configured ({error}): run in a pod, or set KUBECONFIG to a file"
        ) from error
    return made


class Api:
    """Requests in one namespace; safe to share between threads.

    Every method raises `ApiAway` or `ApiRefused`. `reach` is called again where the API no longer
    knows who asks: credentials may have been renewed since.
    """

    def __init__(self, namespace: str, reach: Callable[[], Configuration] = configuration) -> None:
        self._namespace = namespace
        self._reach = reach
        self._made: ApiClient | None = None

    def get(self, kind: Kind, name: str, seen: bool = False) -> Object | None:
        """The object, or None. One that was `seen` before is away, not gone, while its kind is not
        served at all: so does an API that is only just starting."""
        try:
            return parsed(self._send("GET", self._path(kind, name)))
        except Absent as absent:
            if seen and not absent.served:
                raise ApiAway(f"the cluster's API serves no {kind.plural} now") from absent
            return None

    def apply(self, kind: Kind, manifest: Object) -> Object:
        """Make the object by server-side apply; whoever was first, the one that is there.

        Every call is a field manager of its own, so that the second of two conflicts with what is
        there instead of changing it.
        """
        name = manifest["metadata"]["name"]
        manager = f"hillclimb-{uuid.uuid4().hex[:12]}"
        query = [("fieldManager", manager), ("fieldValidation", "Strict")]
        try:
            return parsed(self._send("PATCH", self._path(kind, name), query, manifest, _APPLY))
        except Absent as absent:
            raise ApiRefused(
                f"the cluster has no namespace {self._namespace} or knows no {kind.name} "
                f"({absent}): create the one, install the other"
            ) from None
        except (Conflict, Invalid) as refused:
            if (there := self.get(kind, name)) is not None:
                return there
            if isinstance(refused, Invalid):
                raise ApiRefused(f"the cluster refuses {kind.name} {name}: {refused}") from None
            raise ApiAway(f"{kind.name} {name} was neither made nor found") from None

    def delete(self, kind: Kind, name: str, uid: str) -> None:
        """Delete this very object in the foreground: it stays until its pods are gone."""
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        try:
            self._send("DELETE", self._path(kind, name), [], options)
        except Absent:
            return
        except (Conflict, Invalid) as error:
            raise ApiAway(f"{kind.name} {name} is another one by now") from error

    def list(self, kind: Kind, selector: str) -> Objects:
        """The objects that a label selector matches."""
        return self._list(kind, [("labelSelector", selector)])

    def pods(self, selector: str) -> Objects:
        """The pods that a label selector matches, oldest first."""
        found = self._list(POD, [("labelSelector", selector)])
        return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))

    def events(self, about: Object) -> Objects:
        """What the cluster said about an object, oldest first."""
        chosen = f"involvedObject.uid={about['metadata']['uid']}"
        return sorted(self._list(EVENT, [("fieldSelector", chosen)]), key=_when)

    def log(self, pod: Object, lines: int) -> str:
        """The last lines of a pod's log; nothing where there is none (any more)."""
        path = f"{self._path(POD, pod['metadata']['name'])}/log"
        names = [container["name"] for container in pod["spec"]["containers"]]
        own = [name for name in names if name in OWN] or names
        query = [("container", own[0]), ("tailLines", str(lines))]
        try:
            return self._send("GET", path, query).decode(errors="replace")
        except (Absent, Invalid, ApiRefused):
            return ""

    def workload(self, about: Object) -> Object | None:
        """Kueue's view of a queued object; None where there is none."""
        query = [("labelSelector", f"kueue.x-k8s.io/job-uid={about['metadata']['uid']}")]
        for kind in WORKLOADS:
            try:
                if found := self._list(kind, query):
                    return found[0]
            except ApiRefused:
                continue
        return None

    def _list(self, kind: Kind, query: Query) -> Objects:
        try:
            return list(parsed(self._send("GET", self._path(kind), query)).get("items") or [])
        except Absent:
            return []

    def _path(self, kind: Kind, name: str = "") -> str:
        root = "apis" if "/" in kind.version else "api"
        path = f"/{root}/{kind.version}/namespaces/{self._namespace}/{kind.plural}"
        return f"{path}/{name}" if name else path

    def _send(
        self,
        verb: str,
        path: str,
        query: Query | None = None,
        body: Object | None = None,
        content: str = "application/json",
    ) -> bytes:
        try:
            return self._once(verb, path, query, body, content)
        except Unknown:
            self._made = None
            return self._once(verb, path, query, body, content)

    def _once(
        self, verb: str, path: str, query: Query | None, body: Object | None, content: str
    ) -> bytes:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        client = self._client()
        try:
            response = client.call_api(
                path,
                verb,
                query_params=query or [],
                header_params={"Accept": "application/json, */*", "Content-Type": content},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            )
            return bytes(response.data)
        except ApiException as error:
            raise meaning(error, verb, path) from error
        except (HTTPError, OSError) as error:
            self._made = None  # a certificate may have been renewed, too
            name = type(error).__name__
            raise ApiAway(f"the cluster's API does not answer ({name})") from error

    def _client(self) -> ApiClient:
        """Made at the first use. It does not repeat requests by itself: who asks knows better."""
        if (made := self._made) is None:
            from kubernetes.client import ApiClient

            reached = self._reach()
            reached.retries = False
            self._made = made = ApiClient(reached)
        return made


def _when(event: Object) -> str:
    """The time of an event; those of the newer events API have another field than the older."""
    meta = event["metadata"]
    return str(
        event.get("lastTimestamp") or event.get("eventTime") or meta.get("creationTimestamp") or ""
    )
