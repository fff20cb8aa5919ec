"""The climbs: pass rate first, then everything that can go wrong beside it."""

from __future__ import annotations

from functools import partial

from hillclimb.recipe.climb import SPECIALISTS, ClimbRecipe
from hillclimb.report import alarms, students
from hillclimb.report.charts import draw
from hillclimb.report.climb_charts import climb_charts, pass_rate
from hillclimb.report.experiment import Experiment, column
from hillclimb.report.figure import Chart, Panel, Series
from hillclimb.report.markup import (
    Markup,
    decimal,
    duration,
    join,
    pending,
    percent,
    stage_link,
    table,
)
from hillclimb.report.scores import Scores, read_scores
from hillclimb.report.timeline import GROUPS, TITLES, TONES, Timeline


def overview(experiment: Experiment) -> Markup:
    """Pass rate of the three specialists side by side, then of the final climb."""
    lines = {group: Timeline.read(experiment, group) for group in GROUPS}
    if not any(line.rounds for line in lines.values()):
        return pending(experiment.of_kind("climb"))
    scores = read_scores(experiment)
    longest = max((lines[g].steps for g in GROUPS[:-1]), default=0.0)
    series, dots, marks = [], [], []
    for group in GROUPS:
        shift = 0.0 if group != "final" else longest * 1.04
        series += pass_rate(lines[group], TITLES[group], TONES[group], shift)
        dots += _held_out(lines[group], scores, shift)
        name = TITLES[group].split(" ")[0]
        marks += lines[group].marks(shift, TONES[group], f"{name}: self-distillation")
    final = lines["final"]
    zones = [(longest * 1.02, longest * 1.04 + final.steps, "final")] if final.rounds else []
    return draw(
        Chart(
            "Pass rate on the training problems",
            [Panel("pass rate", [*series, *dots], "share", 0, 1)],
            "gradient steps of each specialist, all rounds; the final climb follows",
            marks,
            zones,
            "Thin lines are single steps, thick lines a trailing mean; dots are sampled pass rates "
            "on the held-out problems, at the start and after every round. At a vertical line the "
            "climb was cut: its traces taught a fresh copy of the mid-trained model, and the "
            "climb went on from that student.",
            wide=True,
        )
    )


def _held_out(line: Timeline, scores: Scores, shift: float) -> list[Series]:
    """Held-out pass rates at the start and the end of every round, one series a domain."""
    out = []
    for domain in SPECIALISTS if line.group == "final" else (line.group,):
        points = [] if shift else [(0.0, scores.get("mai_base_256k", {}).get(domain))]
        points += [(round_.end - 1, scores.get(round_.name, {}).get(domain))
                   for round_ in line.rounds]  # fmt: skip
        known = [(x + shift, score.sampled) for x, score in points if score]
        xs, ys = [x for x, _ in known], [y for _, y in known]
        out.append(Series("held-out", xs, ys, TONES[domain], "dots"))
    return out


def section(experiment: Experiment) -> Markup:
    """One tab a specialist, one for the final climb."""
    tabs, panels = [], []
    for group in GROUPS:
        tabs.append(
            Markup('<a role="tab" id="tab-{0}" href="#climb-{0}" class="t{1}">{2}</a>').format(
                group, TONES[group], TITLES[group]
            )
        )
        panels.append(
            Markup(
                '<div role="tabpanel" id="climb-{0}" aria-labelledby="tab-{0}">'
                "<h3>{1}</h3>{2}</div>"
            ).format(group, TITLES[group], _climb(experiment, group))
        )
    return Markup(
        '<div class="tabs"><div role="tablist" aria-label="Climbs">{}</div>{}</div>'
    ).format(join(tabs), join(panels))


def _climb(experiment: Experiment, group: str) -> Markup:
    line = Timeline.read(experiment, group)
    missing = [name for name in experiment.climbs(group) if name not in experiment.made]
    waiting = pending(missing) if missing else Markup("")
    if not line.rounds:
        return waiting
    config = experiment.specs[line.rounds[-1].name].config["climb"]
    raised = partial(alarms.marks, experiment, line)
    figures = climb_charts(line, ClimbRecipe.model_validate(config), raised)
    figures = [*figures, *students.chart(experiment, group, TONES[group])]
    charts = join(draw(figure) for figure in figures)
    return Markup('{}{}{}{}<div class="grid2">{}</div>').format(
        waiting,
        _rounds(experiment, line),
        alarms.stops(experiment, line),
        students.tables(experiment, group),
        charts,
    )


def _rounds(experiment: Experiment, line: Timeline) -> Markup:
    rows = []
    for round_ in line.rounds:
        window = max(1, len(round_.rows) // 10)
        rates = [rate for rate in column(round_.rows, "pass_rate") if rate is not None]
        run = experiment.made[round_.name].manifest.run
        config = experiment.specs[round_.name].config["climb"]
        rows.append(
            [
                stage_link(round_.name),
                str(len(round_.rows)),
                percent(_mean(rates[:window])),
                percent(_mean(rates[-window:])),
                decimal(_mean(_last(column(round_.rows, "entropy"), window))),
                f"{config['learning_rate']:g}",
                duration(run.get("seconds")),
            ]
        )
    heads = ["round", "steps", "pass, first tenth", "pass, last tenth", "entropy at the end",
             "learning rate", "time"]  # fmt: skip
    return table(heads, rows, f"Rounds: {TITLES[line.group]}")


def _last(values: list[float | None], window: int) -> list[float]:
    return [value for value in values[-window:] if value is not None]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
