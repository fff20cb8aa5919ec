"""What the API does for each verb, over the store."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from fake_cluster.kinds import KINDS, Kind, Object, Refusal, admit, keep_immutable
from fake_cluster.sandboxed import admit_runtime
from fake_cluster.store import Change, Store, delete, selector

APPLY = "application/apply-patch+yaml"
MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"


@dataclass(frozen=True)
class Call:
    """One request: what it names, its query, its body and the body's type."""

    kind: Kind
    namespace: str
    name: str
    query: dict[str, str]
    body: bytes
    how: str

    def flag(self, name: str) -> bool:
        """Whether a query parameter says yes."""
        return self.query.get(name, "").lower() in ("true", "1")

    def wanted(self) -> Callable[[Object], bool]:
        """The predicate of the call's selectors."""
        labels, fields = self.query.get("labelSelector", ""), self.query.get("fieldSelector", "")
        return selector(labels, fields)

    def object(self) -> Object:
        """The object in the body.

        Raises:
            Refusal: 400 where it is not what the path names.
        """
        given = yaml.safe_load(self.body)
        if not isinstance(given, dict):
            raise Refusal(400, "the body of the request must be an object")
        meta, kind = given.get("metadata", {}), self.kind
        stated = given.get("apiVersion", kind.api_version), given.get("kind", kind.name)
        if stated != (kind.api_version, kind.name):
            raise Refusal(400, f"the body is {stated}, the path says {kind.name}")
        if meta.get("namespace", self.namespace) != self.namespace:
            raise Refusal(400, "the namespace of the object does not match that of the URL")
        if self.name and meta.get("name", self.name) != self.name:
            raise Refusal(400, "the name of the object does not match that of the URL")
        return {"apiVersion": kind.api_version, "kind": kind.name, **given}


class Verbs:
    """Carries requests out; every method gives a status and a body.

    Args:
        store: the cluster's objects.
        log: the output of a pod by name.
    """

    def __init__(self, store: Store, log: Callable[[str], str]) -> None:
        self._store = store
        self._log = log

    def get(self, call: Call) -> tuple[int, Object]:
        """One object."""
        found = self._store.get(call.kind.name, call.namespace, call.name)
        if found is None:
            text = f"{call.kind.called(call.name)} not found"
            raise Refusal(404, text, name=call.name, kind=call.kind.plural)
        return 200, found

    def list(self, call: Call) -> tuple[int, Object]:
        """The objects that the selectors match, and the version that they have."""
        with self._store.lock:
            items = self._store.list(call.kind.name, call.namespace, call.wanted())
            meta = {"resourceVersion": str(self._store.version)}
        kind, version = f"{call.kind.name}List", call.kind.api_version
        return 200, {"kind": kind, "apiVersion": version, "metadata": meta, "items": items}

    def log(self, call: Call) -> tuple[int, str]:
        """A pod's output, or its last lines."""
        _, pod = self.get(call)
        state = pod["status"].get("containerStatuses", [{"state": {"waiting": {}}}])[0]["state"]
        if "waiting" in state:
            why, what = state["waiting"].get("reason", ""), pod["spec"]["containers"][0]["name"]
            raise Refusal(
                400, f'container "{what}" in pod "{call.name}" is waiting to start: {why}'
            )
        lines = self._log(call.name).splitlines(keepends=True)
        last = int(call.query.get("tailLines", len(lines)))
        return 200, "".join(lines[len(lines) - min(last, len(lines)) :])

    def create(self, call: Call) -> tuple[int, Object]:
        """A new object."""
        made = call.object()
        meta = made.setdefault("metadata", {})
        if "name" not in meta and "generateName" not in meta:
            raise Refusal(422, f"{call.kind.name} is invalid: metadata.name: Required value")
        name = meta.get("name") or f"{meta['generateName']}abcde"
        admit(call.kind, {**made, "metadata": {**meta, "name": name}})
        if call.kind.name == "Pod":
            admit_runtime(self._store, made)
        meta["namespace"] = call.namespace
        if call.how == APPLY:
            meta["managedFields"] = [{"manager": call.query["fieldManager"], "operation": "Apply"}]
        made["status"] = {"phase": "Pending"} if call.kind.name == "Pod" else {}
        return 201, self._store.create(made)

    def patch(self, call: Call) -> tuple[int, Object]:
        """Server-side apply, merge patch or strategic merge patch."""
        builtin = "x-k8s.io" not in call.kind.api_version
        if call.how not in (APPLY, MERGE) and not (builtin and call.how == STRATEGIC):
            raise Refusal(415, f"the body of the request was in an unknown format - {call.how}")
        if call.how == APPLY and "fieldManager" not in call.query:
            raise Refusal(422, 'PatchOptions "" is invalid: fieldManager: Required value')
        with self._store.lock:
            old = self._store.get(call.kind.name, call.namespace, call.name)
            if old is None and call.how == APPLY:
                return self.create(call)
            _, old = self.get(call)
            new = merged(old, call.object(), call.how != MERGE)
            _refuse_conflicts(call, old, new)
            keep_immutable(call.kind, old, new)
            return 200, self._store.save(new)

    def delete(self, call: Call) -> tuple[int, Object]:
        """Begin a deletion; a Job's pods stay where no propagation policy is given."""
        options = {**call.query, **(json.loads(call.body or "{}") or {})}
        default = "Orphan" if call.kind.name == "Job" else "Background"
        grace = options.get("gracePeriodSeconds")
        with self._store.lock:
            _, found = self.get(call)
            uid = (options.get("preconditions") or {}).get("uid")
            if uid not in (None, found["metadata"]["uid"]):
                raise Refusal(409, f"Precondition failed: UID in precondition: {uid}")
            policy = options.get("propagationPolicy", default)
            delete(self._store, found, policy, None if grace is None else float(grace))
            done = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
            return 200, self._store.get(call.kind.name, call.namespace, call.name) or done

    def watch(self, call: Call, gone: threading.Event) -> Iterator[tuple[str, Object]]:
        """What changes after the call's resourceVersion; ends with ERROR 410 where it expired."""
        wanted, version = call.wanted(), int(call.query.get("resourceVersion") or 0)
        until = time.monotonic() + float(call.query.get("timeoutSeconds") or 1800)
        if version == 0:
            with self._store.lock:
                version = self._store.version
                first = self._store.list(call.kind.name, call.namespace, wanted)
            yield from (("ADDED", made) for made in first)
        while time.monotonic() < until and not gone.is_set():
            if version < self._store.expired:
                text = f"too old resource version: {version} ({self._store.expired})"
                yield "ERROR", Refusal(410, text).body()
                return
            for change in self._news(version, min(until, time.monotonic() + 0.5)):
                version, meta = change.version, change.made["metadata"]
                here = call.namespace in ("", meta["namespace"])
                if here and change.made["kind"] == call.kind.name and wanted(change.made):
                    yield change.how, change.made

    def _news(self, version: int, until: float) -> list[Change]:
        with self._store.lock:
            if self._store.version == version:
                self._store.lock.wait(max(until - time.monotonic(), 0))
            return [change for change in self._store.history if change.version > version]


def _refuse_conflicts(call: Call, old: Object, new: Object) -> None:
    if new["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
        text = "the object has been modified; please apply your changes to the latest version"
        raise Refusal(
            409, f"Operation cannot be fulfilled on {call.kind.called(call.name)}: {text}"
        )
    if call.how != APPLY or call.flag("force"):
        return
    others = old["metadata"].get("managedFields", [{"manager": call.query["fieldManager"]}])
    suspended = old.get("spec", {}).get("suspend") != new.get("spec", {}).get("suspend")
    mine = call.query["fieldManager"] == others[0]["manager"]
    if fields := [".spec.suspend"] if mine and suspended else [] if mine else _changed(old, new):
        text = f"Apply failed with {len(fields)} conflict: conflict with another manager: "
        raise Refusal(409, text + ", ".join(fields))


def _changed(old: Any, new: Any, path: str = "") -> list[str]:
    """The fields that both have and that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        both = [key for key in old if key in new and key != "managedFields"]
        return [found for key in both for found in _changed(old[key], new[key], f"{path}.{key}")]
    if _named(old) and _named(new):
        before, after = ({item["name"]: item for item in items} for items in (old, new))
        return _changed(before, after, path)
    return [] if old == new else [path]


def merged(old: Object, patch: Object, by_name: bool) -> Object:
    """`old` with `patch` over it; lists of named things are merged by name where asked."""
    made = dict(old)
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, dict):
            made[key] = merged(made.get(key) or {}, value, by_name)
        elif by_name and _named(value) and _named(made.get(key)):
            items = {item["name"]: item for item in made[key]}
            for item in value:
                items[item["name"]] = merged(items.get(item["name"], {}), item, True)
            made[key] = list(items.values())
        else:
            made[key] = value
    return made


def _named(items: Any) -> bool:
    if not isinstance(items, list) or not all(isinstance(i, dict) and "name" in i for i in items):
        return False
    return 0 < len(items) == len({item["name"] for item in items})


def route(path: str) -> tuple[Kind, str, str, str]:
    """The kind, the namespace or "", the name or "", the subresource or "".

    Raises:
        Refusal: 404 where nothing is served.
    """
    for kind in KINDS.values():
        if not (match := kind.path.fullmatch(path)):
            continue
        namespace, name, part = (word or "" for word in match.groups())
        return kind, namespace, name, part
    raise Refusal(404, f"the server could not find the requested resource: {path}")
