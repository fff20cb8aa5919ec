"""Groups of rollouts: rewards, filters, the buffer that the learner takes from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from hillclimb.rewards.combine import RewardParts
from hillclimb.rewards.format import thoughts
from hillclimb.rewards.language import language_reward
from hillclimb.rewards.length import length_penalty
from hillclimb.rl.objective import advantages
from hillclimb.rl.rollouts import Rollout
from hillclimb.rollout.nuclei import Nuclei

_ARRAYS = ("prompt", "tokens", "logprobs", "versions", "routes")


def no_routes() -> np.ndarray:
    """Routes of no token."""
    return np.zeros((0, 0, 0), np.uint16)


@dataclass(frozen=True)
class Sample:
    """One rollout as the learner sees it.

    Attributes:
        prompt, tokens: token ids, int32.
        drawn: which of `tokens` the policy drew, bool (T,).
        logprobs: the sampler's, float32 (T,).
        nucleus: what the sampler could draw.
        versions: the weights that drew each token, int32 (T,); empty where nobody asks.
        routes: the experts of the first rows of prompt and tokens, uint16
            (rows, MoE layers, top_k); the other rows are routed freely.
        advantage: of the rollout, or of each drawn token.
        old: the learner's own log-probabilities of the drawn tokens before the first step of
            this update, float32; None where the sampler's stand for them.
        number: of the rollout in its group, as the table of rollouts has it.
    """

    prompt: np.ndarray
    tokens: np.ndarray
    drawn: np.ndarray
    logprobs: np.ndarray
    nucleus: Nuclei
    advantage: float | np.ndarray
    versions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    routes: np.ndarray = field(default_factory=no_routes)
    old: np.ndarray | None = None
    number: int = 0

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + len(self.tokens)


@dataclass(frozen=True)
class Group:
    """The kept rollouts of one prompt; `version` is of the weights that drew the oldest token.

    `update` and `number` are those of its rollouts in their table.
    """

    samples: tuple[Sample, ...]
    version: int
    pass_rate: float
    update: int = 0
    number: int = 0


def passes(rollouts: list[Rollout]) -> list[bool]:
    """Whether each graded rollout passed (task reward above zero); ungraded ones are left out."""
    scores = [r.graded.score for r in rollouts if r.graded is not None]
    return [score > 0 for score in scores if score is not None]


def reward_parts(
    rollout: Rollout, weights: dict[str, float], longest: int, pass_rate: float, penalty: bool
) -> RewardParts | None:
    """The three-part reward of a rollout; None where it could not be graded (report §3.1.3)."""
    if rollout.graded is None or rollout.graded.score is None or rollout.ending is None:
        return None
    return RewardParts(
        task=rollout.graded.score,
        language=language_reward(thoughts(rollout.ending.response), weights["language_alpha"]),
        length=length_penalty(rollout.drawn_tokens, longest, pass_rate),
        w_language=weights["language"],
        w_length=weights["length"] if penalty else 0.0,
    )


def make_group(rollouts: list[Rollout], parts: list[RewardParts | None], std_eps: float) -> Group:
    """The graded rollouts of one prompt with their advantages."""
    graded = [(i, p) for i, p in enumerate(parts) if p is not None]
    values = advantages(torch.tensor([p.total for _, p in graded], dtype=torch.float64), std_eps)
    samples = tuple(
        replace(sample_of(rollouts[i], float(advantage)), number=i)
        for (i, _), advantage in zip(graded, values, strict=True)
    )
    rate = sum(p.task > 0 for _, p in graded) / len(graded)
    oldest = min(int(sample.versions[sample.drawn].min()) for sample in samples)
    return Group(samples, oldest, rate)


def sample_of(rollout: Rollout, advantage: float) -> Sample:
    """The learner's view of a rollout."""
    return Sample(
        np.asarray(rollout.prompt, np.int32),
        np.asarray(rollout.tokens, np.int32),
        np.asarray(rollout.drawn, bool),
        np.concatenate(rollout.logprobs).astype(np.float32),
        Nuclei.joined(rollout.nucleus),
        advantage,
        np.concatenate(rollout.versions),
        np.concatenate(rollout.routes) if rollout.routes else no_routes(),
    )


class Buffer:
    """Groups waiting for the learner, oldest first; the too old are dropped and counted."""

    def __init__(self, max_updates: int, groups: list[Group] | None = None) -> None:
        self.max_updates = max_updates
        self.groups = groups or []

    def add(self, group: Group) -> None:
        """Queue a group."""
        self.groups.append(group)

    def drop_stale(self, version: int) -> int:
        """Drop groups more than `max_updates` weight updates old; returns how many."""
        before = len(self.groups)
        self.groups = [g for g in self.groups if version - g.version <= self.max_updates]
        return before - len(self.groups)

    def take(self, count: int) -> list[Group]:
        """Up to `count` groups, oldest first."""
        taken, self.groups = self.groups[:count], self.groups[count:]
        return taken

    def state(self) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """Arrays and JSON from which `restore` makes the same buffer."""
        arrays: dict[str, np.ndarray] = {}
        meta = []
        for g, group in enumerate(self.groups):
            meta.append(
                {
                    "version": group.version,
                    "pass_rate": group.pass_rate,
                    "update": group.update,
                    "number": group.number,
                    "numbers": [sample.number for sample in group.samples],
                    "advantages": [sample.advantage for sample in group.samples],
                }
            )
            for s, sample in enumerate(group.samples):
                for name in _ARRAYS:
                    arrays[f"{g}.{s}.{name}"] = np.ascontiguousarray(getattr(sample, name))
                arrays[f"{g}.{s}.drawn"] = sample.drawn.astype(np.uint8)
                arrays[f"{g}.{s}.nucleus_counts"] = sample.nucleus.counts
                arrays[f"{g}.{s}.nucleus_ids"] = sample.nucleus.ids
        return arrays, meta

    @classmethod
    def restore(
        cls, max_updates: int, arrays: dict[str, np.ndarray], meta: list[dict[str, Any]]
    ) -> Buffer:
        """The buffer that `state` described."""
        groups = []
        for g, entry in enumerate(meta):
            samples = tuple(
                Sample(
                    drawn=arrays[f"{g}.{s}.drawn"].astype(bool),
                    nucleus=Nuclei(
                        arrays[f"{g}.{s}.nucleus_counts"], arrays[f"{g}.{s}.nucleus_ids"]
                    ),
                    advantage=advantage,
                    number=number,
                    **{name: arrays[f"{g}.{s}.{name}"] for name in _ARRAYS},
                )
                for s, (advantage, number) in enumerate(
                    zip(entry["advantages"], entry["numbers"], strict=True)
                )
            )
            places = {name: entry[name] for name in ("version", "pass_rate", "update", "number")}
            groups.append(Group(samples, **places))
        return cls(max_updates, groups)
