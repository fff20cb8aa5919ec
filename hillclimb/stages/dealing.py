"""Tokenised documents dealt out to shards at random, and the index that says where each is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hillclimb.artifacts import Artifact, ArtifactWriter
from hillclimb.training.shards import Shards

TOKENS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("category", pa.string()),
        ("bytes", pa.int64()),
        ("tokens", pa.list_(pa.int32())),
    ]
)
INDEX = "index.parquet"
INDEXED = pa.schema(
    [
        ("shard", pa.int32()),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("tokens", pa.int32()),
    ]
)
SHARD_TOKENS = 2**24
"""Tokens of a shard, about: 64 MiB before compression."""
WAITING_TOKENS = 2**23
"""Tokens that wait in memory for a row group, over all shards."""


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"tokens-{number:05d}.parquet"


def deal(
    out: ArtifactWriter, tables: Iterator[pa.Table], held: np.ndarray, lengths: np.ndarray
) -> tuple[list[dict[str, Any]], dict[str, tuple[str, int]]]:
    """Write shards of about `SHARD_TOKENS` each, and an index with a row a document in their order.

    Args:
        tables: rows of `TOKENS`.
        held: which rows are held out, bool (D,).
        lengths: tokens of each row, (D,).

    Returns:
        The held-out rows; and (category, tokens) of every source of the others.
    """
    count = max(1, math.ceil(int(lengths[~held].sum()) / SHARD_TOKENS))
    shard_of = np.random.default_rng(0).integers(count, size=len(lengths))
    held_out: list[dict[str, Any]] = []
    available: dict[str, tuple[str, int]] = {}
    with contextlib.ExitStack() as stack:
        shards = [_Shard(out, number, stack) for number in range(count)]
        row = 0
        for table in tables:
            kept = ~held[row : row + len(table)]
            numbers = shard_of[row : row + len(table)]
            held_out += table.filter(pa.array(~kept)).to_pylist()
            _add(available, table.filter(pa.array(kept)))
            for number in np.unique(numbers[kept]).tolist():
                shards[number].add(table.filter(pa.array(kept & (numbers == number))))
            while sum(shard.waiting for shard in shards) > WAITING_TOKENS:
                max(shards, key=lambda shard: shard.waiting).flush()
            row += len(table)
        indices = [shard.finish() for shard in shards]
    with out.local(INDEX) as path:
        pq.write_table(pa.concat_tables(indices).unify_dictionaries(), path, compression="zstd")
    return held_out, available


def _add(available: dict[str, tuple[str, int]], rows: pa.Table) -> None:
    sizes = pc.list_value_length(rows["tokens"])
    sums = (
        pa.table([rows["source"], rows["category"], sizes], names=["source", "category", "tokens"])
        .group_by(["source", "category"], use_threads=False)
        .aggregate([("tokens", "sum")])
    )
    for row in sums.to_pylist():
        category, size = available.get(row["source"], (row["category"], 0))
        available[row["source"]] = (category, size + row["tokens_sum"])


class _Shard:
    """One parquet file in the making: rows wait until they are worth a row group."""

    def __init__(self, out: ArtifactWriter, number: int, stack: contextlib.ExitStack) -> None:
        path = stack.enter_context(out.local(shard_name(number)))
        self.writer = stack.enter_context(pq.ParquetWriter(path, TOKENS, compression="zstd"))
        self.number, self.waiting = number, 0
        self.rows: list[pa.Table] = []
        self.indices = [INDEXED.empty_table()]

    def add(self, rows: pa.Table) -> None:
        lengths = pc.list_value_length(rows["tokens"])
        shard = pa.array(np.full(len(rows), self.number, np.int32))
        index = pa.table([shard, rows["source"], lengths], names=INDEXED.names)
        self.indices.append(index.cast(INDEXED))
        self.rows.append(rows)
        self.waiting += pc.sum(lengths).as_py()

    def flush(self) -> None:
        self.writer.write_table(pa.concat_tables([TOKENS.empty_table(), *self.rows]))
        self.rows, self.waiting = [], 0

    def finish(self) -> pa.Table:
        """Write what waits; returns the index of the shard."""
        if self.rows or len(self.indices) == 1:
            self.flush()
        self.writer.close()
        return pa.concat_tables(self.indices)


def open_shards(mixture: Artifact) -> Shards:
    """The mixture's documents where they lie, sources numbered by name."""
    with mixture.fs.open(mixture.path(INDEX), "rb") as stream:
        index = pq.read_table(stream).unify_dictionaries()
    source = index["source"].combine_chunks()
    names = sorted(source.dictionary.to_pylist())
    number = np.array([names.index(name) for name in source.dictionary.to_pylist()], np.int32)
    counts = np.bincount(index["shard"].to_numpy(), minlength=1)
    return Shards(
        [f"{mixture.uri}/{shard_name(shard)}" for shard in range(len(counts))],
        counts.tolist(),
        index["tokens"].to_numpy(),
        number[source.indices.to_numpy()] if names else np.empty(0, np.int32),
        tuple(names),
        {} if mixture.is_local else dict(mixture.fs.storage_options),
    )
