"""Everyday words that problems are about, and the files that they are in.

Every word is on both sides; a combination that decides an answer is on one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from hillclimb.environments.tasks.base import Side, side_of

T = TypeVar("T")
FILES = ("list", "note", "page", "plan")
WORDS = (
    "ant bat bed bee boat book bus cake car cat coin cow cup dog door duck egg fish flag fox gold "
    "hat hen ice iron king lake lamp leaf lion milk moon nest nut owl pen pig rain ring road rock "
    "rose salt sand ship silk snow soap song star sun tent tree wall wolf wood"
).split()


def word_with(rng: random.Random, side: Side, others: Sequence[T]) -> tuple[str, T]:
    """A word and one of `others`, whose combination is on `side`."""
    while True:
        word, other = rng.choice(WORDS), rng.choice(others)
        if side_of(f"with:{word} {other}") == side:
            return word, other
