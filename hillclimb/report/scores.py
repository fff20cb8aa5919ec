"""Held-out scores of every checkpoint: sampled and greedy side by side, with standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hillclimb.recipe.climb import SPECIALISTS
from hillclimb.report.experiment import Experiment
from hillclimb.report.markup import MISSING, Markup, decimal, join, note, pending, stage_link, table
from hillclimb.report.timeline import TITLES, TONES

SHORT = {"consolidated_model": "consolidated", "mai_thinking": "final"}


@dataclass(frozen=True)
class Score:
    """Pass rates of one checkpoint on one domain's held-out problems."""

    sampled: float
    greedy: float
    n: int

    def error(self, rate: float) -> float:
        """Binomial standard error over the problems; an upper bound for the sampled rate."""
        return math.sqrt(max(rate * (1 - rate), 0.0) / self.n) if self.n else 0.0


Scores = dict[str, dict[str, Score]]


def read_scores(experiment: Experiment) -> Scores:
    """The scorecard as `{model: {domain: Score}}`, empty while it is not made."""
    card: dict[str, Any] = experiment.json("scorecard", "scorecard.json") or {}
    return {
        model: {
            domain: Score(float(s["pass_at_1"]), float(s["greedy"]), int(s["n"]))
            for domain, s in domains.items()
        }
        for model, domains in card.items()
    }


def stages_of(experiment: Experiment, domain: str) -> list[str]:
    """The checkpoints on the way from the base to the final model, as one domain sees them."""
    own = [
        name
        for name, spec in experiment.specs.items()
        if spec.group == domain and spec.kind in ("student", "climb")
    ]
    return ["mai_base_256k", *own, "consolidated_model", "mai_thinking"]


def label(model: str) -> str:
    """A checkpoint's name as the figure shows it."""
    if model.startswith("mai_base_"):
        return "base " + model.removeprefix("mai_base_").upper()
    if "/round_" in model:
        _, round_, kind = model.split("/")
        return f"{kind} {round_.removeprefix('round_')}"
    return SHORT.get(model, model)


def tiles(experiment: Experiment) -> Markup:
    """One figure a domain: from the base to the final model."""
    scores = read_scores(experiment)
    if not scores:
        return pending(["scorecard"])
    return Markup('<div class="scores">{}</div>{}').format(
        join(_tile(experiment, scores, domain) for domain in SPECIALISTS),
        note(
            "Bars: pass@1 of sampled answers; diamonds: greedy. Whiskers are one binomial "
            "standard error over the n held-out problems, √(p(1−p)/n), which bounds the sampled "
            "rate's from above."
        ),
    )


def _tile(experiment: Experiment, scores: Scores, domain: str) -> Markup:
    models = [m for m in stages_of(experiment, domain) if domain in scores.get(m, {})]
    if not models:
        return pending([domain])
    first, last = scores[models[0]][domain], scores[models[-1]][domain]
    rows = join(_row(model, scores[model][domain], TONES[domain]) for model in models)
    return Markup(
        '<figure class="tile t{}"><figcaption><b>{}</b><span class="big">{} → {}</span>'
        '<span>sampled</span><span class="mid">{} → {}</span><span>greedy</span>'
        '<span class="n">n = {}</span></figcaption>'
        '<div class="drow dhead" aria-hidden="true"><span></span><span></span>'
        '<span class="dval">sampled</span><span class="dval">greedy</span></div>'
        '<div class="dots">{}<div class="axis" aria-hidden="true"><span>0</span><span>.5</span>'
        "<span>1</span></div></div></figure>"
    ).format(
        TONES[domain],
        TITLES[domain],
        decimal(first.sampled, 2),
        decimal(last.sampled, 2),
        decimal(first.greedy, 2),
        decimal(last.greedy, 2),
        last.n,
        rows,
    )


def _row(model: str, score: Score, tone: int) -> Markup:
    sampled, greedy = score.error(score.sampled), score.error(score.greedy)
    said = (
        f"{label(model)}: sampled {score.sampled:.3f} ± {sampled:.3f}, "
        f"greedy {score.greedy:.3f} ± {greedy:.3f}"
    )
    return Markup(
        '<div class="drow" title="{0}"><span class="dname">{1}</span>'
        '<span class="dtrack"><svg viewBox="0 0 1000 26" preserveAspectRatio="none" role="img" '
        'aria-label="{0}">'
        '<rect class="bar t{2}" x="0" y="4" width="{3}" height="9"/>'
        '<path class="whisker" d="M{4} 8.5H{5}"/><path class="whisker g" d="M{6} 19H{7}"/></svg>'
        '<i class="diamond t{2}" style="--at:{8}"></i></span>'
        '<span class="dval">{9}</span><span class="dval soft">{10}</span></div>'
    ).format(
        said, label(model), tone, round(min(max(score.sampled, 0), 1) * 1000, 1),
        round(max(score.sampled - sampled, 0) * 1000, 1),
        round(min(score.sampled + sampled, 1) * 1000, 1),
        round(max(score.greedy - greedy, 0) * 1000, 1),
        round(min(score.greedy + greedy, 1) * 1000, 1),
        round(score.greedy, 4), decimal(score.sampled, 2), decimal(score.greedy, 2),
    )  # fmt: skip


def full_table(experiment: Experiment) -> Markup:
    """Every checkpoint on every domain."""
    scores = read_scores(experiment)
    if not scores:
        return Markup("")
    heads = ["model"]
    for domain in SPECIALISTS:
        heads += [f"{domain} sampled", f"{domain} greedy", "n"]
    rows = []
    for model in [*[m for m in experiment.specs if m in scores],
                  *sorted(set(scores) - set(experiment.specs))]:  # fmt: skip
        row: list[Markup | str] = [stage_link(model)]
        for domain in SPECIALISTS:
            score = scores[model].get(domain)
            if score is None:
                row += [MISSING] * 3
            else:
                row += [_rate(score, score.sampled), _rate(score, score.greedy), str(score.n)]
        rows.append(row)
    return table(heads, rows, "Held-out pass rates of every checkpoint")


def _rate(score: Score, rate: float) -> str:
    return f"{rate:.3f} ± {score.error(rate):.3f}"
