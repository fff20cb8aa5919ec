"""Climbs while they run: what their messages and their tables tell, read from files alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from hillclimb.artifacts import Store
from hillclimb.artifacts.store import MANIFEST
from hillclimb.artifacts.tree import ABSENT, Tree
from hillclimb.recipe.graph import StageSpec, identify, stage_specs
from hillclimb.recipe.schema import Recipe
from hillclimb.report.experiment import Row, number
from hillclimb.report.gaps import view
from hillclimb.report.told import Listener, Told

LATEST, LOOKED_AT, OPENING = 48, 512, 160
LISTED = ("update", "group", "sample", "kind", "status", "reward", "task", "graded", "response")
LATER_PARTS = 16


@dataclass(frozen=True)
class Look:
    """One climb at one moment; `heard` seconds ago it last said something, None for never."""

    spec: StageSpec
    told: Told
    made: bool
    heard: float | None

    @property
    def state(self) -> str:
        """In a word: `made`, `failed`, or `going on`."""
        return "made" if self.made else "failed" if self.told.error else "going on"


class LiveClimbs:
    """The climbs of a recipe and a seed under a root.

    Messages are looked for where the local launcher keeps them, `runs/` of a local root, and in
    the recipe's `compute.kubernetes.runs`.
    """

    def __init__(self, root: str, recipe: Recipe, seed: int) -> None:
        specs = stage_specs(recipe, seed)
        fingerprints = identify(specs)
        cluster = recipe.compute.kubernetes
        runs = [Path(root) / "runs", *([Path(cluster.runs)] if cluster else [])]
        self.title = f"{recipe.name}, seed {seed}"
        self.specs = {name: spec for name, spec in specs.items() if spec.kind == "climb"}
        self._trees = {n: Tree(Store(root).uri(n, fingerprints[n])) for n in self.specs}
        self._listeners = {
            n: Listener([r / n / fingerprints[n][:16] for r in runs]) for n in self.specs
        }
        self._latest: dict[str, tuple[str, list[Row]]] = {}

    def begun(self) -> list[str]:
        """The climbs that have said something, that of the newest message first."""
        told = {name: listener.listen() for name, listener in self._listeners.items()}
        found = [name for name in told if told[name].at]
        return sorted(found, key=lambda name: -told[name].at)

    def look(self, name: str) -> Look:
        """One of them."""
        told = self._listeners[name].listen()
        heard = max(0.0, time.time() - told.at) if told.at else None
        return Look(self.specs[name], told, self._trees[name].exists(MANIFEST), heard)

    def latest(self, name: str) -> list[Row]:
        """Some rollouts of the newest part, as a list shows them: those learnt from first."""
        parts = self._parts(name, "rollouts")
        if not parts:
            return []
        known, rows = self._latest.get(name, ("", []))
        if known != parts[-1]:
            rows = [_listed(row) for row in self._head(name, parts[-1])]
            self._latest[name] = parts[-1], rows
        return rows

    def rollout(self, name: str, update: int, group: int, sample: int) -> dict[str, Any] | None:
        """One rollout whole, with its tokens where a step has learnt from it; None if it is gone.

        Raises:
            OSError: while the store is away.
        """
        wanted = [("update", "=", update), ("group", "=", group), ("sample", "=", sample)]
        part = f"rollouts/part-{update:05d}.parquet"
        row = next(self._rows(name, part, wanted), None)
        if row is None:
            return None
        later = [p for p in self._parts(name, "tokens") if p >= f"tokens/part-{update:05d}.parquet"]
        found = (row for part in later[:LATER_PARTS] for row in self._rows(name, part, wanted))
        tokens = next(found, None)
        told = {k: number(row, k) if isinstance(v, float) else v for k, v in row.items()}
        return {**told, "view": view(tokens) if tokens else None}

    def _parts(self, name: str, table: str) -> list[str]:
        return [p for p in self._trees[name].list(table) if p.endswith(".parquet")]

    def _rows(self, name: str, part: str, wanted: list[tuple[str, str, int]]) -> Iterator[Row]:
        tree = self._trees[name]
        try:
            with tree.fs.open(tree.path(part), "rb") as stream:
                yield from pq.read_table(stream, filters=wanted).to_pylist()
        except ABSENT:
            return

    def _head(self, name: str, part: str) -> list[Row]:
        tree = self._trees[name]
        try:
            with tree.fs.open(tree.path(part), "rb") as stream:
                batches = pq.ParquetFile(stream).iter_batches(LOOKED_AT, columns=list(LISTED))
                rows = list(next(batches).to_pylist())
                return sorted(rows, key=lambda row: row["status"] != "trained")[:LATEST]
        except (*ABSENT, StopIteration):
            return []


def _listed(row: Row) -> Row:
    return {
        **row,
        "reward": number(row, "reward"),
        "task": number(row, "task"),
        "response": row["response"][:OPENING],
    }
