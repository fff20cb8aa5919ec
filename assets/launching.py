"""A Dagster step that waits for a stage: attach, tail its messages, tell cancel from eviction."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from hillclimb.assets.tracked import TrackedRun
from hillclimb.launcher import Handle, Launcher, Outcome, State
from hillclimb.stages.request import Request

if TYPE_CHECKING:
    from dagster_pipes import PipesMessage

_BEAT = 0.1
_SAY_EVERY = 15.0
RETRIES = 2
PAUSE = 2
"""Retries of a crashed stage, and seconds before the first; doubled for each that follows.

They are asked for here and not by a `RetryPolicy`, because Dagster applies a policy to
cancellations too: a cancelled stage would begin anew.
"""


class TailReader(dg.PipesMessageReader):
    """Reads an append-only message file from its start, whoever began it."""

    def __init__(self, launcher: Launcher, handle: Handle) -> None:
        self._launcher, self._handle, self._offset = launcher, handle, 0
        self._handler: dg.PipesMessageHandler | None = None

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, Any]]:
        """Remember whom to tell."""
        self._handler = handler
        yield {}

    def pump(self) -> list[dict[str, Any]]:
        """Hand on what is new; returns the custom messages among it."""
        found, self._offset = self._launcher.messages(self._handle, self._offset)
        for message in found:
            if self._handler and message["method"] != "report_custom_message":
                self._handler.handle_message(cast("PipesMessage", message))
        return [m["params"]["payload"] for m in found if m["method"] == "report_custom_message"]

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

    Raises:
        dg.Failure: with the stage's sentence.
        dg.RetryRequested: where trying again can help; the stage resumes from its checkpoint.
        DagsterExecutionInterruptedError: when the run is cancelled (the stage is ended) or the
            orchestrator is told to go (the stage goes on, and is attached to the next time).
    """
    handle = launcher.submit(request)
    context.log.info(f"{request.name} is made by {handle.name} in {handle.where}")
    reader = TailReader(launcher, handle)
    try:
        with dg.open_pipes_session(context, _NothingToInject(), reader):
            outcome = _follow(context, launcher, handle, reader, run)
    except DagsterExecutionInterruptedError:
        if _cancelled(context):
            launcher.cancel(handle)
        raise
    if outcome.state is State.STOPPED:
        _say_cancelled(context)
        raise DagsterExecutionInterruptedError(outcome.reason)
    if outcome.state is not State.DONE:
        log = dg.MetadataValue.path(f"{handle.where}/log.txt")
        failure = dg.Failure(outcome.reason, metadata={"log": log}, allow_retries=False)
        if outcome.resumable and context.retry_number < RETRIES:
            raise dg.RetryRequested(RETRIES, PAUSE * 2**context.retry_number) from failure
        raise failure


def _follow(
    context: dg.AssetExecutionContext,
    launcher: Launcher,
    handle: Handle,
    reader: TailReader,
    run: TrackedRun,
) -> Outcome:
    said = time.monotonic()
    while True:
        outcome = launcher.poll(handle)
        latest = None
        for payload in reader.pump():
            if payload["type"] == "metrics":
                run.metrics(payload)
            elif payload["type"] == "progress":
                latest = payload
            else:
                context.log.info(payload["message"])
        if latest and time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            context.log.info(f"{latest['done']:g} of {latest['total']:g} {latest['note']}")
        if outcome.ended:
            return outcome
        time.sleep(_BEAT)


def _cancelled(context: dg.AssetExecutionContext) -> bool:
    """Whether a person asked for the end, rather than the machine being taken away."""
    run = context.instance.get_run_by_id(context.run_id)
    asked = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
    return run is not None and run.status in asked


def _say_cancelled(context: dg.AssetExecutionContext) -> None:
    """Let the run end as cancelled: the stage was, through the launcher."""
    run = context.instance.get_run_by_id(context.run_id)
    if run is not None and run.status is dg.DagsterRunStatus.STARTED:
        context.instance.report_run_canceling(run)
