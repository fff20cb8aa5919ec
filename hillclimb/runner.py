"""Making an experiment: what is missing, in the right order, as much at a time as fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hillclimb.artifacts import Store
from hillclimb.dagster_runs import RunResult, Runs
from hillclimb.experiments import Experiment, Plan
from hillclimb.launcher import Handle, Launcher
from hillclimb.recipe.graph import upstream
from hillclimb.resources.launching import cluster_launcher, local_launcher
from hillclimb.resources.tracking import sender
from hillclimb.self_distillation import decide, gate
from hillclimb.tracking import Status

_BEAT = 0.2
_BURY_EVERY = 20.0
_SETTLED = 5.0
_TRACKING_PATIENCE = 20.0


@dataclass(frozen=True)
class Event:
    """Something that a person may want to see.

    `started`, `skipped` (made before), `progress` (done, total, message), `metrics` (step,
    values), `note` (message), `made` (seconds) and `failed` (message) are about `stage`; a `note`
    without a stage is about the whole.
    """

    type: Literal["started", "skipped", "progress", "metrics", "note", "made", "failed"]
    stage: str
    message: str = ""
    done: float = 0.0
    total: float = 0.0
    step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Summary:
    """What a climb did. `blocked` stages wait for what failed, with the reason."""

    experiment: str
    made: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    cancelled: bool = False
    seconds: float = 0.0
    tracking: Status | None = None

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is made."""
        return not (self.failed or self.blocked or self.cancelled)


def climb(
    root: Path,
    experiment: Experiment,
    select: Sequence[str] | None = None,
    force: Iterable[str] = (),
    on_event: Callable[[Event], None] = lambda event: None,
) -> Summary:
    """Make everything of `experiment` (or `select` and what it is made from) that is missing.

    Stages whose artifact exists are not made again, except those in `force`, which are removed
    first. Ctrl-C ends the running stages; their checkpoints stay, and a new call goes on.

    Raises:
        RecipeError: if the experiment's recipe is wrong.
        NotInExperiment: if `select` or `force` names a stage that the recipe does not have.
    """
    begun = time.monotonic()
    plan = experiment.plan()
    for name in (*(select or ()), *force):
        plan.spec(name)
    experiment.save(root)
    store = Store(str(root.resolve()))
    _remove(store, plan, force)
    work = _Climb(root.resolve(), plan, store, on_event)
    work.run(upstream(plan.specs, select) if select else list(plan.specs))
    work.summary.tracking = sender(str(root.resolve())).finish(_TRACKING_PATIENCE)
    work.summary.seconds = time.monotonic() - begun
    return work.summary


def _remove(store: Store, plan: Plan, names: Iterable[str]) -> None:
    for name in names:
        artifact = store.find(name, plan.fingerprints[name])
        if artifact is not None:
            artifact.fs.rm(artifact.base, recursive=True)


@dataclass
class _Running:
    """A stage at work, how far its messages have been read, what it waits for and since when."""

    name: str
    began: float
    weight: int
    handle: Handle | None = None
    offset: int = 0
    seen: str = ""
    since: float = 0.0
    told: str = ""


class _Climb:
    """The state of one call."""

    def __init__(
        self, root: Path, plan: Plan, store: Store, on_event: Callable[[Event], None]
    ) -> None:
        self._plan, self._store, self._tell = plan, store, on_event
        cluster = cluster_launcher(plan.recipe.compute)
        self._launcher: Launcher = cluster or local_launcher(str(root))
        self._elsewhere = cluster is not None
        self._runs = Runs(root)
        self._slots = plan.recipe.compute.parallel_stages
        self._running: dict[Future[RunResult], _Running] = {}
        self._next_burial = time.monotonic() + _BURY_EVERY
        self._asked_again: list[str] = []
        self.summary = Summary(plan.experiment.name)

    def run(self, names: list[str]) -> None:
        """Make `names`, which hold all that they are made from."""
        self._runs.register(self._plan)
        waiting = self._skip_made(names)
        reach = _reach(self._plan, names)
        waiting.sort(key=lambda name: -reach[name])
        with ThreadPoolExecutor(max_workers=max(1, self._slots)) as pool:
            while waiting or self._running:
                try:
                    if self.summary.cancelled:
                        self._end_running()
                    self._start_ready(pool, waiting)
                    if not self._running:
                        break
                    self._attend()
                except KeyboardInterrupt:
                    self._cancel(waiting)
        for name in waiting:
            self.summary.blocked[name] = self._why_blocked(name)

    def _skip_made(self, names: list[str]) -> list[str]:
        """Leave out what is made; tell Dagster about what was made for another experiment."""
        made = self._plan.made(self._store)
        here = [name for name in names if name in made]
        known = [n for n in here if self._known(n)]
        unknown = [name for name in here if name not in known]
        if unknown:
            result = self._runs.make(self.summary.experiment, unknown)
            if not result.success:
                self._tell(
                    Event("note", "", f"an artifact did not pass its checks: {result.reason}")
                )
        accepted = set(known) | {name for name in unknown if self._known(name)}
        for name in here:
            if name in accepted:
                self.summary.skipped.append(name)
                self._tell(Event("skipped", name))
        return [name for name in names if name not in accepted]

    def _known(self, name: str) -> bool:
        version = self._runs.materialised(self.summary.experiment, name)
        return version == self._plan.fingerprints[name]

    def _start_ready(self, pool: ThreadPoolExecutor, waiting: list[str]) -> None:
        done = {*self.summary.skipped, *self.summary.made}
        for name in list(waiting):
            spec = self._plan.specs[name]
            weight = 1 if self._elsewhere else min(self._slots, max(1, spec.ranks))
            used = sum(work.weight for work in self._running.values())
            if used + weight > self._slots or not done.issuperset(spec.inputs.values()):
                continue
            if not self._may_open(name):
                continue
            waiting.remove(name)
            self._tell(Event("started", name))
            future = pool.submit(self._runs.make, self.summary.experiment, [name])
            self._running[future] = _Running(name, time.monotonic(), weight)

    def _may_open(self, name: str) -> bool:
        """Apply the self-distillation rule to students; everything else may begin."""
        climb_name = gate(name)
        if climb_name is None:
            return True
        decision = decide(self._plan, climb_name, self._stop_of(climb_name))
        if decision.opens:
            self._tell(Event("note", name, decision.reason))
        return decision.opens

    def _stop_of(self, name: str) -> dict[str, Any] | None:
        artifact = self._store.find(name, self._plan.fingerprints[name])
        return dict(artifact.json("stop.json")) if artifact else None

    def _attend(self) -> None:
        ended, _ = wait(self._running, timeout=_BEAT, return_when=FIRST_COMPLETED)
        if time.monotonic() > self._next_burial:  # another call may have died meanwhile
            self._runs.bury_the_dead()
            self._next_burial = time.monotonic() + _BURY_EVERY
        for work in self._running.values():
            self._listen(work)
        for future in ended:
            self._finish(self._running.pop(future), future)

    def _listen(self, work: _Running) -> None:
        handle = self._launcher.find(work.name, self._plan.fingerprints[work.name])
        if handle != work.handle:
            work.handle, work.offset = handle, 0
        if handle is None:
            return
        if self._elsewhere:
            self._watch(work, handle)
        messages, work.offset = self._launcher.messages(handle, work.offset)
        for message in messages:
            if message["method"] == "report_custom_message":
                self._pass_on(work.name, message["params"]["payload"])

    def _watch(self, work: _Running, handle: Handle) -> None:
        """Tell what keeps a stage on a cluster, once that has lasted a while, and its end."""
        outcome, now = self._launcher.poll(handle), time.monotonic()
        seen = f"{outcome.state.value}: {outcome.reason}" if outcome.reason else ""
        if seen != work.seen:
            work.seen, work.since = seen, now
        if seen != work.told and now - work.since > _SETTLED and not outcome.ended:
            work.told = seen
            self._tell(Event("note", work.name, seen or "it has a place"))

    def _pass_on(self, name: str, payload: dict[str, Any]) -> None:
        kind = payload["type"]
        if kind == "progress":
            event = Event(
                "progress", name, payload["note"], done=payload["done"], total=payload["total"]
            )
        elif kind == "metrics":
            event = Event("metrics", name, step=payload["step"], values=payload["values"])
        elif kind == "note":
            event = Event("note", name, payload["message"])
        else:
            return  # the error is told when the stage has ended
        self._tell(event)

    def _finish(self, work: _Running, future: Future[RunResult]) -> None:
        seconds = time.monotonic() - work.began
        try:
            result = future.result()
        except Exception as error:  # Dagster itself failed; the other branches go on
            result = RunResult("", False, False, f"{type(error).__name__}: {error}")
        if result.success:
            self.summary.made[work.name] = seconds
            self._tell(Event("made", work.name, seconds=seconds))
        elif result.cancelled:
            self.summary.cancelled = True
            self._tell(Event("failed", work.name, "stopped; a new call goes on from here"))
        else:
            self.summary.failed[work.name] = result.reason
            self._tell(Event("failed", work.name, result.reason))

    def _cancel(self, waiting: list[str]) -> None:
        """Begin to end what runs. Nothing new is started. Asked again, try again."""
        if self.summary.cancelled:
            self._asked_again = [work.name for work in self._running.values()]
        self.summary.cancelled = True
        waiting.clear()
        self._tell(Event("note", "", "stopping the running stages; a new call goes on from here"))

    def _end_running(self) -> None:
        """End the stages of runs that have begun; one that is being launched ends its own."""
        names, self._asked_again = [*self._asked_again, *self._runs.cancel()], []
        for name in names:
            handle = self._launcher.find(name, self._plan.fingerprints[name])
            try:
                if handle is not None:
                    self._launcher.cancel(handle)
            except RuntimeError as error:
                self._tell(Event("note", name, str(error)))

    def _why_blocked(self, name: str) -> str:
        lacking = [n for n in self._plan.specs[name].inputs.values() if n not in self._done()]
        if lacking:
            return f"waits for {', '.join(sorted(set(lacking)))}"
        climb_name = gate(name)
        return (
            decide(self._plan, climb_name, self._stop_of(climb_name)).reason if climb_name else ""
        )

    def _done(self) -> set[str]:
        return {*self.summary.skipped, *self.summary.made}


def _reach(plan: Plan, names: list[str]) -> dict[str, int]:
    """The longest chain of stages that begins at each: long chains are started first."""
    reach = dict.fromkeys(names, 1)
    for name in reversed(list(plan.specs)):
        if name in reach:
            for source in plan.specs[name].inputs.values():
                if source in reach:
                    reach[source] = max(reach[source], reach[name] + 1)
    return reach
