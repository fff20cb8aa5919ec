"""A Dagster step that waits for a stage: attach, tail its messages, tell cancel from eviction."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from hillclimb.assets.tracked import TrackedRun, cancelled
from hillclimb.launcher import Handle, Launcher, Outcome, State, records
from hillclimb.launcher.followed import EVERY, say_followed
from hillclimb.resources.launching import orchestrator
from hillclimb.stages.request import Request

if TYPE_CHECKING:
    from dagster_pipes import PipesMessage

_BEAT, _SLOWEST = 0.1, 1.0
_SAY_EVERY = 15.0
_LATE = 60.0
RETRIES = 2
PAUSE = 2
"""Retries of a crashed stage, and seconds before the first; doubled for each that follows.

They are asked for here and not by a `RetryPolicy`, because Dagster applies a policy to
cancellations too: a cancelled stage would begin anew.
"""


class TailReader(dg.PipesMessageReader):
    """Reads an append-only message file from its start, whoever began it.

    A stage that is taken away and begins anew opens the file again: to Dagster that is one story,
    opened once and closed by the last attempt. `opened` counts its beginnings.
    """

    def __init__(self, launcher: Launcher, handle: Handle) -> None:
        self._launcher, self._handle, self._offset = launcher, handle, 0
        self._handler: dg.PipesMessageHandler | None = None
        self._closing: dict[str, Any] | None = None
        self.opened = 0

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, Any]]:
        """Remember whom to tell."""
        self._handler = handler
        yield {}

    def pump(self) -> list[dict[str, Any]]:
        """Hand on what is new; returns the custom messages among it."""
        found, self._offset = self._launcher.messages(self._handle, self._offset)
        payloads: list[dict[str, Any]] = []
        for message in found:
            if message["method"] == "report_custom_message":
                payloads.append(message["params"]["payload"])
            elif message["method"] == "closed":
                self._closing = message
            elif message["method"] != "opened":
                self._hand_on(message)
            else:
                self.opened, self._closing = self.opened + 1, None
                if self.opened == 1:
                    self._hand_on(message)
        return payloads

    @property
    def ended_well(self) -> bool:
        """Whether the last attempt has said all that it had to say, and nothing went wrong."""
        return self._closing is not None and "exception" not in (self._closing["params"] or {})

    def finish(self) -> None:
        """Hand on how the last attempt ended."""
        if self._closing is not None:
            self._hand_on(self._closing)

    def _hand_on(self, message: dict[str, Any]) -> None:
        if self._handler:
            self._handler.handle_message(cast("PipesMessage", message))

    def no_messages_debug_text(self) -> str:
        """Where to look."""
        return f"Tried to read messages of {self._handle.name} from {self._handle.where}."


class _NothingToInject(dg.PipesContextInjector):
    """A stage is told everything by its request."""

    @contextmanager
    def inject_context(self, context: Any) -> Iterator[Mapping[str, Any]]:
        yield {}

    def no_messages_debug_text(self) -> str:
        return "The request was the only thing passed on."


def run_stage(
    context: dg.AssetExecutionContext, launcher: Launcher, request: Request, run: TrackedRun
) -> None:
    """Have the stage made, whether it has to be started or is running already.

    A stage that is queued is waited for without end. One that another run has cancelled meanwhile
    is asked for again.

    Raises:
        dg.Failure: with the stage's sentence.
        dg.RetryRequested: where trying again can help; the stage resumes from its checkpoint.
        DagsterExecutionInterruptedError: when the run is cancelled (the stage is ended) or the
            orchestrator is told to go (the stage goes on, and is attached to the next time).
    """
    try:
        handle = _submit(context, launcher, request)
        reader = TailReader(launcher, handle)
        with dg.open_pipes_session(context, _NothingToInject(), reader):
            outcome = follow(launcher, handle, reader, Teller(context, run))
    except DagsterExecutionInterruptedError:
        if cancelled(context):
            _end(context, launcher, request)
        raise
    if outcome.state is State.DONE:
        return
    stopped = outcome.state is State.STOPPED
    if stopped and cancelled(context):
        raise DagsterExecutionInterruptedError(outcome.reason)
    value = dg.MetadataValue.text if handle.log_command else dg.MetadataValue.path
    failure = dg.Failure(outcome.reason, metadata={"log": value(handle.log)}, allow_retries=False)
    if (stopped or outcome.resumable) and context.retry_number < RETRIES:
        raise dg.RetryRequested(RETRIES, PAUSE * 2**context.retry_number) from failure
    raise failure


def _submit(context: dg.AssetExecutionContext, launcher: Launcher, request: Request) -> Handle:
    """Start or attach. A run that was cancelled meanwhile ends what it has started."""
    marks = {"run_id": context.run_id, "orchestrator": orchestrator(context.instance)}
    marked = request.model_copy(update={"tracking": {**request.tracking, **marks}})
    try:
        handle = launcher.submit(marked)
    except RuntimeError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    context.log.info(f"{request.name} is made by {handle.name} in {handle.where}")
    context.log.info(f"its log: {handle.log}")
    if cancelled(context):
        raise DagsterExecutionInterruptedError(f"{handle.name} was cancelled")
    return handle


def _end(context: dg.AssetExecutionContext, launcher: Launcher, request: Request) -> None:
    """End the stage for good, as far as it was started."""
    handle = launcher.find(request.name, request.fingerprint)
    if handle is not None:
        try:
            launcher.cancel(handle)
        except RuntimeError as error:
            context.log.error(str(error))


def catch_up(where: str, run: TrackedRun) -> None:
    """Track all attempts at a stage, with what they told while nobody listened.

    Args:
        where: the folder of the latest attempt, or of them all.
    """
    attempts = 0
    for folder in records.attempts(Path(where).parent) or [Path(where)]:
        for message in _told(folder / "messages.jsonl"):
            payload = (message["params"] or {}).get("payload") or {}
            if message["method"] == "opened":
                attempts += 1
            elif payload.get("type") == "metrics":
                run.metrics(payload)
    run.attempted(attempts)


def _told(messages: Path) -> Iterator[dict[str, Any]]:
    """The messages of a file that matter to tracking; none while its store is away."""
    with contextlib.suppress(OSError), open(messages, "rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                if b'"metrics"' in line or b'"opened"' in line:
                    yield json.loads(line)


class Teller:
    """What a run's log and tracking are told: changes of state, notes, now and then progress."""

    def __init__(self, context: dg.AssetExecutionContext, run: TrackedRun) -> None:
        self._log, self._run = context.log, run
        self._seen, self._next_reason = Outcome(State.RUNNING), 0.0
        self._next_progress = time.monotonic() + _SAY_EVERY

    def state(self, outcome: Outcome) -> None:
        """Tell another state at once, another reason for the same state at most every 15 s."""
        now, changed = time.monotonic(), outcome.state is not self._seen.state
        if outcome.ended or outcome == self._seen or not (changed or now > self._next_reason):
            return
        self._seen, self._next_reason = outcome, now + _SAY_EVERY
        self._log.info(f"{outcome.state.value}: {outcome.reason or 'it has a place'}")

    def attempt(self, where: str) -> None:
        """Tell that the stage has begun, where that is not for the first time."""
        catch_up(where, self._run)
        if self._run.attempts > 1:
            said = f"attempt {self._run.attempts} has begun: it goes on from the last checkpoint"
            self._log.info(said)

    def messages(self, payloads: list[dict[str, Any]]) -> None:
        """Pass on what the stage has said."""
        latest = None
        for payload in payloads:
            if payload["type"] == "metrics":
                self._run.metrics(payload)
            elif payload["type"] == "progress":
                latest = payload
            else:
                self._log.info(payload["message"])
        if latest and time.monotonic() > self._next_progress:
            self._next_progress = time.monotonic() + _SAY_EVERY
            self._log.info(f"{latest['done']:g} of {latest['total']:g} {latest['note']}")


def follow(launcher: Launcher, handle: Handle, reader: TailReader, teller: Teller) -> Outcome:
    """Wait for the end, looking less often while nothing is said.

    The messages of a made stage may arrive late on shared storage: they are waited for.
    """
    pause, next_mark, late, begun = _BEAT, 0.0, float("inf"), 0
    while True:
        outcome = launcher.poll(handle)
        teller.state(outcome)
        payloads = reader.pump()
        if reader.opened > begun:
            begun = reader.opened
            teller.attempt(handle.where)
        teller.messages(payloads)
        now = time.monotonic()
        late = min(late, now + _LATE) if outcome.ended else float("inf")
        if outcome.ended and (outcome.state is not State.DONE or reader.ended_well or now > late):
            reader.finish()
            return outcome
        if now > next_mark:
            next_mark = now + EVERY
            say_followed(handle.where)
        pause = _BEAT if payloads else min(_SLOWEST, pause * 1.2)
        time.sleep(pause)
