"""What an experiment has made so far, read from its artifacts."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import pyarrow.parquet as pq

from hillclimb.artifacts import Artifact, Store
from hillclimb.recipe.graph import StageSpec, identify, stage_specs
from hillclimb.recipe.schema import Recipe

Row = dict[str, Any]


@dataclass
class Experiment:
    """The stages that a recipe and a seed ask for, and the artifacts that exist of them.

    `absent` collects a sentence for every file that a made artifact should hold and does not.
    """

    recipe: Recipe
    seed: int
    specs: dict[str, StageSpec]
    fingerprints: dict[str, str]
    made: dict[str, Artifact]
    absent: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, root: str, recipe: Recipe, seed: int) -> Experiment:
        """Look every stage up in the store at `root`."""
        store = Store(root)
        specs = stage_specs(recipe, seed)
        fingerprints = identify(specs)
        found = {name: store.find(name, fingerprints[name]) for name in specs}
        made = {name: artifact for name, artifact in found.items() if artifact is not None}
        return cls(recipe, seed, specs, fingerprints, made)

    def of_kind(self, kind: str) -> list[str]:
        """Names of the stages of one kind, in the graph's order."""
        return [name for name, spec in self.specs.items() if spec.kind == kind]

    def climbs(self, group: str) -> list[str]:
        """The climbs of one specialist (or of `final`), first round first."""
        return [name for name in self.of_kind("climb") if self.specs[name].group == group]

    def has(self, name: str, path: str) -> bool:
        """Whether the stage is made and holds the file; a hole is noted in `absent`."""
        artifact = self.made.get(name)
        if artifact is None:
            return False
        if not artifact.exists(path):
            sentence = f"{path} is not in the artifact {name}, which is made"
            if sentence not in self.absent:
                self.absent.append(sentence)
            return False
        return True

    def json(self, name: str, path: str) -> Any:
        """A JSON file of a stage, or None."""
        return self.made[name].json(path) if self.has(name, path) else None

    def rows(self, name: str, path: str = "metrics.jsonl") -> list[Row]:
        """The rows of a JSON-lines file; an unmade stage has none."""
        if not self.has(name, path):
            return []
        lines = self.made[name].read_text(path).splitlines()
        return [json.loads(line) for line in lines if line.strip()]

    def parts(self, name: str, prefix: str) -> list[str]:
        """The parquet files of a stage whose path starts with `prefix`, sorted."""
        if name not in self.made:
            return []
        names = [entry.path for entry in self.made[name].manifest.files]
        return sorted(n for n in names if n.startswith(prefix) and n.endswith(".parquet"))

    def batches(self, name: str, path: str) -> Iterator[list[Row]]:
        """The rows of one parquet file, a few hundred at a time."""
        artifact = self.made[name]
        with artifact.fs.open(artifact.path(path), "rb") as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=512):
                yield batch.to_pylist()

    def head(self, name: str, parts: list[str], limit: int) -> list[Row]:
        """The first `limit` rows of a table in several parquet files."""
        batches = (batch for part in parts for batch in self.batches(name, part))
        return list(islice(chain.from_iterable(batches), limit))

    def row_count(self, name: str, path: str) -> int:
        """Rows of a parquet file, from its footer."""
        artifact = self.made[name]
        with artifact.fs.open(artifact.path(path), "rb") as stream:
            return int(pq.ParquetFile(stream).metadata.num_rows)


def number(row: Row, key: str) -> float | None:
    """A finite number of a row, or None."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def column(rows: list[Row], key: str) -> list[float | None]:
    """One column of metrics, with None where there is no finite number."""
    return [number(row, key) for row in rows]


def parameter_count(artifact: Artifact, path: str = "model/model.safetensors") -> int | None:
    """Parameters of a checkpoint, from the safetensors header alone; None without weights."""
    if not artifact.exists(path):
        return None
    with artifact.fs.open(artifact.path(path), "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes)
