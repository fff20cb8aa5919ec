"""The rounds of one specialist laid end to end over cumulative gradient steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hillclimb.recipe.climb import SPECIALISTS
from hillclimb.report.experiment import Experiment, Row, column, number
from hillclimb.report.figure import Mark, Series

TITLES = {
    "stem": "STEM",
    "agentic": "Agentic",
    "helpfulness": "Helpfulness & safety",
    "final": "Final climb",
}
TONES = {"stem": 1, "agentic": 2, "helpfulness": 3, "final": 4}
GROUPS = (*SPECIALISTS, "final")


@dataclass(frozen=True)
class Round:
    """One climb on the common axis: its rows and the steps taken before it."""

    name: str
    index: int
    rows: list[Row]
    offset: float

    @property
    def xs(self) -> list[float]:
        """Cumulative gradient step of every row."""
        first = self.rows[0]["step"] if self.rows else 0
        return [self.offset + float(row["step"] - first) for row in self.rows]

    @property
    def end(self) -> float:
        """Cumulative gradient steps when the round is over."""
        return self.xs[-1] + 1 if self.rows else self.offset


@dataclass(frozen=True)
class Timeline:
    """The rounds of one specialist, or the one final climb, that are made so far."""

    group: str
    rounds: list[Round]

    @classmethod
    def read(cls, experiment: Experiment, group: str) -> Timeline:
        """Read the metrics of every round that is made."""
        rounds: list[Round] = []
        for index, name in enumerate(experiment.climbs(group)):
            if name in experiment.made:
                offset = rounds[-1].end if rounds else 0.0
                rounds.append(Round(name, index, experiment.rows(name), offset))
        return cls(group, rounds)

    @property
    def steps(self) -> float:
        """Gradient steps of all rounds."""
        return self.rounds[-1].end if self.rounds else 0.0

    def line(self, key: str, name: str, tone: int, style: str = "line", shift: float = 0) -> Series:
        """One metric over all rounds, with a gap where a self-distillation cuts the climb."""
        xs: list[float] = []
        ys: list[float | None] = []
        for round_ in self.rounds:
            if xs:
                xs.append(round_.offset + shift)
                ys.append(None)
            xs += [x + shift for x in round_.xs]
            ys += column(round_.rows, key)
        return Series(name, xs, ys, tone, style)  # type: ignore[arg-type]

    def stack(self, keys: Sequence[tuple[str, str, int]], total: bool) -> list[Series]:
        """Several metrics that add up, one value a weight update.

        A row counts what its update has brought so far; with `total` rows hold shares to be summed.
        """
        xs: list[float] = []
        updates: list[list[Row]] = []
        for round_ in self.rounds:
            known = None
            for x, row in zip(round_.xs, round_.rows, strict=True):
                if row["update"] != known:
                    known = row["update"]
                    xs.append(x)
                    updates.append([])
                updates[-1].append(row)
        return [
            Series(name, xs, [_added(rows if total else rows[-1:], key) for rows in updates], tone)
            for key, name, tone in keys
        ]

    def marks(self, shift: float = 0, tone: int = 0, said: str = "student") -> list[Mark]:
        """A mark where each round but the first starts from a self-distilled student.

        Where there are many, the first is named and the others are numbered.
        """
        later = [round_ for round_ in self.rounds if round_.index]
        brief = len(later) > 2
        return [
            Mark(
                round_.offset + shift,
                f"{round_.index}" if place and brief else f"{said} {round_.index}",
                tone,
            )
            for place, round_ in enumerate(later)
        ]


def _added(rows: list[Row], key: str) -> float:
    return sum(number(row, key) or 0.0 for row in rows)
