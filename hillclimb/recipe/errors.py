"""What can be wrong with a recipe: every mistake at once, each with its field and its fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Attributes:
        field: dotted path, `specialists.stem.climbs.0.rewards.length`.
        what: what is wrong with it, in plain words.
        fix: what to do about it.
        line: line of the recipe file, where the mistake is in one.
    """

    field: str
    what: str
    fix: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.field or 'the recipe'} {self.what}. Fix: {self.fix}."


class RecipeError(Exception):
    """A recipe cannot be used. `problems` lists everything that is wrong with it."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = sorted(problems, key=lambda p: (p.line or 0, p.field))
        count = len(self.problems)
        head = f"{source} has {count} mistake{'s' if count > 1 else ''}:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))
