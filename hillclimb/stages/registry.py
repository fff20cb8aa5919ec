"""Which function makes which kind of artifact; imported only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from hillclimb.stages.context import Context

KINDS = {
    "problems": "hillclimb.stages.problems:make_problems_stage",
    "raw_documents": "hillclimb.stages.documents:make_raw_documents",
    "ai_text_detector": "hillclimb.stages.documents:make_ai_text_detector",
    "filtered_corpus": "hillclimb.stages.documents:make_filtered_corpus",
    "tokenizer": "hillclimb.stages.tokens:make_tokenizer",
    "mixture": "hillclimb.stages.tokens:make_mixture",
    "base_phase": "hillclimb.stages.base:make_base_phase",
    "climb": "hillclimb.stages.climb:make_climb",
    "traces": "hillclimb.stages.distil:make_traces",
    "student": "hillclimb.stages.distil:make_student",
    "consolidation": "hillclimb.stages.consolidation:make_consolidation",
    "scorecard": "hillclimb.stages.score:make_scorecard",
    "model_card": "hillclimb.stages.card:make_model_card",
}


def stage_function(kind: str) -> Callable[[Context], None]:
    """The function that makes `kind`.

    Raises:
        ValueError: for a kind that does not exist, naming those that do.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no stage of kind {kind!r}; the kinds are {', '.join(KINDS)}")
    module, name = KINDS[kind].split(":")
    function: Callable[[Context], None] = getattr(importlib.import_module(module), name)
    return function
