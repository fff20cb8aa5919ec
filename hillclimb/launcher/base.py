"""The Protocol between whoever wants an artifact and whatever runs the process that makes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from hillclimb.stages.request import Request

REFUSED = 2
Message = dict[str, Any]


class State(Enum):
    """Where a stage is.

    `QUEUED` waits for a place to run, `STOPPED` was cancelled, `LOST` is gone and nobody saw how
    it ended.
    """

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"


@dataclass(frozen=True)
class Outcome:
    """What `poll` saw: the state, the exit code where there is one, and why.

    `reason` is the sentence of a failure, what a queued stage waits for, or what hinders a look.
    """

    state: State
    code: int | None = None
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.state not in (State.RUNNING, State.QUEUED)

    @property
    def resumable(self) -> bool:
        """Whether asking again may help: the stage crashed, or the machine took it away."""
        return self.state is State.LOST or (self.state is State.FAILED and self.code != REFUSED)


@dataclass(frozen=True)
class Handle:
    """One attempt at one stage. `name` follows from the fingerprint, `where` is its folder.

    `log_command` prints the log of a stage that keeps none in its folder.
    """

    name: str
    where: str
    log_command: str = ""

    @property
    def log(self) -> str:
        """The path of the log, or the command that prints it."""
        return self.log_command or f"{self.where}/log.txt"


class Launcher(Protocol):
    """Runs stages. Whoever asks twice for the same fingerprint gets the same process."""

    def submit(self, request: Request) -> Handle:
        """Start the stage, or attach to the process that is already making it."""

    def find(self, name: str, fingerprint: str) -> Handle | None:
        """The latest attempt at an artifact, running or not; None where there was none."""

    def poll(self, handle: Handle) -> Outcome:
        """Say where the stage is."""

    def messages(self, handle: Handle, offset: int) -> tuple[list[Message], int]:
        """The Pipes messages after `offset`, and the offset to go on from."""

    def cancel(self, handle: Handle) -> None:
        """End the stage's process; its checkpoints stay."""


def handle_name(name: str, fingerprint: str) -> str:
    """The same for the same artifact, wherever it is asked for; a valid name of a pod."""
    plain = name.replace("/", "-").replace("_", "-")
    return f"{plain}-{fingerprint[:12]}"
