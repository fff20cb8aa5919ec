"""What the cluster remembers: objects, the history that watches read, and events."""

from __future__ import annotations

import copy
import re
import secrets
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from fake_cluster.kinds import KINDS, Object, Refusal

Key = tuple[str, str, str]
FOREGROUND = "foregroundDeletion"


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Change:
    """One entry of the history: ADDED, MODIFIED or DELETED, and the object after it."""

    version: int
    how: str
    made: Object


class Store:
    """Objects by kind, namespace and name. Callers hold `lock` over a read and its write."""

    def __init__(self) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.version = 1
        self.expired = 0
        self.history: list[Change] = []
        self.created: list[tuple[str, str]] = []
        self._objects: dict[Key, Object] = {}

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """A copy of the object, or None."""
        with self.lock:
            return copy.deepcopy(self._objects.get((kind, namespace, name)))

    def list(self, kind: str, namespace: str = "", wanted: Selector | None = None) -> list[Object]:
        """Copies of the objects of a kind, oldest first; no namespace means all."""
        with self.lock:
            found = [made for key, made in self._objects.items() if key[0] == kind]
            here = [made for made in found if namespace in ("", made["metadata"]["namespace"])]
            return [copy.deepcopy(made) for made in here if wanted is None or wanted(made)]

    def everything(self) -> list[Object]:
        """Copies of all objects, oldest first."""
        with self.lock:
            return copy.deepcopy(list(self._objects.values()))

    def owned(self, owner: Object, kind: str) -> list[Object]:
        """The objects of a kind that name `owner` in their ownerReferences."""
        uid = owner["metadata"]["uid"]
        return self.list(kind, owner["metadata"]["namespace"], lambda made: uid in owners(made))

    def create(self, made: Object) -> Object:
        """Add an object, complete but for uid, version and time.

        Raises:
            Refusal: 409 where the name is taken.
        """
        meta = made["metadata"]
        if "name" not in meta:
            meta["name"] = f"{meta['generateName']}{secrets.token_hex(3)[:5]}"
        with self.lock:
            if _key(made) in self._objects:
                text = f"{KINDS[made['kind']].called(meta['name'])} already exists"
                raise Refusal(409, text, "AlreadyExists")
            meta.update(uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1)
            self.created.append((made["kind"], meta["name"]))
            return self._record("ADDED", made)

    def save(self, made: Object) -> Object:
        """Replace an object; nothing happens where it is unchanged or gone."""
        with self.lock:
            old = self._objects.get(_key(made))
            if old is None or old == made or old["metadata"]["uid"] != made["metadata"]["uid"]:
                return made
            if old.get("spec") != made.get("spec"):
                made["metadata"]["generation"] += 1
            return self._record("MODIFIED", made)

    def drop(self, made: Object) -> None:
        """Take an object out."""
        with self.lock:
            if _key(made) in self._objects:
                self._record("DELETED", made)
                del self._objects[_key(made)]

    def event(self, about: Object, kind: str, reason: str, message: str, source: str) -> None:
        """Record an event, or count it once more."""
        meta = about["metadata"]
        reference = {
            "apiVersion": about["apiVersion"], "kind": about["kind"], "name": meta["name"],
            "namespace": meta["namespace"], "uid": meta["uid"],
        }  # fmt: skip
        for old in self.list("Event", meta["namespace"]):
            same = (old["involvedObject"], old["reason"], old["message"])
            if same == (reference, reason, message):
                self.save({**old, "count": old["count"] + 1, _last(source): now()})
                return
        named = {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]}
        self.create({
            "apiVersion": "v1", "kind": "Event", "metadata": named, "involvedObject": reference,
            "type": kind, "reason": reason, "message": message, "count": 1,
            "lastTimestamp": None, _last(source): now(), "source": {"component": source},
        })  # fmt: skip

    def expire(self) -> None:
        """Forget the history: watches from before it are too old."""
        with self.lock:
            self.version += 1
            self.expired = self.version
            self.history.clear()
            self.lock.notify_all()

    def _record(self, how: str, made: Object) -> Object:
        self.version += 1
        made["metadata"]["resourceVersion"] = str(self.version)
        self._objects[_key(made)] = kept = copy.deepcopy(made)
        self.history.append(Change(self.version, how, kept))
        self.lock.notify_all()
        return made


def _last(source: str) -> str:
    """The field with an event's time; some write through the newer API, which has another one."""
    newer = source in ("default-scheduler", "jobset-controller")
    return "eventTime" if newer else "lastTimestamp"


@contextmanager
def editing(store: Store, made: Object) -> Iterator[Object]:
    """The object's present state to change in place; saved at the end."""
    meta = made["metadata"]
    with store.lock:
        found = store.get(made["kind"], meta["namespace"], meta["name"]) or made
        yield found
        store.save(found)


def delete(store: Store, made: Object, policy: str, grace: float | None = None) -> None:
    """Begin or carry out a deletion by propagation policy; pods end first, then go."""
    with store.lock:
        if policy == "Orphan":
            for child in (c for kind in KINDS for c in store.owned(made, kind)):
                del child["metadata"]["ownerReferences"]
                store.save(child)
        meta = made["metadata"]
        waits = made["kind"] == "Pod" or meta.get("finalizers") or policy == "Foreground"
        if not waits:
            store.drop(made)
        elif "deletionTimestamp" not in meta:
            default = made.get("spec", {}).get("terminationGracePeriodSeconds", 30)
            seconds = default if grace is None else grace
            meta.update(deletionTimestamp=now(), deletionGracePeriodSeconds=seconds)
            if policy == "Foreground" and made["kind"] != "Pod":
                meta.setdefault("finalizers", []).append(FOREGROUND)
            store.save(made)


def collect(store: Store) -> None:
    """The garbage collector: children of what is gone or going, then what waited for them."""
    everything = store.everything()
    living = {made["metadata"]["uid"]: made for made in everything}
    for made in everything:
        for uid in owners(made):
            if uid not in living:
                delete(store, made, "Background")
            elif FOREGROUND in living[uid]["metadata"].get("finalizers", []):
                delete(store, made, "Foreground")
        meta = made["metadata"]
        if FOREGROUND in meta.get("finalizers", []) and not any(
            meta["uid"] in owners(other) for other in everything
        ):
            meta["finalizers"].remove(FOREGROUND)
            store.save(made)
        ended = made["kind"] != "Pod" or made["status"]["phase"] in ("Succeeded", "Failed")
        if "deletionTimestamp" in meta and not meta.get("finalizers") and ended:
            store.drop(made)


def owners(made: Object) -> list[str]:
    """The uids of an object's owners."""
    return [reference["uid"] for reference in made["metadata"].get("ownerReferences", [])]


def reference(owner: Object) -> Object:
    """An ownerReference to `owner`, its controller."""
    meta = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"],
        "uid": meta["uid"], "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip


def condition(made: Object, kind: str) -> Object | None:
    """The condition of that type while its status is "True"."""
    found = made.get("status", {}).get("conditions", [])
    return next((c for c in found if c["type"] == kind and c["status"] == "True"), None)


def set_condition(made: Object, kind: str, status: bool, reason: str, message: str = "") -> None:
    """Set a condition; its time changes with its status."""
    wanted = {"type": kind, "status": str(status), "reason": reason, "message": message}
    conditions = made.setdefault("status", {}).setdefault("conditions", [])
    old = next((c for c in conditions if c["type"] == kind), None)
    if old is None:
        conditions.append({**wanted, "lastTransitionTime": now()})
        return
    if old["status"] != wanted["status"]:
        old["lastTransitionTime"] = now()
    old.update(wanted)


Selector = Callable[[Object], bool]
_TERM = re.compile(
    r"(!?)([\w./-]+)\s*(?:(==?|!=)\s*([\w./-]*)|(in|notin)\s*\(([^)]*)\))?\s*(?:,|$)"
)


def selector(labels: str = "", fields: str = "") -> Selector:
    """A predicate from a labelSelector and a fieldSelector.

    Raises:
        Refusal: 400 where the label selector cannot be read.
    """
    terms = list(_TERM.finditer(labels))
    if "".join(term[0] for term in terms).replace(" ", "") != labels.replace(" ", ""):
        raise Refusal(400, f"unable to parse requirement: {labels}")
    pairs = [re.split("==?|!=", part) for part in fields.split(",") if part]

    def holds(made: Object) -> bool:
        present = made["metadata"].get("labels", {})
        if not all(_holds(term, present) for term in terms):
            return False
        return all(
            (_field(made, path) == value) != (f"{path}!=" in fields) for path, value in pairs
        )

    return holds


def _holds(term: re.Match[str], labels: dict[str, str]) -> bool:
    negated, key, sign, value, word, values = term.groups()
    if sign:
        return (labels.get(key) == value) != (sign == "!=")
    if word:
        listed = labels.get(key) in [part.strip() for part in values.split(",")]
        return listed != (word == "notin")
    return (key in labels) != bool(negated)


def _field(made: Object, path: str) -> str:
    value: object = made
    for part in path.split("."):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return str(value)


def _key(made: Object) -> Key:
    return made["kind"], made["metadata"]["namespace"], made["metadata"]["name"]
