"""What an update brought, and the row that every gradient step leaves in `metrics.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hillclimb.rewards.combine import RewardParts
from hillclimb.rl.alarms import norm_ratio
from hillclimb.rl.canaries import disagreement
from hillclimb.rl.groups import Group
from hillclimb.rl.rollouts import Rollout

Row = dict[str, float]


@dataclass
class Kept:
    """A rollout with what became of it, for the table of rollouts; `canary` as `canary()` says."""

    rollout: Rollout
    parts: RewardParts | None
    group: int
    sample: int
    status: str
    canary: str = ""


@dataclass
class Update:
    """What one round of sampling brought.

    Attributes:
        early_passes: of the early exit's samples.
        tried: the problems drawn so far, by specialist and index, in `prompts` prompts.
        told: costs that rows have by now.
        before: columns of the update before; its shares stand as long as there are no rollouts.
    """

    kept: list[Kept] = field(default_factory=list)
    groups: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("kept", "early_exit", "filtered", "stale"), 0)
    )
    early_passes: list[bool] = field(default_factory=list)
    tried: set[tuple[str, int]] = field(default_factory=set)
    prompts: int = 0
    sampled_tokens: int = 0
    seconds_sampling: float = 0.0
    seconds_grading: float = 0.0
    told: Row = field(default_factory=dict)
    before: Row = field(default_factory=dict)

    @property
    def sorted_groups(self) -> int:
        """How many groups' fate is known."""
        return sum(self.groups.values()) - self.groups["stale"]

    def absorb(self, other: Update) -> None:
        """Take in what another one brought; its groups are numbered on."""
        first = self.sorted_groups
        self.kept += [replace(kept, group=first + kept.group) for kept in other.kept]
        for fate, count in other.groups.items():
            self.groups[fate] += count
        self.early_passes += other.early_passes
        self.tried |= other.tried
        self.prompts += other.prompts
        self.sampled_tokens += other.sampled_tokens
        self.seconds_sampling += other.seconds_sampling
        self.seconds_grading += other.seconds_grading

    def untold(self) -> Row:
        """What sampling has cost since this was last asked."""
        cost = {
            "sampled_tokens": float(self.sampled_tokens),
            "seconds_sampling": self.seconds_sampling,
            "seconds_grading": self.seconds_grading,
        }
        told, self.told = self.told, cost
        return {name: value - told.get(name, 0.0) for name, value in cost.items()}

    @property
    def pass_rate(self) -> float:
        """Of the early exit's samples."""
        return share(self.early_passes)

    @property
    def truncated_share(self) -> float:
        """Of all rollouts."""
        return share([kept.rollout.truncated for kept in self.kept])

    def carried(self) -> Row:
        """What the newest update with rollouts tells of them; nothing before the first one."""
        return self.columns() if self.kept else self.before

    def columns(self) -> Row:
        """The columns that all rows of the update repeat."""
        parts = [kept.parts for kept in self.kept if kept.parts is not None]
        judged, differ = disagreement([kept.rollout for kept in self.kept])
        counts: Row = {
            "ungraded": sum(kept.parts is None for kept in self.kept),
            "judged": judged,
            **{f"groups_{fate}": count for fate, count in self.groups.items()},
        }
        if self.before and not self.kept:
            return {**self.before, **counts}
        return {
            "pass_rate": self.pass_rate,
            "response_tokens": share([kept.rollout.drawn_tokens for kept in self.kept]),
            "reward": share([p.total for p in parts]),
            "reward_task": share([p.task for p in parts]),
            "reward_language": share([p.language for p in parts]),
            "reward_length": share([p.length for p in parts]),
            "truncated_share": self.truncated_share,
            "hacked_share": share([bool(kept.canary) for kept in self.kept]),
            "disagreement": differ,
            **counts,
        }


def step_columns(sums: Row, tokens: int, groups: list[Group], before: list[Row]) -> Row:
    """The columns of one gradient step's own.

    Args:
        sums: what the learner gave; tokens: drawn ones in the batch.
        before: the rows of all earlier steps.
    """
    samples = [sample for group in groups for sample in group.samples]
    return {
        "entropy": sums["entropy"] / tokens,
        "trust_clip_share": sums["trust_clipped"] / tokens,
        "outer_clip_share": sums["outer_clipped"] / tokens,
        "correction_cap_share": sums["weight_capped"] / tokens,
        "grad_norm": sums["grad_norm"],
        "grad_norm_ratio": norm_ratio([row["grad_norm"] for row in before], sums["grad_norm"]),
        "balance_loss": sums["balance_loss"],
        "groups_learned": len(groups),
        "learned_tokens": sum(s.length for s in samples),
        "routed_share": sum(len(s.routes) for s in samples) / sum(s.length - 1 for s in samples),
    }


def age_columns(groups: list[Group], version: int) -> Row:
    """How old the tokens of a step are, in weight updates; `age` is the oldest one's."""
    samples = [sample for group in groups for sample in group.samples]
    drawn = np.concatenate([sample.versions[sample.drawn] for sample in samples])
    return {
        "age": version - min(group.version for group in groups),
        "age_mean": version - float(drawn.mean()),
        "mixed_versions": share([bool(np.ptp(s.versions[s.drawn])) for s in samples]),
    }


def share(values: list[Any]) -> float:
    """The mean; zero of nothing."""
    return float(sum(values)) / len(values) if values else 0.0
