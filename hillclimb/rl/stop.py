"""When a climb is over, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hillclimb.recipe.climb import Signal
from hillclimb.rl.alarms import GAUGES, out_of_bounds

Reason = Literal["steps", "plateau", "solved"] | Signal


@dataclass(frozen=True)
class Stop:
    """Why a climb ended, in one word and in one sentence."""

    reason: Reason
    sentence: str
    step: int


def signalled(row: dict[str, float], rule: dict[str, Any], step: int) -> Stop | None:
    """The stop of the first halting signal that is out of bounds, among the columns of a row."""
    for gauge in GAUGES:
        if gauge.signal in rule["halt"] and gauge.column in row:
            sentence = out_of_bounds(row, rule, gauge)
            if sentence:
                return Stop(gauge.signal, sentence, step)
    return None


def decide_stop(rows: list[dict[str, float]], rule: dict[str, Any], total: int) -> Stop | None:
    """Apply the stop rule to the rows of `metrics.jsonl` so far: halting signals come first.

    A plateau is when the mean pass rate of the last half of `plateau_steps` is not above that of
    the half before by `plateau_gain`.
    """
    if not rows:
        return None
    step, last = len(rows), rows[-1]
    if stop := signalled(last, rule, step):
        return stop
    half = rule["plateau_steps"] // 2
    if half and step >= 2 * half:
        late = sum(row["pass_rate"] for row in rows[-half:]) / half
        early = sum(row["pass_rate"] for row in rows[-2 * half : -half]) / half
        if late - early < rule["plateau_gain"] and late >= rule["plateau_floor"]:
            return Stop(
                "plateau",
                f"pass rate went from {early:.3f} to {late:.3f} over {2 * half} steps",
                step,
            )
    if step >= total:
        return Stop("steps", f"all {total} gradient steps of the length curriculum are done", step)
    return None
