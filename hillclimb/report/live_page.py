"""The live page: its frame, and the parts of it that change."""

from __future__ import annotations

from typing import Any

from hillclimb.recipe.climb import ClimbRecipe
from hillclimb.report.build import policy, static
from hillclimb.report.charts import draw
from hillclimb.report.climb_charts import climb_charts
from hillclimb.report.experiment import Row, number
from hillclimb.report.figure import Mark
from hillclimb.report.live import LiveClimbs, Look
from hillclimb.report.markup import Markup, count, decimal, duration, join, percent, si
from hillclimb.report.timeline import TONES, Round, Timeline
from hillclimb.rl.alarms import alarms

SILENT = 120.0


def script() -> str:
    """Everything that the page runs."""
    return static("common.js") + static("live.js")


def content_policy() -> str:
    """For the header of every answer: the page asks this server alone."""
    return policy(script()) + "; connect-src 'self'; frame-ancestors 'none'"


def frame(climbs: LiveClimbs) -> str:
    """The page before it has asked for anything."""
    return str(
        Markup(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            "<title>hillclimb live: {0}</title><style>{1}</style></head>\n<body>"
            '<a class="skip" href="#numbers">Skip to the numbers</a>{2}'
            "<script>{3}</script></body></html>\n"
        ).format(
            climbs.title,
            Markup(static("report.css")),
            Markup(static("live.html")).format(title=climbs.title),
            Markup(script()),
        )
    )


def state(climbs: LiveClimbs, asked: str | None) -> dict[str, Any]:
    """Everything that changes, as HTML or text: of the climb `asked` for, or of the one that spoke
    last."""
    begun = climbs.begun()
    name = asked if asked in begun else next(iter(begun), None)
    if name is None:
        return {"climbs": [], "climb": None}
    look = climbs.look(name)
    rule = look.spec.config["climb"]["stop"]
    found = [alarm for alarm in alarms(look.told.rows, rule) if alarm["steps"]]
    return {
        "climbs": [n for n in climbs.specs if n in begun],
        "climb": name,
        "state": str(_state(look)),
        "numbers": str(_numbers(look.told.rows)),
        "alarms": str(_alarms(found)),
        "figures": [str(figure) for figure in _figures(look, found)],
        "rollouts": climbs.latest(name),
    }


def _state(look: Look) -> Markup:
    told = look.told
    silent = look.heard is not None and look.heard > SILENT and look.state == "going on"
    parts = [Markup("<b>{}</b>").format(look.state)]
    if told.error and not look.made:
        parts.append(Markup("{}").format(told.error))
    if told.total:
        done, total = count(told.done), count(told.total)
        bar = Markup('<progress value="{}" max="{}"></progress>').format(told.done, told.total)
        parts.append(bar + Markup("step {} of at most {}").format(done, total))
    if look.heard is not None and not look.made:
        ago = Markup("heard {} ago").format(duration(look.heard))
        parts.append(Markup('<b class="fail">{}</b>').format(ago) if silent else ago)
    if told.attempts > 1:
        parts.append(Markup("attempt {}").format(told.attempts))
    if told.notes:
        parts.append(Markup("last said: {}").format(told.notes[-1]))
    return join(parts, " · ")


def _numbers(rows: list[Row]) -> Markup:
    last = rows[-1] if rows else {}

    def of(key: str) -> float | None:
        return number(last, key)

    facts = (
        ("pass rate", percent(of("pass_rate"))),
        ("tokens/s sampled", si(of("sampled_per_second"))),
        ("tokens/s learnt", si(of("learned_per_second"))),
        ("learner waited", percent(of("learner_waited"))),
        ("generation waited", percent(of("generation_waited"))),
        ("age of tokens, oldest", count(of("age"))),
        ("mean age", decimal(of("age_mean"), 2)),
        ("entropy", decimal(of("entropy"))),
        ("mismatch", decimal(of("mismatch"), 4)),
        ("truncated", percent(of("truncated_share"))),
        ("seconds an update", duration(of("seconds"))),
        ("weights", count(of("update"))),
    )
    return join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*fact) for fact in facts)


def _alarms(found: list[dict[str, Any]]) -> Markup:
    if not found:
        return Markup('<p class="note">No signal is out of bounds.</p>')
    return Markup('<ul class="stops warn">{}</ul>').format(
        join(
            Markup("<li><b>{}</b> at {} of its steps, first at {}{}: {}</li>").format(
                alarm["signal"], alarm["steps"], alarm["first"],
                ", halts" if alarm["halts"] else "", alarm["sentence"],
            )
            for alarm in found
        )
    )  # fmt: skip


def _figures(look: Look, found: list[dict[str, Any]]) -> list[Markup]:
    """The report's figures; nothing before the first step."""
    rows = look.told.rows
    if not rows:
        return []
    group = look.spec.group
    line = Timeline(group, [Round(look.spec.name, 0, rows, 0.0)])

    def raised(*signals: str) -> list[Mark]:
        return [
            Mark(rows[alarm["first"] - 1]["step"] - rows[0]["step"], alarm["signal"], TONES["stem"])
            for alarm in found
            if alarm["signal"] in signals
        ]

    recipe = ClimbRecipe.model_validate(look.spec.config["climb"])
    return [draw(chart) for chart in climb_charts(line, recipe, raised)]
