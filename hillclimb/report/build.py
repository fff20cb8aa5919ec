"""The report: one HTML file that holds everything and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from hillclimb.recipe.schema import Recipe
from hillclimb.report import base, climbs, corpus, cost, graph, headline, lineage
from hillclimb.report.experiment import Experiment
from hillclimb.report.markup import Markup, count, join, note, pending
from hillclimb.report.rollouts import Block, pack

SECTIONS: tuple[tuple[str, str, str, Callable[[Experiment], Markup]], ...] = (
    ("climbs", "Climbs", "Reinforcement learning from graded rollouts, one specialist at a time.",
     climbs.section),
    ("base", "Base training", "Three phases at growing sequence length, on the filtered corpus.",
     base.section),
    ("corpus", "Corpus", "What was read, what each filter dropped and why, and what was "
     "trained on.", corpus.section),
    ("cost", "Cost", "Where the time went.", cost.section),
    ("graph", "Graph", "Every stage and what it is made from. The tokenizer, the problem sets and "
     "the scored checkpoints feed many: choose a box to see all its lines.", graph.draw_graph),
    ("lineage", "Lineage", "Every artifact with its fingerprint, inputs, config and files.",
     lineage.section),
)  # fmt: skip


def build_report(root: str, recipe: Recipe, seed: int, output: Path) -> Path:
    """Write the report of the experiment (`recipe`, `seed`) whose artifacts live under `root`.

    Stages that are not made yet are shown as such, so that a climb can be watched on its way.
    The same artifacts give the same bytes.

    Raises:
        ArtifactError: if a rollout file is not in the expected form.
    """
    experiment = Experiment.read(root, recipe, seed)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    partial.write_text(page(experiment, pack(experiment)), encoding="utf-8", newline="\n")
    return partial.replace(output)


def page(experiment: Experiment, blocks: list[Block]) -> str:
    """The whole file as text."""
    sections = [
        Markup('<section id="{0}" aria-labelledby="h-{0}"><h2 id="h-{0}">{1}</h2>'
               '<p class="lead">{2}</p>{3}</section>').format(id_, title, lead, make(experiment))
        for id_, title, lead, make in SECTIONS
    ]  # fmt: skip
    browser = _browser(experiment, blocks)
    first = headline.section(experiment, blocks)
    script = static("common.js") + static("report.js")
    return str(
        Markup(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta http-equiv="Content-Security-Policy" content="{}">'
            '<meta name="color-scheme" content="light dark"><title>{}</title>'
            "<style>{}</style></head>\n<body>{}<main>{}{}\n{}</main>{}"
            "<script>{}</script></body></html>\n"
        ).format(
            policy(script),
            f"hillclimb: {experiment.recipe.name}, seed {experiment.seed}",
            Markup(static("report.css")),
            _navigation(),
            first,
            join([sections[0], browser], "\n"),
            join(sections[1:], "\n"),
            _footer(),
            Markup(script),
        )
    )


def static(name: str) -> str:
    """A file of the pages."""
    return resources.files("hillclimb.report").joinpath("static", name).read_text("utf-8")


def policy(script: str) -> str:
    """A Content-Security-Policy without a network: only the page's own script may run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def _navigation() -> Markup:
    links = [("scores", "Scores"), ("curve", "Curve"), ("climbs", "Climbs"),
             ("rollouts", "Rollouts"), *((s[0], s[1]) for s in SECTIONS[1:])]  # fmt: skip
    return Markup(
        '<a class="skip" href="#scores">Skip to the scores</a>'
        '<nav aria-label="Sections"><a class="brand" href="#top">hillclimb</a>{}</nav>'
    ).format(join(Markup('<a href="#{}">{}</a>').format(*link) for link in links))


def _browser(experiment: Experiment, blocks: list[Block]) -> Markup:
    head = Markup(
        '<section id="rollouts" aria-labelledby="h-rollouts"><h2 id="h-rollouts">Rollouts</h2>'
    )
    if not blocks:
        return head + pending(experiment.of_kind("climb")) + Markup("</section>")
    total, shown = (sum(getattr(b, key) for b in blocks) for key in ("total", "shown"))
    said = f"All {count(total)} rollouts that the climbs kept."
    if shown < total:
        said = (
            f"{count(shown)} of {count(total)} rollouts: whole groups, the same share of every "
            "climb, picked by a hash. The parquet files under rollouts/ of each climb hold all."
        )
    if told := sum(block.told for block in blocks):
        said += (
            f" {count(told)} show their tokens, each with the gap between the learner's and the "
            "engine's log-probability; the files under tokens/ hold all that were learnt from."
        )
    data = join(
        Markup(
            '<script type="application/octet-stream" class="block" data-climb="{}" '
            'data-total="{}" data-shown="{}">{}</script>'
        ).format(block.climb, block.total, block.shown, block.text)
        for block in blocks
    )
    return Markup("{}<p class=lead>{}</p>{}{}</section>").format(
        head, said, Markup(static("rollouts.html")), data
    )


def _footer() -> Markup:
    return Markup("<footer>{}</footer>").format(
        note("Made by hillclimb from the artifacts alone. This file works offline.")
    )
