"""Rollouts: episodes in lockstep over one engine, token in, token out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hillclimb.environments.episodes import Ending, Episode, start_episode
from hillclimb.environments.sandbox import SandboxProvider
from hillclimb.environments.tasks import Problem
from hillclimb.environments.templates import STOP_TOKENS, Template, render
from hillclimb.model.tokenizer import TextTokenizer
from hillclimb.rewards.graded import Graded
from hillclimb.rollout.engine import Completion, RolloutEngine, SamplingParams, cut
from hillclimb.rollout.nuclei import Nuclei

LIVE_SANDBOXES = 64
ENVIRONMENT_THREADS = 4


@dataclass
class Rollout:
    """One finished episode, as the sampler drew it.

    Attributes:
        prompt: tokens before the first drawn one.
        tokens: everything after the prompt, observations included (T tokens).
        drawn: which of them the policy drew, bool (T,).
        logprobs: the sampler's log-probabilities, 0 for observations, float32 (T,).
        nucleus: what could be drawn; any token, for observations.
        version: weights of the first turn.
        versions: the weights that drew each token, int32 (T,); an observation has those of the
            turn before it.
        turn_start: where in `tokens` the last turn begins.
        routes: the experts that each token went through when it was fed for drawing, uint16
            (rows, MoE layers, top_k) for the first rows of prompt and tokens; empty where the
            engine tells none.
        judged: whether a judge asked beside the verifier would let it pass; None for none.
    """

    problem: Problem
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    drawn: list[bool] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    nucleus: list[Nuclei] = field(default_factory=list)
    versions: list[np.ndarray] = field(default_factory=list)
    routes: list[np.ndarray] = field(default_factory=list)
    finish: str = "stop"
    turns: int = 0
    turn_start: int = 0
    version: int = 0
    ending: Ending | None = None
    graded: Graded | None = None
    judged: bool | None = None

    def take(self, completion: Completion, goes_on: bool = False) -> None:
        """Append a turn of the policy, or more of one that was interrupted.

        A turn feeds the whole context once more; what earlier turns fed keeps their routes, since
        it was with those that the tokens after it were drawn.
        """
        self.version = completion.version if not self.turns else self.version
        if not goes_on:
            self.turns += 1
            self.turn_start = len(self.tokens)
        self.finish = completion.finish
        if completion.routes is not None:
            self.routes.append(completion.routes[sum(map(len, self.routes)) :])
        self._append(
            completion.tokens, True, completion.logprobs, completion.nucleus, completion.version
        )

    def observe(self, tokens: list[int]) -> None:
        """Append an observation."""
        self._append(
            tokens, False, np.zeros(len(tokens), np.float32), Nuclei.free(len(tokens)),
            int(self.versions[-1][-1]),
        )  # fmt: skip

    def _append(
        self, tokens: list[int], drawn: bool, logprobs: np.ndarray, nucleus: Nuclei,
        version: int,
    ) -> None:  # fmt: skip
        self.tokens += tokens
        self.drawn += [drawn] * len(tokens)
        self.logprobs.append(logprobs)
        self.nucleus.append(nucleus)
        self.versions.append(np.full(len(tokens), version, np.int32))

    @property
    def drawn_tokens(self) -> int:
        """How many tokens the policy drew."""
        return sum(self.drawn)

    @property
    def truncated(self) -> bool:
        """Whether the limit cut it."""
        return self.finish == "length"


class Sampler:
    """Runs episodes of problems with one engine, tokenizer and template."""

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: TextTokenizer,
        template: Template,
        provider: SandboxProvider,
    ) -> None:
        self.engine, self.tokenizer, self.template = engine, tokenizer, template
        self.provider = provider
        self.stop = tuple(tokenizer.ids[token] for token in STOP_TOKENS)

    def run(self, problems: Sequence[Problem], params: SamplingParams, seed: int) -> list[Rollout]:
        """One rollout a problem (repeat a problem for a group). `max_tokens` bounds the whole.

        Raises:
            SandboxUnavailable: if a problem needs a sandbox and none can be had.
        """
        rollouts = [Rollout(p, self._prompt(p)) for p in problems]
        single = [r for r in rollouts if "files" not in r.problem.task]
        self._lockstep(single, params, seed)
        multi = [r for r in rollouts if "files" in r.problem.task]
        for start in range(0, len(multi), LIVE_SANDBOXES):
            self._lockstep(multi[start : start + LIVE_SANDBOXES], params, seed + 1 + start)
        return rollouts

    def _prompt(self, problem: Problem) -> list[int]:
        return self.tokenizer.encode(render(problem.question, self.template))

    def _lockstep(self, rollouts: list[Rollout], params: SamplingParams, seed: int) -> None:
        """Turn by turn, all episodes together; their environments work side by side.

        The threads stay to the end, because a sandbox ends with the thread that started it.
        """
        with ThreadPoolExecutor(ENVIRONMENT_THREADS) as pool:
            start = partial(start_episode, provider=self.provider)
            episodes = list(pool.map(start, [r.problem for r in rollouts]))
            live, turn = list(range(len(rollouts))), 0
            while live:
                self._turn([rollouts[i] for i in live], params, seed * 64 + turn)
                turns = [(rollouts[i], episodes[i], params.max_tokens) for i in live]
                goes_on = pool.map(lambda work: self._respond(*work), turns)
                live = [i for i, more in zip(live, goes_on, strict=True) if more]
                turn += 1
            for rollout, ending in zip(
                rollouts, pool.map(lambda e: e.finish(), episodes), strict=True
            ):
                rollout.ending = ending

    def _turn(self, rollouts: list[Rollout], params: SamplingParams, seed: int) -> None:
        """A turn of each; one that the engine was told to interrupt goes on with its new weights.

        The draws that follow an interrupt have a seed of their own.
        """
        waiting, part = rollouts, 0
        while waiting:
            rooms = [params.max_tokens - len(r.tokens) for r in waiting]
            bounded = replace(params, max_tokens=max(rooms), stop=self.stop)
            contexts = [r.prompt + r.tokens for r in waiting]
            completions = self.engine.generate(contexts, bounded, _part_seed(seed, part))
            for rollout, done, room in zip(waiting, completions, rooms, strict=True):
                rollout.take(cut(done, room), goes_on=part > 0)
            waiting = [r for r in waiting if r.finish == "interrupted"]
            part += 1

    def _respond(self, rollout: Rollout, episode: Episode, max_tokens: int) -> bool:
        """Step the episode with the last turn; whether another turn follows."""
        text = self.tokenizer.decode(self._last_turn(rollout))
        shown = episode.step(text)
        if shown is None or rollout.truncated:
            return False
        tokens = self.tokenizer.encode(shown)
        if len(rollout.tokens) + len(tokens) + 1 >= max_tokens:
            rollout.finish = "length"
            return False
        rollout.observe(tokens)
        return True

    @staticmethod
    def _last_turn(rollout: Rollout) -> list[int]:
        return rollout.tokens[rollout.turn_start :]


def _part_seed(seed: int, part: int) -> int:
    """The first part of a turn has the turn's seed, each other one of 56 bits of its own."""
    if not part:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} part {part}".encode()).digest()[:7])
