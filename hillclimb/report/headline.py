"""The first screen: what was made, from what, how far it is, and how well it does."""

from __future__ import annotations

from hillclimb.recipe.climb import SPECIALISTS
from hillclimb.recipe.graph import checkpoints
from hillclimb.report import climbs, scores
from hillclimb.report.base import trained_tokens
from hillclimb.report.corpus import read_steps
from hillclimb.report.cost import read_costs
from hillclimb.report.experiment import Experiment, parameter_count
from hillclimb.report.markup import Markup, count, duration, fold, join, pending, si
from hillclimb.report.rollouts import Block
from hillclimb.scaling.counts import count_parameters


def model_size(experiment: Experiment) -> tuple[int, int] | None:
    """Total and active parameters, from a checkpoint's weights; None before there is one."""
    for name in checkpoints(experiment.specs):
        if name in experiment.made:
            total = parameter_count(experiment.made[name])
            if total:
                return total, total - idle_parameters(experiment)
    return None


def idle_parameters(experiment: Experiment) -> int:
    """Expert weights that one token does not pass through."""
    counted = count_parameters(experiment.recipe.model, experiment.recipe.tokenizer.vocab_size)
    return counted.experts - counted.active_experts


def section(experiment: Experiment, blocks: list[Block]) -> Markup:
    """Title, facts, scores and the curve."""
    return Markup(
        '<header id="top"><p class="kicker">hillclimb · recipe {} · seed {}</p><h1>{}</h1>'
        '{}<dl class="facts">{}</dl>{}</header>'
        '<section id="scores" aria-labelledby="h-scores"><h2 id="h-scores">Scores on held-out '
        "problems</h2>{}{}</section>"
        '<section id="curve" aria-labelledby="h-curve"><h2 id="h-curve">The climb</h2>{}</section>'
    ).format(
        experiment.recipe.name,
        experiment.seed,
        _title(experiment),
        _progress(experiment),
        join(_facts(experiment, blocks)),
        _absent(experiment),
        scores.tiles(experiment),
        _every_score(experiment),
        climbs.overview(experiment),
    )


def _title(experiment: Experiment) -> str:
    found = model_size(experiment)
    size_ = f" of {si(found[0])} parameters" if found else ""
    if "mai_thinking" in experiment.made:
        return f"A reasoning model{size_}, made from raw documents"
    if any(experiment.climbs(name)[0] in experiment.made for name in SPECIALISTS):
        return f"A model{size_}, on its climb"
    return f"A base model{size_} in the making" if found else "A climb that has just begun"


def _progress(experiment: Experiment) -> Markup:
    made, wanted = len(experiment.made), len(experiment.specs)
    if made == wanted:
        return Markup("")
    missing = [name for name in experiment.specs if name not in experiment.made]
    return Markup(
        '<div class="progress"><progress value="{0}" max="{1}" aria-label="Stages made"></progress>'
        " <b>{0} of {1} stages are made.</b>{2}</div>"
    ).format(made, wanted, fold("Those to come", pending(missing)))


def _facts(experiment: Experiment, blocks: list[Block]) -> list[Markup]:
    facts = []
    steps = read_steps(experiment) if "filtered_corpus" in experiment.made else []
    if steps:
        read = steps[0]["kept"] + steps[0]["dropped"]
        facts.append(("documents kept", f"{count(steps[-1]['kept'])} of {count(read)}"))
    found = model_size(experiment)
    if found:
        facts.append(("parameters", f"{si(found[0])}, {si(found[1])} active"))
    trained = sum(trained_tokens(experiment, name) for name in experiment.of_kind("base_phase"))
    if trained:
        facts.append(("base training", f"{si(trained)} tokens"))
    if blocks:
        facts.append(("rollouts kept", count(sum(block.total for block in blocks))))
    if experiment.made:
        seconds = sum(cost.seconds for cost in read_costs(experiment))
        facts.append(("time in stages", duration(seconds)))
    return [Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*fact) for fact in facts]


def _absent(experiment: Experiment) -> Markup:
    if not experiment.absent:
        return Markup("")
    items = join(Markup("<li>{}</li>").format(sentence) for sentence in experiment.absent)
    return Markup('<div class="warn"><b>Missing in the artifacts</b><ul>{}</ul></div>').format(
        items
    )


def _every_score(experiment: Experiment) -> Markup:
    found = scores.full_table(experiment)
    return (
        Markup("<details><summary>Every checkpoint on every domain</summary>{}</details>").format(
            found
        )
        if found
        else found
    )
