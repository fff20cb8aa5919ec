"""Episodes of a group that go on apart from each other, over an engine that can be told to stop."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from hillclimb.environments.tasks import Problem
from hillclimb.rl.rollouts import LIVE_SANDBOXES, Rollout, Sampler
from hillclimb.rl.turns import seed_of
from hillclimb.rollout.engine import Completion, RolloutEngine, SamplingParams


class Closed(Exception):
    """The climb is over: nothing more is drawn for it."""


class _Gate:
    """The engine as workers have it: after `close` they get `Closed` instead of completions."""

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine, self._closed = engine, False

    @property
    def version(self) -> int:
        """Version of the weights in use."""
        return self.engine.version

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        """Take new weights."""
        self.engine.load_weights(weights, version)

    def interrupt(self) -> None:
        """Have the calls under way return with what they have."""
        self.engine.interrupt()

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        """One completion a prompt.

        Raises:
            Closed: after `close`, also of calls that were under way.
        """
        done = [] if self._closed else self.engine.generate(prompts, params, seed)
        if self._closed:
            raise Closed
        return done

    def close(self) -> None:
        """Let nobody draw any more; the engine itself stays open."""
        self._closed = True
        self.engine.interrupt()


class Apart:
    """Runs the episodes of one problem: questions in one call, sessions with tools each by itself.

    At most `LIVE_SANDBOXES` sessions live at a time, over all callers.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._gate = _Gate(sampler.engine)
        self.sampler = Sampler(self._gate, sampler.tokenizer, sampler.template, sampler.provider)
        self._sessions = ThreadPoolExecutor(LIVE_SANDBOXES, "session")

    def run(self, problems: Sequence[Problem], params: SamplingParams, seed: int) -> list[Rollout]:
        """One rollout a problem; the seeds of sessions are their own."""
        if "files" not in problems[0].task:
            return self.sampler.run(problems, params, seed)
        futures = [
            self._sessions.submit(self.sampler.run, [problem], params, seed_of(seed, place))
            for place, problem in enumerate(problems)
        ]
        return [rollout for future in futures for rollout in future.result()]

    def interrupt(self) -> None:
        """Have rollouts under way go on with the engine's new weights."""
        self._gate.interrupt()

    def close(self) -> None:
        """End every `run` under way with `Closed`, soon; may be called again."""
        self._gate.close()
        self._sessions.shutdown(wait=False, cancel_futures=True)
