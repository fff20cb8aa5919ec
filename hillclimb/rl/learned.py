"""What the learner made of the tokens that it learnt from: its log-probability of each.

Beside the engine's own they show, token by token, where the two differ. All drawn tokens of a step
come from the device at once, after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hillclimb.rl.groups import Group, Sample
from hillclimb.rl.policy import PolicyBatch, by_sample

TOKENS_A_STEP = 2**18


@dataclass(frozen=True)
class Learned:
    """A rollout that a gradient step learnt from.

    Attributes:
        update, group: where its table has it; `sample.number` is its place in the group.
        learner_version: the last weights that the engine was given.
        learner_steps: gradient steps that the learner was ahead of those; at 0 the gap of a token
            that these weights drew is the mismatch of engine and learner, and nothing else.
        logprobs: of the drawn tokens under the learner, before the step, float32 (N,).
    """

    sample: Sample
    update: int
    group: int
    learner_version: int
    learner_steps: int
    logprobs: np.ndarray


def learned_from(
    groups: Sequence[Group], seen: Sequence[Tensor], batches: Sequence[PolicyBatch], version: int,
    steps: int, most: int = TOKENS_A_STEP,
) -> list[Learned]:  # fmt: skip
    """The rollouts of one gradient step, in their order; at most `most` tokens of them.

    Above that, rollouts are taken in the order of a hash while they fit, at least one: the same
    climb always keeps the same.

    Args:
        seen: what the loss function collected of them, by micro-batch of `batches`.
        version, steps: of the learner, as `Learned` has them.
    """
    owners = [(group, sample) for group in groups for sample in group.samples]
    logprobs = by_sample(seen, batches)
    kept = _kept(owners, most)
    return [
        Learned(sample, group.update, group.number, version, steps, logprobs[i])
        for i, (group, sample) in enumerate(owners)
        if i in kept
    ]


def _kept(owners: list[tuple[Group, Sample]], most: int) -> set[int]:
    sizes = [len(sample.tokens) for _, sample in owners]
    if sum(sizes) <= most:
        return set(range(len(owners)))
    order = sorted(range(len(owners)), key=lambda i: _draw(*owners[i]))
    kept, room = {order[0]}, most - sizes[order[0]]
    for i in order[1:]:
        if sizes[i] <= room:
            kept.add(i)
            room -= sizes[i]
    return kept


def _draw(group: Group, sample: Sample) -> bytes:
    told = f"{group.update}|{group.number}|{sample.number}"
    return hashlib.sha256(told.encode()).digest()
