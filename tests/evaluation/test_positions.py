"""NLL by position against numbers worked out by hand."""

from __future__ import annotations

import numpy as np

from hillclimb.evaluation.positions import by_position, edges


def test_buckets_double_and_end_at_the_length() -> None:
    assert edges(512) == [0, 64, 128, 256, 512]
    assert edges(300) == [0, 64, 128, 256, 300]
    assert edges(32) == [0, 32]


def test_long_documents_alone_are_averaged_by_position() -> None:
    falling = np.concatenate((np.full(64, 4.0), np.full(64, 2.0), np.full(22, 1.0)))
    rows = by_position([falling, falling + 2, np.full(100, 9.0)], 256)
    assert rows == [
        {"start": 0, "end": 64, "nll": 5.0, "tokens": 128, "documents": 2},
        {"start": 64, "end": 128, "nll": 3.0, "tokens": 128, "documents": 2},
        {"start": 128, "end": 256, "nll": 2.0, "tokens": 44, "documents": 2},
    ]


def test_documents_shorter_than_half_the_context_are_measured_as_far_as_the_longest_goes() -> None:
    rows = by_position([np.full(100, 2.0), np.full(120, 4.0), np.full(30, 9.0)], 1024)
    assert rows == [
        {"start": 0, "end": 64, "nll": 3.0, "tokens": 128, "documents": 2},
        {"start": 64, "end": 128, "nll": (36 * 2 + 56 * 4) / 92, "tokens": 92, "documents": 2},
    ]


def test_no_document_gives_no_row() -> None:
    assert by_position([], 256) == []
