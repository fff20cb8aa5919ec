"""Episodes: reset, step, grade.

One turn for questions; for agentic problems a real sandbox in which the model's tool calls run
until it answers. The context is append-only and each observation follows the turn that asked for
it (report §3.3).
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from typing import Any, Protocol

from hillclimb.environments.calls import parse_call
from hillclimb.environments.files import lay_out
from hillclimb.environments.sandbox import (
    Sandbox,
    SandboxDied,
    SandboxFileError,
    SandboxProvider,
)
from hillclimb.environments.tasks import Problem
from hillclimb.environments.templates import observation
from hillclimb.environments.tools import Toolbox

COMMAND_SECONDS = 5.0
OBSERVATION_CHARACTERS = 400


@dataclass(frozen=True)
class Ending:
    """What an episode leaves to be graded.

    Attributes:
        response: everything that the model wrote; each turn after the first has its `<think>`.
        last: the final turn.
        passed: whether the hidden check held; None where there was none or it could not run.
        trouble: why the check could not run.
        tampered: a file that the check trusts and that the episode changed, by its path.
    """

    response: str
    last: str
    passed: bool | None = None
    trouble: str = ""
    tampered: str = ""


class Episode(Protocol):
    """One attempt at one problem."""

    def step(self, response: str) -> str | None:
        """Take a turn; the text of the observation, or None when the episode is over."""

    def finish(self) -> Ending:
        """Run the hidden check and give everything back."""


class Question:
    """A single turn."""

    def __init__(self) -> None:
        self.response = ""

    def step(self, response: str) -> str | None:
        """Keep the answer; there is no second turn."""
        self.response = response
        return None

    def finish(self) -> Ending:
        """Nothing is checked here: the graders read the answer."""
        return Ending(self.response, self.response)


class ToolSession:
    """Tool calls in a sandbox of its own until a turn without one, or the last turn."""

    def __init__(self, task: dict[str, Any], provider: SandboxProvider, max_turns: int) -> None:
        self.task, self.max_turns = task, max_turns
        self.turns: list[str] = []
        self.trouble = ""
        self._stack = contextlib.ExitStack()
        self.sandbox: Sandbox = self._stack.enter_context(provider.start())
        try:
            self.sandbox.run(lay_out(task["files"]), COMMAND_SECONDS)
        except SandboxDied as death:
            self.trouble = str(death)
        self.tools = Toolbox(self.sandbox, COMMAND_SECONDS, OBSERVATION_CHARACTERS)

    def step(self, response: str) -> str | None:
        """Run the turn's tool call, if it has one and turns are left."""
        self.turns.append(response)
        call = parse_call(response)
        if call is None or len(self.turns) >= self.max_turns or self.trouble:
            return None
        try:
            return observation(self.tools.call(*call))
        except SandboxDied as death:
            self.trouble = str(death)
            return None

    def finish(self) -> Ending:
        """Run the hidden check in the sandbox as the model left it, then stop the sandbox."""
        passed, tampered = None, ""
        try:
            if "check" in self.task and not self.trouble:
                tampered = self._restore()
                done = self.sandbox.run(self.task["check"], COMMAND_SECONDS)
                passed = done.exit_code == 0
        except SandboxDied as death:
            self.trouble = str(death)
        finally:
            self._stack.close()
        return Ending("<think>".join(self.turns), self.turns[-1] if self.turns else "", passed,
                      self.trouble, tampered)  # fmt: skip

    def _restore(self) -> str:
        """Put back the files that the check trusts (`task["trusted"]`); one that was changed."""
        changed = [path for path in self.task.get("trusted", ()) if not self._intact(path)]
        for path in changed:
            again = lay_out({path: self.task["files"][path]}, clear=False)
            self.sandbox.run(f"rm -rf -- {shlex.quote(path)}; {again}", COMMAND_SECONDS)
        return changed[0] if changed else ""

    def _intact(self, path: str) -> bool:
        try:
            return bool(self.sandbox.read(path) == self.task["files"][path])
        except SandboxFileError:
            return False


def start_episode(problem: Problem, provider: SandboxProvider, max_turns: int = 4) -> Episode:
    """The episode that a problem needs.

    Raises:
        SandboxUnavailable: for a problem with files where nothing can be isolated.
    """
    if "files" in problem.task:
        return ToolSession(problem.task, provider, max_turns)
    return Question()
