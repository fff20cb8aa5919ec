"""Documents: read from sources, filtered, deduplicated, written as a corpus.

>>> write_raw(read_sources(recipe.sources, generators), "raw")
>>> scorer = HashedNgramScorer.load()
>>> filter_corpus(read_raw("raw"), recipe, evaluation_texts, scorer, "corpus")
>>> texts = [document.text for document in iter_documents("corpus")]
"""

from __future__ import annotations

from hillclimb.corpus.ai_text import AITextScorer, HashedNgramScorer
from hillclimb.corpus.funnel import filter_corpus
from hillclimb.corpus.rows import Document, FunnelReport, Quarantined, RawDocument, StepReport
from hillclimb.corpus.sources import SourceError, read_sources
from hillclimb.corpus.store import iter_documents, read_raw, write_raw

__all__ = [
    "AITextScorer",
    "Document",
    "FunnelReport",
    "HashedNgramScorer",
    "Quarantined",
    "RawDocument",
    "SourceError",
    "StepReport",
    "filter_corpus",
    "iter_documents",
    "read_raw",
    "read_sources",
    "write_raw",
]
