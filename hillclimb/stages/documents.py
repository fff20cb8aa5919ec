"""From sources to a clean corpus."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hillclimb.corpus import (
    HashedNgramScorer,
    filter_corpus,
    read_raw,
    read_sources,
    write_raw,
)
from hillclimb.environments.tasks import WORKSHEETS, worksheet_rows
from hillclimb.recipe.climb import SPECIALISTS
from hillclimb.recipe.corpus import CorpusRecipe, WorksheetsSource
from hillclimb.stages.context import Context
from hillclimb.stages.tables import read_rows

WORKERS = 2


def make_raw_documents(context: Context) -> None:
    """Read every source; unreadable rows go to quarantine with a reason."""
    corpus = CorpusRecipe.model_validate(context.config["corpus"])
    context.reporter.log(f"reading {len(corpus.sources)} sources")
    with context.out.local("raw") as folder:
        counts = write_raw(read_sources(corpus.sources, _generators(), corpus.limits), str(folder))
    sources = counts["sources"]
    context.commit(
        {
            "documents": sum(s["documents"] for s in sources.values()),
            "characters": sum(s["chars"] for s in sources.values()),
            "quarantined": sum(s["quarantined"] for s in sources.values()),
        },
        counts,
    )


def make_ai_text_detector(context: Context) -> None:
    """Keep the scorer's weights and card as an artifact, so that the corpus says what judged it."""
    scorer = HashedNgramScorer.load()
    with context.out.local("scorer") as folder:
        scorer.save(folder)
    card = dict(scorer.card)
    context.commit(
        {
            "auc": card["test"]["auc"],
            "auc_domains_with_both_labels": card["test"]["auc_domains_with_both_labels"],
        },
        {"test": card["test"], "limits": card["limits"]},
    )


def make_filtered_corpus(context: Context) -> None:
    """Filter, deduplicate and decontaminate against every evaluation set of the recipe."""
    recipe = CorpusRecipe.model_validate(context.config["corpus"])
    raw = context.input("raw").local("raw")
    scorer = HashedNgramScorer.load(context.input("detector").local("scorer"))
    evaluation = {name: _evaluation_texts(context, f"{name}_problems") for name in SPECIALISTS}
    with context.out.local("corpus") as folder:
        report = filter_corpus(read_raw(str(raw)), recipe, evaluation, scorer, str(folder), WORKERS)
        _flatten(context, Path(folder))
    last = report.steps[-1]
    context.commit(
        {
            "documents": last.kept,
            "characters": last.chars_out,
            "quarantined": sum(report.quarantined.values()),
        },
        {"funnel": {step.name: {"kept": step.kept, "dropped": step.dropped}
                    for step in report.steps}},
    )  # fmt: skip


def _flatten(context: Context, folder: Path) -> None:
    """Put the corpus's files at the artifact's top, where readers look for them."""
    for path in sorted(folder.iterdir()):
        with context.out.local(path.name) as target:
            shutil.move(path, target)
    folder.rmdir()


def _evaluation_texts(context: Context, role: str) -> list[str]:
    rows = read_rows(context.input(role), "held_out.parquet", ["question"])
    return [row["question"] for row in rows]


def _generators() -> Mapping[str, Callable[[WorksheetsSource, int], Iterable[dict[str, Any]]]]:
    return {kind: partial(_worksheets, kind) for kind in WORKSHEETS}


def _worksheets(kind: str, source: WorksheetsSource, count: int) -> Iterable[dict[str, Any]]:
    return worksheet_rows(WORKSHEETS[kind], count)
