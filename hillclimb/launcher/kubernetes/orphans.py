"""The stages of one orchestrator that are at work on a cluster, followed or not, and their end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hillclimb.launcher.followed import last_followed
from hillclimb.launcher.kubernetes import explain
from hillclimb.launcher.kubernetes.api import LAUNCHED, Api, Kind, Object
from hillclimb.launcher.kubernetes.manifests import (
    FINGERPRINT,
    MANAGED,
    ORCHESTRATOR,
    RUN_ID,
    STAGE,
)


@dataclass(frozen=True)
class Launched:
    """A Job or JobSet that has not ended.

    `run_id` is the run that launched it; others may have attached to it since. `created` is in
    seconds since the epoch.
    """

    kind: Kind
    name: str
    uid: str
    stage: str
    fingerprint: str
    run_id: str
    created: float

    def followed(self, runs: str) -> float:
        """When somebody waited for it last, in seconds since the epoch.

        Args:
            runs: the folder of all requests and messages.

        Raises:
            OSError: while the folder's store is away.
        """
        where = f"{runs}/{self.stage}/{self.fingerprint[:16]}"
        return max(self.created, last_followed(where) or 0.0)


class Launches:
    """What one orchestrator has launched in a namespace.

    Every method raises `ApiAway` or `ApiRefused`.

    Args:
        namespace: where to look.
        orchestrator: whose stages; those of others are neither seen nor touched.
    """

    def __init__(self, namespace: str, orchestrator: str) -> None:
        self._api = Api(namespace)
        marks = {**MANAGED, ORCHESTRATOR: orchestrator}
        self._selector = ",".join(f"{key}={value}" for key, value in marks.items())

    def at_work(self) -> list[Launched]:
        """What runs or waits, by name. What has ended goes by its time to live."""
        found = [
            _launched(kind, made)
            for kind in LAUNCHED
            for made in self._api.list(kind, self._selector)
            if _at_work(made)
        ]
        return sorted(found, key=lambda launched: launched.name)

    def remove(self, launched: Launched) -> None:
        """Delete this very object in the foreground; its checkpoints stay."""
        self._api.delete(launched.kind, launched.name, launched.uid)


def _at_work(made: Object) -> bool:
    going = "deletionTimestamp" in made["metadata"]
    return not going and explain.condition(made, "Complete", "Completed", "Failed") is None


def _launched(kind: Kind, made: Object) -> Launched:
    meta = made["metadata"]
    labels, notes = meta["labels"], meta.get("annotations", {})
    created = datetime.fromisoformat(meta["creationTimestamp"]).timestamp()
    return Launched(
        kind,
        meta["name"],
        meta["uid"],
        notes.get(STAGE, ""),
        notes.get(FINGERPRINT, ""),
        labels.get(RUN_ID, ""),
        created,
    )
