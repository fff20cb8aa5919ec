"""Goodput: the ideal over the actual time of a training stage, and where the rest went.

The report states 90.0 % for its run, with 51 h of overhead: 18 in steps slower than they could
be, 14 without steps, 6.5 in steps done again (report §2.8). The same three are told apart here.

Actual is the wall clock from the start of the first attempt's process to the last span of the
last one, the time between attempts included. Ideal is the median time of a step times the number
of steps that count, and at most what they took: a pause or a slow spell within steps then shows
as `slow_steps`, as the report's drop in MFU does, while a mean would hide it, and the fastest
step would make a stall of ordinary noise. Where steps differ in work by design (traces of many
lengths, a climb whose answers grow) there is no such yardstick, and ideal is what the steps took.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hillclimb.training.spans import Span

STALLS = (
    "start", "restart", "lost_steps", "data", "checkpoint", "slow_steps", "held_out", "finish",
    "other",
)  # fmt: skip
"""What is not ideal: the first start; later starts and the time between attempts; steps that were
done again; waiting for data; what a step waits for at a checkpoint; steps over the ideal; held-out
text; measurements and writing at the end; what no span covers."""


@dataclass(frozen=True)
class Goodput:
    """One stage's account, in seconds. `ideal` and the stalls add up to `actual`.

    `steps` counts those that count, `steps_again` those that a kill made vain.
    """

    actual: float
    ideal: float
    stalls: dict[str, float] = field(default_factory=dict)
    attempts: int = 0
    steps: int = 0
    steps_again: int = 0

    @property
    def goodput(self) -> float:
        """Ideal over actual, between 0 and 1."""
        return self.ideal / self.actual if self.actual > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The form of `goodput.json`."""
        return {
            "goodput": self.goodput,
            "actual_seconds": self.actual,
            "ideal_seconds": self.ideal,
            "stalls": self.stalls,
            "attempts": self.attempts,
            "steps": self.steps,
            "steps_again": self.steps_again,
        }


def summarise(spans: Iterable[Span], even_steps: bool = True) -> Goodput:
    """The account of all attempts at a stage.

    Overlapping spans of an attempt count once, the earlier one first, and an attempt that seems
    to begin before the last one ended (another machine's clock) leaves no gap: so the parts add
    up whatever the clocks say.

    Args:
        spans: in any order.
        even_steps: whether all steps do the same work.
    """
    attempts: dict[int, list[Span]] = {}
    for span in spans:
        attempts.setdefault(span.attempt, []).append(span)
    parts: defaultdict[str, float] = defaultdict(float)
    taken: dict[int, dict[int, float]] = {}
    until: float | None = None
    for place, number in enumerate(sorted(attempts)):
        own, steps, end = _timeline(attempts[number])
        if until is not None:
            parts["restart"] += max(0.0, min(s.start for s in attempts[number]) - until)
        if place:
            own["restart"] = own.pop("start", 0.0) + own.get("restart", 0.0)
        for kind, seconds in own.items():
            parts[kind] += seconds
        taken[number] = steps
        until = end
    counted, lost = _counted(taken)
    parts["lost_steps"] = sum(lost, 0.0)
    ideal = took = sum(counted, 0.0)
    if even_steps and counted:
        ideal = min(took, statistics.median(counted) * len(counted))
    parts["slow_steps"] = took - ideal
    stalls = {name: parts[name] for name in STALLS}
    actual = ideal + sum(stalls.values())
    return Goodput(actual, ideal, stalls, len(attempts), len(counted), len(lost))


def _timeline(spans: list[Span]) -> tuple[dict[str, float], dict[int, float], float]:
    """Seconds by kind but steps, seconds by step, and the end of one attempt."""
    parts: defaultdict[str, float] = defaultdict(float)
    steps: dict[int, float] = {}
    ordered = sorted(spans, key=lambda span: (span.start, span.end))
    now = ordered[0].start
    for span in ordered:
        parts["other"] += max(0.0, span.start - now)
        seconds = max(0.0, span.end - max(span.start, now))
        if span.kind == "step" and span.step is not None:
            steps[span.step] = steps.get(span.step, 0.0) + seconds
        else:
            parts[span.kind if span.kind in STALLS else "other"] += seconds
        now = max(now, span.end)
    return parts, steps, now


def _counted(taken: dict[int, dict[int, float]]) -> tuple[list[float], list[float]]:
    """Seconds of the steps that count, and of those that a later attempt did again."""
    counted: list[float] = []
    lost: list[float] = []
    again = float("inf")
    for number in sorted(taken, reverse=True):
        for step, seconds in taken[number].items():
            (counted if step < again else lost).append(seconds)
        again = min([again, *taken[number]])
    return counted, lost
