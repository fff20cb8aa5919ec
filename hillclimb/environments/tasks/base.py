"""What a family of problems is, and how problems are split.

Train and held-out problems are disjoint by construction: each deciding feature (the operands, the
words to be copied, the thing that a request is about) falls on one side by a hash of itself.
Worksheets show formats in the base corpus and are made from the train side only.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

Side = Literal["train", "held_out"]
HELD_OUT_SHARE = 0.3
WORKSHEET_EXAMPLES = 12


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        key: what the decision depends on; no key is on both sides.
        question: what is asked.
        task: what the environment needs, the hidden check included (JSON).
    """

    id: str
    specialist: str
    kind: str
    key: str
    question: str
    task: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """The problem as a table row's values."""
        return asdict(self)


class Worksheets(Protocol):
    """One kind of worksheet."""

    kind: str
    category: str

    def worksheet(self, rng: random.Random) -> str:
        """An example in the base corpus's voice, from the train side."""


class TaskFamily(Worksheets, Protocol):
    """One kind of problem: draws problems, writes worksheets."""

    specialist: str

    def draw(self, rng: random.Random, side: Side) -> tuple[str, str, dict[str, Any]]:
        """A (key, question, task) whose deciding feature is on `side`."""


def side_of(feature: str) -> Side:
    """The side on which a deciding feature falls."""
    digest = hashlib.sha256(f"split:{feature}".encode()).digest()
    return "held_out" if digest[0] < HELD_OUT_SHARE * 256 else "train"


def draw_problem(family: TaskFamily, rng: random.Random, side: Side) -> Problem:
    """One problem of a family on one side."""
    key, question, task = family.draw(rng, side)
    digest = hashlib.sha256(f"{family.kind}|{key}|{question}".encode()).hexdigest()
    return Problem(
        f"{family.kind}-{digest[:12]}", family.specialist, family.kind, key, question, task
    )


def make_problems(
    families: dict[str, TaskFamily], shares: dict[str, float], count: int, side: Side, seed: int
) -> list[Problem]:
    """`count` different problems, by share of kind.

    Raises:
        ValueError: when a kind does not exist or has too few different problems, naming it.
    """
    unknown = sorted(set(shares) - set(families))
    if unknown:
        raise ValueError(f"no problems of kind {unknown[0]!r}; there are {sorted(families)}")
    total, problems = sum(shares.values()), []
    for kind in sorted(shares):
        rng = random.Random(f"{seed}:{side}:{kind}")
        wanted = max(1, round(count * shares[kind] / total))
        problems += _distinct(families[kind], rng, side, wanted)
    random.Random(f"{seed}:{side}").shuffle(problems)
    return problems


def _distinct(family: TaskFamily, rng: random.Random, side: Side, wanted: int) -> list[Problem]:
    found: dict[str, Problem] = {}
    for _ in range(200 * wanted):
        problem = draw_problem(family, rng, side)
        found.setdefault(problem.id, problem)
        if len(found) == wanted:
            return list(found.values())
    raise ValueError(
        f"only {len(found)} different {side} problems of kind {family.kind!r}, {wanted} asked for: "
        "lower the count or its share"
    )


def worksheet_rows(family: Worksheets, count: int) -> Iterator[dict[str, Any]]:
    """`count` worksheet documents of several examples each, train side only."""
    for index in range(count):
        rng = random.Random(f"worksheet:{family.kind}:{index}")
        examples = [family.worksheet(rng) for _ in range(WORKSHEET_EXAMPLES)]
        yield {
            "text": "\n".join(examples) + "\n",
            "generator": family.kind,
            "number": index,
        }
