"""The rule that opens a specialist's next round (report §3.1.4).

A climb says in `stop.json` why it ended. Most reasons mean that more steps of the same climb are
not worth it, and that its traces are: a student of the fresh base goes on from there, and leaves
behind what went wrong in the weights. It cannot leave behind what is wrong with the grades, since
they choose its traces; those reasons wait for a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hillclimb.experiments import Plan

REASONS = {
    "plateau": "the pass rate no longer rises",
    "entropy": "the policy has nearly stopped exploring, or explores without end",
    "mismatch": "sampler and learner have drifted apart",
    "truncation": "too many answers do not fit their limit",
    "gradient": "the gradients have exploded",
    "steps": "the length curriculum is done",
    "solved": "too few problems are left to learn from",
}
PERSON = {
    "reward_hack": "rewards were had by cheating, so its traces would teach that: look at the "
    "rollouts with a canary and mend the grader or the problems",
    "disagreement": "judge and verifier contradict each other, so its grades cannot be trusted: "
    "look at the rollouts they differ on and mend either",
}


@dataclass(frozen=True)
class Decision:
    """Whether the next round opens, and why, in a sentence."""

    opens: bool
    reason: str


def decide(plan: Plan, climb: str, stop: dict[str, Any] | None) -> Decision:
    """Apply the rule to one climb.

    Args:
        plan: the experiment.
        climb: the climb's name, `stem/round_0/climb`.
        stop: its `stop.json`, or None while the climb is not made.
    """
    following = next_climb(climb)
    if following is None or following not in plan.specs:
        return Decision(False, f"{climb} is the last round that {plan.recipe.name} asks for")
    if stop is None:
        return Decision(False, f"{climb} has not ended")
    reason = str(stop.get("reason"))
    if reason in PERSON:
        told = stop.get("sentence", reason)
        return Decision(False, f"{climb} waits for a person, {PERSON[reason]} ({told})")
    if reason not in REASONS:
        known = ", ".join([*REASONS, *PERSON])
        return Decision(False, f"{climb} ended for the unknown reason {reason!r} (known: {known})")
    return Decision(True, f"{climb} ended, {REASONS[reason]}: {stop.get('sentence', reason)}")


def next_climb(climb: str) -> str | None:
    """The climb of the following round; None for a climb that has no rounds."""
    parts = climb.split("/")
    if len(parts) != 3 or not parts[1].startswith("round_"):
        return None
    return f"{parts[0]}/round_{int(parts[1][6:]) + 1}/climb"


def next_round(climb: str) -> list[str]:
    """What the following round consists of, with the traces that it starts from."""
    following = next_climb(climb)
    if following is None:
        return []
    old, new = climb.rsplit("/", 1)[0], following.rsplit("/", 1)[0]
    return [f"{old}/traces", f"{new}/student", f"{new}/climb", f"{new}/traces"]


def gate(name: str) -> str | None:
    """The climb whose end decides whether the stage `name` may begin, for students."""
    parts = name.split("/")
    if len(parts) != 3 or parts[2] != "student":
        return None
    return f"{parts[0]}/round_{int(parts[1][6:]) - 1}/climb"
