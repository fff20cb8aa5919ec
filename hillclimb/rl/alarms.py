"""Signals that a climb goes wrong: which are out of bounds, and what was seen of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite, isnan
from statistics import median
from typing import TYPE_CHECKING, Any

from hillclimb.recipe.climb import Signal

if TYPE_CHECKING:
    from hillclimb.rl.stop import Stop

NORMS = 20
FEWEST_NORMS = 5


@dataclass(frozen=True)
class Gauge:
    """One signal: its column in `metrics.jsonl`, and its limits by their names in `StopRule`."""

    signal: Signal
    column: str
    says: str
    high: str
    low: str | None = None
    form: str = "{:.1%}"
    unit: str = ""

    def written(self, value: float) -> str:
        """A value of the signal, without its unit."""
        return self.form.format(value)


NATS = {"form": "{:.3g}", "unit": " nats a token"}
GAUGES = (
    Gauge("mismatch", "mismatch", "engine and learner differ by", "max_mismatch", **NATS),
    Gauge("entropy", "entropy", "the entropy is", "max_entropy", "min_entropy", **NATS),
    Gauge("truncation", "truncated_share", "rollouts that hit the length limit:",
          "max_truncated_share"),
    Gauge("reward_hack", "hacked_share", "rollouts that set off a canary:", "max_hacked_share"),
    Gauge("disagreement", "disagreement", "rollouts that judge and verifier see differently:",
          "max_disagreement"),
    Gauge("gradient", "grad_norm_ratio", "the gradient's norm is", "max_gradient_ratio",
          form="{:.3g}", unit=" times its running median"),
)  # fmt: skip


@dataclass(frozen=True)
class Alarm:
    """What a signal did in a climb.

    Attributes:
        halts: whether it ends the climb; else it warns.
        steps: gradient steps at which it was out of bounds; `first` of them, None for none.
        sentence: the worst that was seen, and the limit.
    """

    signal: str
    halts: bool
    steps: int
    first: int | None
    sentence: str


def out_of_bounds(row: dict[str, float], rule: dict[str, Any], gauge: Gauge) -> str | None:
    """A sentence where a row's value is beyond a limit, or is no number; None where it is not."""
    value = row[gauge.column]
    if gauge.low is not None and value < rule[gauge.low]:
        return _told(gauge, value, "under", rule[gauge.low])
    if not value <= rule[gauge.high]:
        return _told(gauge, value, "over", rule[gauge.high])
    return None


def alarms(
    rows: list[dict[str, float]], rule: dict[str, Any], stop: Stop | None = None
) -> list[dict[str, Any]]:
    """Every signal over the rows of `metrics.jsonl`, as `Alarm`s in JSON.

    Args:
        stop: why the climb ended: a signal may halt it in an update that made no step.
    """
    found = [_alarm(rows, rule, gauge) for gauge in GAUGES]
    return [
        asdict(replace(alarm, steps=1, first=max(1, stop.step), sentence=stop.sentence))
        if stop and stop.reason == alarm.signal and not alarm.steps
        else asdict(alarm)
        for alarm in found
    ]


def norm_ratio(norms: Sequence[float], norm: float) -> float:
    """A gradient norm over the median of up to the last `NORMS`; 1 while there are too few."""
    known = [value for value in norms[-NORMS:] if isfinite(value)]
    middle = median(known) if len(known) >= FEWEST_NORMS else 0.0
    return norm / middle if middle > 0 else 1.0


def _alarm(rows: list[dict[str, float]], rule: dict[str, Any], gauge: Gauge) -> Alarm:
    told = [(step, out_of_bounds(row, rule, gauge)) for step, row in enumerate(rows, start=1)]
    out = [(step, sentence) for step, sentence in told if sentence is not None]
    if out:
        sentence = max(out, key=lambda entry: _excess(rows[entry[0] - 1], rule, gauge))[1]
    else:
        sentence = _quiet([row[gauge.column] for row in rows], gauge)
    first = out[0][0] if out else None
    return Alarm(gauge.signal, gauge.signal in rule["halt"], len(out), first, sentence)


def _excess(row: dict[str, float], rule: dict[str, Any], gauge: Gauge) -> float:
    """How far a value is beyond a limit."""
    value = row[gauge.column]
    if isnan(value):
        return float("inf")
    under = rule[gauge.low] - value if gauge.low is not None else 0.0
    return float(max(value - rule[gauge.high], under))


def _told(gauge: Gauge, value: float, side: str, limit: float) -> str:
    seen = f"{gauge.says} {gauge.written(value)}{gauge.unit}"
    return f"{seen}, {side} {gauge.written(limit)}"


def _quiet(values: list[float], gauge: Gauge) -> str:
    if not values:
        return "no gradient step was taken"
    least = f"{gauge.written(min(values))} to" if gauge.low is not None else "at most"
    return f"{gauge.says} {least} {gauge.written(max(values))}{gauge.unit}"
