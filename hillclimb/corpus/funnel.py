"""From raw documents to the clean corpus, with a report on every step."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import fsspec

from hillclimb.corpus.ai_text import AITextScorer, threshold
from hillclimb.corpus.dedup import Fingerprint, find_duplicates
from hillclimb.corpus.filters import Drop
from hillclimb.corpus.judge import STEPS, Batch, Judge, Judgement, judged, judged_in_parallel
from hillclimb.corpus.rows import Document, FunnelReport, Quarantined, RawDocument, StepReport
from hillclimb.corpus.store import (
    DOCUMENTS,
    QUARANTINE,
    ParquetShards,
    document_row,
    iter_documents,
    quarantine_row,
)
from hillclimb.recipe.corpus import AITextFilter, CorpusRecipe

AFTER = ("ai_text", "exact_dedup", "near_dedup", "containment_dedup")


def filter_corpus(
    items: Iterable[RawDocument | Quarantined],
    recipe: CorpusRecipe,
    evaluation_texts: Mapping[str, Sequence[str]],
    scorer: AITextScorer,
    folder: str,
    workers: int = 1,
) -> FunnelReport:
    """Filter, deduplicate and write the corpus.

    Writes `documents-*.parquet`, `quarantine-*.parquet` and `funnel.json` under `folder`. The
    bytes depend on the arguments alone, not on `workers`. Texts are held on disk between the
    per-document steps and deduplication; memory grows with the number of documents only.

    Args:
        items: what `read_sources` or `read_raw` yields.
        recipe: the steps' settings; the order of its sources is the priority in deduplication.
        evaluation_texts: items by evaluation set, which must not be in the corpus.
        scorer: of model-written text; called in this process.
        folder: a path or fsspec URI.
        workers: processes for the per-document steps.
    """
    funnel = _Funnel(recipe, scorer)
    judge = Judge(recipe, evaluation_texts)
    funnel.steps["decontamination"].notes = {
        "items": judge.index.items,
        "items_too_short_to_check": judge.index.too_short,
    }
    documents = funnel.take_quarantined(items)
    batches = (
        judged(judge, documents)
        if workers <= 1
        else judged_in_parallel(recipe, evaluation_texts, documents, workers)
    )
    with tempfile.TemporaryDirectory(prefix="hillclimb-corpus-") as scratch:
        with ParquetShards(scratch, "documents", DOCUMENTS) as spool:
            for document in funnel.judge(batches):
                spool.write(document_row(document), len(document.text))
        with ParquetShards(folder, "documents", DOCUMENTS) as shards:
            for document in funnel.deduplicate(iter_documents(scratch)):
                shards.write(document_row(document), len(document.text))
    with ParquetShards(folder, "quarantine", QUARANTINE) as bad:
        for item in funnel.quarantined:
            bad.write(quarantine_row(item), len(item.sample))
    report = funnel.report()
    _write_json(folder, "funnel.json", report.as_json())
    return report


class _Funnel:
    """Counts what goes through, applies the steps that need this process."""

    def __init__(self, recipe: CorpusRecipe, scorer: AITextScorer) -> None:
        self.recipe = recipe
        self.steps = {name: StepReport(name) for name in (*STEPS, *AFTER)}
        self.quarantined: list[Quarantined] = []
        self._ai = _AIText(recipe.ai_text, scorer)
        self._fingerprints: list[Fingerprint] = []
        self._read: dict[str, Counter[str]] = {}
        self._kept: dict[str, Counter[str]] = {}
        self._categories: dict[str, Counter[str]] = {}

    def take_quarantined(self, items: Iterable[RawDocument | Quarantined]) -> Iterator[RawDocument]:
        """Pass documents on, put the rest aside."""
        for item in items:
            if isinstance(item, Quarantined):
                self.quarantined.append(item)
            else:
                _count(self._read, item.source, len(item.text))
                yield item

    def judge(self, batches: Iterable[Batch]) -> Iterator[Document]:
        """Record judgements, score the survivors, pass on the documents that stay."""
        for batch in batches:
            survivors: list[Judgement] = []
            for judgement in batch:
                if isinstance(judgement, Quarantined):
                    self.quarantined.append(judgement)
                else:
                    self._record(judgement)
                    if judgement.drop is None:
                        survivors.append(judgement)
            for judgement, drop in zip(survivors, self._ai.judge(survivors), strict=True):
                document = judgement.document
                if drop:
                    self._drop("ai_text", document, drop)
                elif judgement.fingerprint:
                    self._keep("ai_text", document)
                    self._fingerprints.append(judgement.fingerprint)
                    yield document

    def deduplicate(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Drop duplicates, pass on and count what is left."""
        duplicates = find_duplicates(self._fingerprints, self.recipe.minhash)
        order = AFTER[1:]
        for document in documents:
            duplicate = duplicates.get(document.id)
            last = order.index(duplicate.step) if duplicate else len(order)
            for step in order[:last]:
                self._keep(step, document)
            if duplicate:
                self._drop(duplicate.step, document, Drop(document.source, duplicate.detail))
            else:
                _count(self._kept, document.source, len(document.text))
                _count(self._categories, document.category, len(document.text))
                yield document

    def _record(self, judgement: Judgement) -> None:
        document = judgement.document
        last = STEPS.index(judgement.step) if judgement.drop else len(STEPS)
        for step in STEPS[:last]:
            chars = judgement.chars_raw if step == "extraction" else len(document.text)
            self.steps[step].keep(chars, len(document.text))
        if judgement.drop:
            self._drop(judgement.step, document, judgement.drop)

    def _keep(self, step: str, document: Document) -> None:
        self.steps[step].keep(len(document.text), len(document.text))

    def _drop(self, step: str, document: Document, drop: Drop) -> None:
        report = self.steps[step]
        report.chars_in += len(document.text)
        report.drop(document.id, document.source, drop.reason, drop.detail, document.text)

    def report(self) -> FunnelReport:
        """Everything counted."""
        self.steps["ai_text"].notes = self._ai.notes()
        reasons = Counter(item.reason for item in self.quarantined)
        return FunnelReport(
            steps=list(self.steps.values()),
            read=_plain(self._read),
            kept=_plain(self._kept),
            by_category=_plain(self._categories),
            quarantined=dict(sorted(reasons.items())),
        )


class _AIText:
    """Drops documents whose score is over the threshold of their category's domain."""

    def __init__(self, config: AITextFilter, scorer: AITextScorer) -> None:
        self.config = config
        self.scorer = scorer
        self.scored = 0
        self.thresholds: dict[str, float] = {
            category: threshold(
                scorer.card, domain, config.per_domain.get(domain, config.max_false_positive_rate)
            )
            for category, domain in sorted(config.domains.items())
        }

    def judge(self, judgements: Sequence[Judgement]) -> list[Drop | None]:
        """One verdict per judgement; what is not eligible stays."""
        verdicts: list[Drop | None] = [None] * len(judgements)
        eligible = [i for i, judgement in enumerate(judgements) if self._eligible(judgement)]
        if not eligible:
            return verdicts
        size = self.config.sample_chars
        scores = self.scorer.score([judgements[i].document.text[:size] for i in eligible])
        for index, score in zip(eligible, scores.tolist(), strict=True):
            category = judgements[index].document.category
            limit = self.thresholds[category]
            if score > limit:
                verdicts[index] = Drop(f"ai_text_{category}", f"{score:.4f} over {limit:.4f}")
        self.scored += len(eligible)
        return verdicts

    def _eligible(self, judgement: Judgement) -> bool:
        document = judgement.document
        return (
            document.category in self.thresholds
            and document.language == "en"
            and not judgement.generated
            and len(document.text) >= self.config.min_chars
        )

    def notes(self) -> dict[str, object]:
        """How many were scored, against which thresholds."""
        limits = {category: round(limit, 4) for category, limit in self.thresholds.items()}
        return {"scored": self.scored, "thresholds": limits}


def _count(table: dict[str, Counter[str]], key: str, chars: int) -> None:
    table.setdefault(key, Counter()).update({"documents": 1, "chars": chars})


def _plain(table: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {key: dict(sorted(table[key].items())) for key in sorted(table)}


def _write_json(folder: str, name: str, value: object) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    with fsspec.open(f"{folder.rstrip('/')}/{name}", "wb") as stream:
        stream.write(text.encode())
