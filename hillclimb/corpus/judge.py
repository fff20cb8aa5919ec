"""Everything that is asked of one document, in order; runs in worker processes."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

from hillclimb.corpus.decontamination import EvaluationIndex
from hillclimb.corpus.dedup import Fingerprint, Signer, exact_digest
from hillclimb.corpus.extraction import decode, html_to_text, normalise
from hillclimb.corpus.filters import BlocklistStep, Drop, LanguageStep, QualityStep
from hillclimb.corpus.ngrams import hash_words
from hillclimb.corpus.rows import Document, Quarantined, RawDocument
from hillclimb.recipe.corpus import CorpusRecipe

STEPS = ("extraction", "blocklist", "language", "quality", "decontamination")
_BATCH_DOCUMENTS = 64
_BATCH_CHARS = 1 << 20
_MIN_IDENTIFIABLE = 20


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the steps said of a document.

    `drop` and `step` are set where one of `STEPS` dropped it, `fingerprint` where none did.
    """

    document: Document
    chars_raw: int
    generated: bool
    step: str = ""
    drop: Drop | None = None
    fingerprint: Fingerprint | None = None


class Judge:
    """The steps in order, the cheap ones first.

    Args:
        recipe: thresholds, and the sources in order of priority.
        evaluation_texts: items by evaluation set.
    """

    def __init__(self, recipe: CorpusRecipe, evaluation_texts: Mapping[str, Sequence[str]]) -> None:
        self._priority = {source.name: index for index, source in enumerate(recipe.sources)}
        self._declared = {source.name: source.language for source in recipe.sources}
        self._skip_language = recipe.language.skip
        self._blocklist = BlocklistStep(recipe.blocklist)
        self._language = LanguageStep(recipe.language)
        self._quality = QualityStep(recipe.quality)
        self._signer = Signer(recipe.minhash)
        self.index = EvaluationIndex(evaluation_texts, recipe.decontamination)

    def judge(self, raw: RawDocument) -> Judgement | Quarantined:
        """Take one document through the steps until one drops it."""
        try:
            text = raw.text if isinstance(raw.text, str) else decode(raw.text)
            text = normalise(html_to_text(text) if raw.html else text)
        except (ValueError, RuntimeError) as error:
            locator = str(raw.provenance["locator"])
            return Quarantined(raw.source, locator, f"markup cannot be parsed: {error}"[:200])
        size = len(raw.text)
        if not text.strip():
            return self._dropped(raw, text, raw.language, "extraction", Drop("no_text"))
        url = str(raw.provenance.get("url", ""))
        if drop := self._blocklist.judge(text, url):
            return self._dropped(raw, text, raw.language, "blocklist", drop)
        language, drop = self._identify(raw, text)
        if drop:
            return self._dropped(raw, text, language, "language", drop)
        if drop := self._quality.judge(text, raw.category, language, raw.generated):
            return self._dropped(raw, text, language, "quality", drop)
        words = hash_words(text)
        if match := self.index.match(words):
            drop = Drop("contaminated", f"{match.overlap:.2f} of {match.item}")
            return self._dropped(raw, text, language, "decontamination", drop)
        signed = None if raw.generated else self._signer.sign(words)
        fingerprint = Fingerprint(
            id=raw.id,
            priority=self._priority.get(raw.source, len(self._priority)),
            chars=len(text),
            digest=exact_digest(text),
            signature=signed[0] if signed else None,
            sampled=signed[1] if signed else None,
        )
        document = _document(raw, text, language)
        return Judgement(document, size, raw.generated, fingerprint=fingerprint)

    def _identify(self, raw: RawDocument, text: str) -> tuple[str, Drop | None]:
        skipped = raw.category in self._skip_language or raw.generated
        if skipped or sum(map(str.isalpha, text[:200])) < _MIN_IDENTIFIABLE:
            return raw.language, None
        language, probability = self._language.identify(text)
        declared = self._declared.get(raw.source, ())
        return language, self._language.judge(language, probability, declared)

    def _dropped(
        self, raw: RawDocument, text: str, language: str, step: str, drop: Drop
    ) -> Judgement:
        document = _document(raw, text, language)
        return Judgement(document, len(raw.text), raw.generated, step, drop)


def _document(raw: RawDocument, text: str, language: str) -> Document:
    return Document(
        id=raw.id,
        text=text,
        source=raw.source,
        category=raw.category,
        kind=raw.kind,
        licence=raw.licence,
        language=language,
        provenance=raw.provenance,
    )


Batch = list[Judgement | Quarantined]


def judged(judge: Judge, items: Iterable[RawDocument]) -> Iterator[Batch]:
    """Batches of judgements in this process, in order."""
    for batch in _batches(items):
        yield [judge.judge(raw) for raw in batch]


def judged_in_parallel(
    recipe: CorpusRecipe,
    evaluation_texts: Mapping[str, Sequence[str]],
    items: Iterable[RawDocument],
    workers: int,
) -> Iterator[Batch]:
    """The same batches in the same order, made by `workers` processes.

    At most four batches per worker are under way, so that memory stays bounded.
    """
    context = multiprocessing.get_context("spawn")
    waiting: deque[Future[Batch]] = deque()
    with ProcessPoolExecutor(
        workers, context, initializer=_start, initargs=(recipe, dict(evaluation_texts))
    ) as pool:
        for batch in _batches(items):
            waiting.append(pool.submit(_work, batch))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batches(items: Iterable[RawDocument]) -> Iterator[list[RawDocument]]:
    batch: list[RawDocument] = []
    chars = 0
    for raw in items:
        batch.append(raw)
        chars += len(raw.text)
        if len(batch) >= _BATCH_DOCUMENTS or chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


_judges: list[Judge] = []


def _start(recipe: CorpusRecipe, evaluation_texts: Mapping[str, Sequence[str]]) -> None:
    _judges.append(Judge(recipe, evaluation_texts))


def _work(batch: list[RawDocument]) -> Batch:
    return [_judges[0].judge(raw) for raw in batch]
