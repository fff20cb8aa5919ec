"""Goodput of the training stages: a bar of where each one's time went."""

from __future__ import annotations

from typing import Any

from hillclimb.report.experiment import Experiment
from hillclimb.report.markup import (
    MISSING,
    Markup,
    count,
    duration,
    fold,
    join,
    note,
    percent,
    stage_link,
    table,
)

KINDS = ("base_phase", "student", "consolidation", "climb")
PARTS = (
    ("ideal", "steps at the ideal", "g0"),
    ("slow_steps", "slow steps", "g1"),
    ("data", "data", "g2"),
    ("checkpoint", "checkpoints", "g3"),
    ("lost_steps", "lost steps", "g4"),
    ("restart", "restarts", "g5"),
    ("start", "start", "g6"),
    ("held_out", "held-out text", "g7"),
    ("finish", "finish", "g8"),
    ("other", "other", "g9"),
)
_NAMED, _LEAST = 3, 0.005


def section(experiment: Experiment) -> Markup:
    """Bars by stage, and the seconds behind them; empty before a training stage is made."""
    found = {
        name: account
        for kind in KINDS
        for name in experiment.of_kind(kind)
        if name in experiment.made and (account := experiment.json(name, "goodput.json"))
    }
    accounts = {name: found[name] for name in experiment.made if name in found}
    if not accounts:
        return Markup("")
    rows = [_row(name, account) for name, account in accounts.items()]
    heads = ["stage", "goodput", "where the time went", "largest stalls", "attempts", "steps",
             "done again"]  # fmt: skip
    return Markup("<h3>Goodput</h3>{}{}{}{}").format(
        _legend(),
        table(heads, rows, "Goodput by training stage", left=4),
        note(
            "Goodput is the ideal over the actual time, from the start of the first process to the "
            "end of the last one. Ideal is the median time of a step times the steps that count; "
            "fine-tuning and climbs, whose steps differ in work, are held against the time that "
            "their steps took. The seconds until a short stage begins weigh on it most."
        ),
        fold("The seconds", _seconds(accounts)),
    )


def _row(name: str, account: dict[str, Any]) -> list[Markup | str]:
    return [
        stage_link(name),
        percent(account["goodput"]),
        _bar(account),
        _largest(account),
        count(account["attempts"]),
        count(account["steps"]),
        count(account["steps_again"]),
    ]


def _seconds_of(account: dict[str, Any], part: str) -> float:
    return float(account["ideal_seconds"] if part == "ideal" else account["stalls"][part])


def _bar(account: dict[str, Any]) -> Markup:
    actual = account["actual_seconds"] or 1.0
    return Markup('<span class="split" aria-hidden="true">{}</span>').format(
        join(
            Markup('<i class="{}" style="width:{}%" title="{}"></i>').format(
                class_, round(100 * seconds / actual, 2), f"{said} {duration(seconds)}"
            )
            for part, said, class_ in PARTS
            if (seconds := _seconds_of(account, part)) / actual >= _LEAST
        )
    )


def _largest(account: dict[str, Any]) -> Markup:
    actual = account["actual_seconds"] or 1.0
    shares = [(account["stalls"][part] / actual, said) for part, said, _ in PARTS[1:]]
    ranked = sorted((pair for pair in shares if pair[0] >= _LEAST), reverse=True)[:_NAMED]
    said = [Markup("<span>{} {}</span>").format(name, percent(share)) for share, name in ranked]
    return Markup('<span class="stalls">{}</span>').format(join(said, ", ") or MISSING)


def _legend() -> Markup:
    return Markup('<p class="legend split-legend">{}</p>').format(
        join(Markup('<span><i class="{}"></i>{}</span>').format(c, said) for _, said, c in PARTS)
    )


def _seconds(accounts: dict[str, dict[str, Any]]) -> Markup:
    rows = [
        [
            stage_link(name),
            duration(account["actual_seconds"]),
            *(duration(_seconds_of(account, part)) for part, _, _ in PARTS),
        ]
        for name, account in accounts.items()
    ]
    heads = ["stage", "actual", *(said for _, said, _ in PARTS)]
    return table(heads, rows, "Seconds by part")
