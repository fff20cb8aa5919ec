"""The verdict of a grader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Graded:
    """A task reward, or None where the grader could not tell; `reason` says why, in few words.

    None is not a zero: the response is left out of its group and counted.
    """

    score: float | None
    reason: str = ""


def ungraded(results: Iterable[Graded]) -> dict[str, int]:
    """How many results have no score, by reason, in the order of the reasons."""
    counts = Counter(result.reason for result in results if result.score is None)
    return dict(sorted(counts.items()))
