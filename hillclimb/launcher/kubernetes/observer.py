"""Where a stage is, from its object, pods, events and shared folder."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

from hillclimb.launcher.base import REFUSED, Handle, Outcome, State
from hillclimb.launcher.kubernetes import explain
from hillclimb.launcher.kubernetes.answers import ApiAway, ApiRefused
from hillclimb.launcher.kubernetes.api import Api
from hillclimb.launcher.kubernetes.kinds import JOB, JOBSET, LAUNCHED, Kind, Object
from hillclimb.launcher.kubernetes.manifests import FINGERPRINT, MESSAGES_FROM
from hillclimb.launcher.kubernetes.shared import SharedFolder
from hillclimb.launcher.kubernetes.waiting import Waiting, waiting
from hillclimb.recipe.kubernetes import Kubernetes

_LOG_LINES = 10


@dataclass
class Seen:
    """What is known of a handle between two looks.

    `start` is where the launch's messages begin, in bytes; `opened` are the places at which an
    attempt said that it has begun.
    """

    kind: Kind | None = None
    start: int = 0
    outcome: Outcome = field(default_factory=lambda: Outcome(State.QUEUED))
    next_look: float = 0.0
    misses: int = 0
    stuck_since: float | None = None
    opened: set[int] = field(default_factory=set)
    cancelled: bool = False


class Observer:
    """Looks at objects. It deletes those that cannot go on, and says why.

    Args:
        api: of the cluster.
        cluster: the recipe's section.
        stuck_patience: seconds until pods that cannot start by themselves are given up.
    """

    def __init__(self, api: Api, cluster: Kubernetes, stuck_patience: float) -> None:
        self._api, self._cluster, self._stuck_patience = api, cluster, stuck_patience

    def object(self, name: str, seen: Seen) -> tuple[Kind, Object | None]:
        """The stage's object, of whichever kind it is: a recipe may ask for another one by now."""
        for kind in (seen.kind,) if seen.kind else LAUNCHED:
            if (found := self._api.get(kind, name, seen.kind is not None)) is not None:
                seen.kind = kind
                return kind, found
        return seen.kind or JOB, None

    def look(self, handle: Handle, seen: Seen) -> Outcome:
        """Say where the stage is.

        Raises:
            ApiAway, ApiRefused, OSError, ArtifactError: where nobody can say now.
        """
        kind, made = self.object(handle.name, seen)
        if made is None:
            return _gone(handle, seen.cancelled)
        if explain.condition(made, "Complete", "Completed"):
            return Outcome(State.DONE, 0)
        if going(made) and (seen.cancelled or SharedFolder(handle.where).cancelled):
            return Outcome(State.RUNNING, None, "it is being deleted")
        if explain.condition(made, "Failed"):
            return self._failed(handle, made)
        if going(made):
            return Outcome(State.RUNNING, None, "it is being deleted")
        return self._unfinished(handle, seen, kind, made)

    def _unfinished(self, handle: Handle, seen: Seen, kind: Kind, made: Object) -> Outcome:
        taken = _preemptions(made, seen.opened)
        if taken > self._cluster.max_preemptions:
            self._api.delete(kind, handle.name, made["metadata"]["uid"])
            sentence = (
                f"{handle.name} was taken away {taken} times, more than "
                "compute.kubernetes.max_preemptions: give it a priority_class, or raise that"
            )
            return Outcome(State.FAILED, None, sentence)
        learner, servers = explain.ready(made)
        found = None if learner and servers else self._waiting(made)
        if found is None or not found.stuck:
            seen.stuck_since = None
        elif self._given_up(handle, made, found, seen):
            self._api.delete(kind, handle.name, made["metadata"]["uid"])
            return Outcome(State.FAILED, REFUSED, f"{handle.name} cannot start: {found.sentence}")
        state = State.RUNNING if learner or found is None else State.QUEUED
        return Outcome(state, None, found.sentence if found else "")

    def _given_up(self, handle: Handle, made: Object, stuck: Waiting, seen: Seen) -> bool:
        """Room and quota are waited for without end, what somebody has to mend for a while; a
        launch that once ran waits for that, too: there is something to lose."""
        now = time.monotonic()
        seen.stuck_since = seen.stuck_since or now
        if not stuck.hopeless and now - seen.stuck_since <= self._stuck_patience:
            return False
        return not SharedFolder(handle.where).begun(messages_from(made))

    def _waiting(self, made: Object) -> Waiting | None:
        if made["spec"].get("suspend"):
            return waiting(made, [], [], self._api.workload(made))
        pods = self._pods(made)
        pending = [pod for pod in pods if pod.get("status", {}).get("phase") == "Pending"]
        about = [*pending, made][0]
        if not pods and made["kind"] == JOBSET.name:
            chosen = f"jobset.sigs.k8s.io/jobset-name={made['metadata']['name']}"
            about = [*self._api.list(JOB, chosen), made][0]
        return waiting(made, pods, self._api.events(about), None)

    def _failed(self, handle: Handle, made: Object) -> Outcome:
        """The sentence; then the last lines of the logs and the cluster's warnings, quoted."""
        told = SharedFolder(handle.where).told(messages_from(made))
        pods = self._pods(made)
        failure = explain.failure(made, pods, told)
        lines = [told if failure.sentence == told else f"{handle.name}: {failure.sentence}"]
        for pod in explain.culprits(made, pods):
            lines += self._quoted(pod)
        return Outcome(State.FAILED, failure.code, "\n".join(lines))

    def _quoted(self, pod: Object) -> list[str]:
        """What a pod left, as far as it can be read."""
        log, events = "", []
        with contextlib.suppress(ApiAway):
            log = self._api.log(pod, _LOG_LINES)
        with contextlib.suppress(ApiAway, ApiRefused):
            events = self._api.events(pod)
        return explain.quoted(pod, log, events)

    def _pods(self, made: Object) -> list[Object]:
        return self._api.pods(f"{FINGERPRINT}={made['metadata']['labels'][FINGERPRINT]}")


def going(made: Object) -> bool:
    """Whether the object is being deleted."""
    return "deletionTimestamp" in made["metadata"]


def note(made: Object, key: str) -> str:
    """An annotation; "0" where somebody has removed it."""
    return str((made["metadata"].get("annotations") or {}).get(key, "0"))


def messages_from(made: Object) -> int:
    """Bytes that earlier launches had left in the message file."""
    return int(note(made, MESSAGES_FROM))


def _gone(handle: Handle, cancelled: bool) -> Outcome:
    """The object is not there: cancelled, or deleted by somebody, perhaps after its end."""
    shared = SharedFolder(handle.where)
    if cancelled or shared.cancelled:
        return Outcome(State.STOPPED, None, f"{handle.name} was cancelled")
    if shared.made():
        return Outcome(State.DONE, 0)
    sentence = (
        f"{handle.name} is no longer on the cluster, somebody deleted it: ask again, and it goes "
        "on from its last checkpoint"
    )
    return Outcome(State.LOST, None, sentence)


def _preemptions(made: Object, opened: set[int]) -> int:
    """How often the cluster took the stage away and began it anew; failures are not counted.

    A JobSet counts its restarts, but not when a queue suspends it, and a Job forgets the pods that
    it ignores: each attempt that began has said so in the messages.
    """
    status = made.get("status") or {}
    begun = sum(place >= messages_from(made) for place in opened)
    if made["kind"] == JOBSET.name:
        begun = max(begun, int(status.get("restarts", 0)) + 1)
        return begun - 1 - int(status.get("restartsCountTowardsMax", 0))
    return max(0, begun - 1 - int(status.get("failed", 0)))
