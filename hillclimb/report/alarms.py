"""Why each climb ended, and the signals that left their bounds on the way."""

from __future__ import annotations

from typing import Any

from hillclimb.report.experiment import Experiment
from hillclimb.report.figure import Mark
from hillclimb.report.markup import MISSING, Markup, join
from hillclimb.report.timeline import Round, Timeline
from hillclimb.self_distillation import PERSON

TONE = 7


def stops(experiment: Experiment, line: Timeline) -> Markup:
    """One line a round that ended, and after it one for each signal that was out of bounds."""
    said = []
    for round_ in line.rounds:
        if stop := experiment.json(round_.name, "stop.json"):
            person = "; this waits for a person" if stop.get("reason") in PERSON else ""
            said.append(
                Markup("<li><b>Round {} ended</b> ({}): {}{}</li>").format(
                    round_.index, stop.get("reason", MISSING), stop.get("sentence", ""), person
                )
            )
        said += [_alarm(round_, alarm) for alarm in _raised(experiment, round_)]
    return Markup('<ul class="stops">{}</ul>').format(join(said)) if said else Markup("")


def marks(experiment: Experiment, line: Timeline, *signals: str) -> list[Mark]:
    """A mark where one of these signals left its bounds for the first time in a round."""
    return [
        Mark(round_.offset + alarm["first"] - 1, f"alarm: {alarm['signal']}", TONE)
        for round_ in line.rounds
        for alarm in _raised(experiment, round_)
        if alarm["signal"] in signals
    ]


def _alarm(round_: Round, alarm: dict[str, Any]) -> Markup:
    return Markup("<li><b>Round {} {}</b> ({}, {} of {} steps): {}</li>").format(
        round_.index,
        "was halted by a signal" if alarm["halts"] else "raised an alarm",
        alarm["signal"],
        alarm["steps"],
        len(round_.rows),
        alarm["sentence"],
    )


def _raised(experiment: Experiment, round_: Round) -> list[dict[str, Any]]:
    """The signals of a round that were out of bounds at least once."""
    recorded = experiment.made[round_.name].manifest.summary.get("alarms", [])
    return [alarm for alarm in recorded if alarm["steps"]]
