"""Drills: worksheets without problems, for the single steps that problems are made of."""

from __future__ import annotations

import random

from hillclimb.environments.tasks.helpfulness import DANGEROUS, HARMLESS
from hillclimb.environments.tasks.stem import solved
from hillclimb.environments.tasks.words import WORDS


class Copybook:
    """A line of words, written again."""

    kind, category = "copybook", "books"

    def worksheet(self, rng: random.Random) -> str:
        """Six words of any side, three times."""
        line = "".join(f" {word}" for word in rng.sample(WORDS, 6))
        return f"copy:{line}\n:{line}\n:{line}"


class Tables:
    """One addition or subtraction a line."""

    kind, category = "tables", "math"

    def worksheet(self, rng: random.Random) -> str:
        """A total of up to 18 and a digit of up to 6."""
        total, digit = rng.randint(1, 18), rng.randint(1, 6)
        if rng.random() < 0.4 and digit <= total:
            return f"{total:02d}-{digit}={total - digit:02d}"
        return f"{total:02d}+{digit}={total + digit:02d}"


class Glossary:
    """What is dangerous and what is safe."""

    kind, category = "glossary", "dialogue"

    def worksheet(self, rng: random.Random) -> str:
        """One thing."""
        dangerous = rng.random() < 0.5
        thing = rng.choice(DANGEROUS if dangerous else HARMLESS)
        fact = f" {thing} is {'dangerous' if dangerous else 'safe'}"
        return solved(f"what about this {thing}", fact, fact)
