"""Stages as Jobs and JobSets of a cluster, which outlive whoever asked for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hillclimb.artifacts import ArtifactError
from hillclimb.launcher.base import Handle, Message, Outcome, handle_name
from hillclimb.launcher.kubernetes import explain
from hillclimb.launcher.kubernetes.answers import ApiAway, ApiRefused
from hillclimb.launcher.kubernetes.api import Api, configuration
from hillclimb.launcher.kubernetes.kinds import JOB, JOBSET, Object
from hillclimb.launcher.kubernetes.layout import cluster_of, folder, layout
from hillclimb.launcher.kubernetes.manifests import ATTEMPT, FINGERPRINT, stage_manifest
from hillclimb.launcher.kubernetes.observer import Observer, Seen, going, messages_from, note
from hillclimb.launcher.kubernetes.shared import SharedFolder, is_made
from hillclimb.recipe.compute import Compute
from hillclimb.stages.request import Request

if TYPE_CHECKING:
    from kubernetes.client import Configuration

_SLOWEST = 15.0
_CANCEL = 60.0


class KubernetesLauncher:
    """Makes Jobs and JobSets, and follows them; safe to share between threads.

    Args:
        compute: the recipe's section, with `kubernetes`.
        reached: how to reach the cluster; by default as `api.configuration` finds it.
        beat: seconds between two looks at one object.
        patience: seconds that a launch waits for an API or a store that is away.
        stuck_patience: seconds until pods that cannot start by themselves are given up.
    """

    def __init__(
        self,
        compute: Compute,
        reached: Configuration | None = None,
        beat: float = 1.0,
        patience: float = 900.0,
        stuck_patience: float = 300.0,
    ) -> None:
        self._compute, self._cluster = compute, cluster_of(compute)
        reach = configuration if reached is None else lambda: reached
        self._api = Api(self._cluster.namespace, reach)
        self._observer = Observer(self._api, self._cluster, stuck_patience)
        self._beat, self._patience = beat, patience
        self._seen: dict[str, Seen] = {}

    def submit(self, request: Request) -> Handle:
        """Make the stage's object, or attach to the one that is there, of whichever kind.

        What has failed, or is complete without its artifact, is deleted and made anew.

        Raises:
            ApiRefused: with the fix, where the cluster does not want the object.
            RuntimeError: if the API or a store was away for longer than patience lasts.
        """
        handle, attempt = self._handle(request.name, request.fingerprint), 1
        kind = JOB if layout(request, self._compute).single else JOBSET
        seen = Seen()

        def attach_or_make() -> bool:
            nonlocal attempt
            found, there = self._observer.object(handle.name, seen)
            if there is None:
                written = SharedFolder(handle.where).begin(request)
                manifest = stage_manifest(request, self._compute, attempt, written)
                seen.kind, there = kind, self._api.apply(kind, manifest)
            elif going(there) or _over(there, request):
                attempt = int(note(there, ATTEMPT)) + 1
                if not going(there):
                    self._api.delete(found, handle.name, there["metadata"]["uid"])
                return False
            seen.start = messages_from(there)
            return True

        self._patiently(attach_or_make, f"launch {handle.name}", self._patience)
        self._seen[handle.name] = seen
        return handle

    def find(self, name: str, fingerprint: str) -> Handle | None:
        """The handle of a stage that was asked for on this cluster; None for others."""
        handle = self._handle(name, fingerprint)
        known = handle.name in self._seen or SharedFolder(handle.where).asked
        return handle if known else None

    def poll(self, handle: Handle) -> Outcome:
        """Say where the stage is; what was seen last, with the reason, while nobody can say.

        The end of a launch is final: only `submit` begins another.
        """
        seen = self._seen_of(handle)
        if seen.outcome.ended or time.monotonic() < seen.next_look:
            return seen.outcome
        pause = self._beat
        try:
            seen.outcome, seen.misses = self._observer.look(handle, seen), 0
        except (ApiAway, ApiRefused, ArtifactError, OSError) as error:
            seen.misses += 1
            pause = min(_SLOWEST, self._beat * 2 ** min(seen.misses, 10))
            last = seen.outcome
            seen.outcome = Outcome(last.state, last.code, f"nobody can look at it now: {error}")
        seen.next_look = time.monotonic() + pause
        return seen.outcome

    def messages(self, handle: Handle, offset: int) -> tuple[list[Message], int]:
        """The messages of this launch's attempts after `offset` bytes, and the offset to go on
        from. Those of launches before it are skipped."""
        seen = self._seen_of(handle)
        found, offset = SharedFolder(handle.where).messages(max(offset, seen.start))
        seen.opened |= {place for place, message in found if message["method"] == "opened"}
        if any(message["method"] == "closed" for _, message in found):
            seen.next_look = 0.0
        return [message for _, message in found], offset

    def cancel(self, handle: Handle) -> None:
        """Delete the object in the foreground: it is gone when its pods are.

        Raises:
            RuntimeError: if the API is away for a minute; says how to delete it by hand.
        """
        seen = self._seen_of(handle)
        seen.cancelled = True
        SharedFolder(handle.where).cancel()

        def delete() -> bool:
            kind, there = self._observer.object(handle.name, seen)
            if there is not None and not going(there):
                self._api.delete(kind, handle.name, there["metadata"]["uid"])
            return True

        by_hand = f"kubectl --namespace {self._cluster.namespace} delete job,jobset {handle.name}"
        self._patiently(delete, f"delete {handle.name} (by hand: {by_hand})", _CANCEL)
        seen.next_look = 0.0

    def _handle(self, name: str, fingerprint: str) -> Handle:
        log = (
            f"kubectl --namespace {self._cluster.namespace} logs --all-containers --prefix "
            f"--tail -1 --selector {FINGERPRINT}={fingerprint[:16]}"
        )
        return Handle(handle_name(name, fingerprint), folder(name, fingerprint, self._cluster), log)

    def _seen_of(self, handle: Handle) -> Seen:
        return self._seen.setdefault(handle.name, Seen())

    def _patiently(self, do: Callable[[], bool], what: str, patience: float) -> None:
        """Try until it is done; an API or a store that is away may be back the next time."""
        until, pause, why = time.monotonic() + patience, self._beat / 4, ""
        while True:
            try:
                if do():
                    return
                why = "the one before it is still being deleted"
            except ArtifactError as error:
                raise RuntimeError(f"could not {what}: {error}") from error
            except (ApiAway, OSError) as error:
                why = str(error)
            if time.monotonic() > until:
                raise RuntimeError(f"could not {what} in {patience:.0f} s: {why}")
            time.sleep(pause)
            pause = min(_SLOWEST, pause * 2)


def _over(made: Object, request: Request) -> bool:
    """Whether the object has ended in a way that asks for another one."""
    if explain.condition(made, "Failed"):
        return True
    return bool(explain.condition(made, "Complete", "Completed")) and not is_made(request)
