"""Shards of made-up documents, and feeds over them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from reference_packing import TokenTable

from hillclimb.training.feed import Feed
from hillclimb.training.mixture import Budget
from hillclimb.training.sampling import Plan
from hillclimb.training.shards import Shards


def table_of(lengths: Sequence[int], sources: Sequence[int], names: Sequence[str]) -> TokenTable:
    """Documents of random tokens."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    tokens = np.random.default_rng(0).integers(1, 48, int(offsets[-1])).astype(np.int32)
    return TokenTable(tokens, offsets, np.asarray(sources, np.int32), tuple(names))


def encoded(table: pa.Table, kind: str) -> bytes:
    """A file's bytes: parquet in row groups, arrow as a stream."""
    sink = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink, compression="zstd", row_group_size=7)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return sink.getvalue()


def write_shards(folder: str, table: TokenTable, count: int, kind: str = "parquet") -> Shards:
    """The table's documents in their order, in `count` files under a URI."""
    fs, base = fsspec.core.url_to_fs(folder)
    fs.makedirs(base, exist_ok=True)
    documents = [table.document(i).tolist() for i in range(len(table.sources))]
    uris, counts = [], []
    for number, mine in enumerate(np.array_split(np.arange(len(documents)), count)):
        rows = pa.array([documents[i] for i in mine], pa.list_(pa.int32()))
        ids = pa.array([f"document {i}" for i in mine], pa.string())
        file = f"tokens-{number:05d}.{kind}"
        data = encoded(pa.table({"id": ids, "tokens": rows}), kind)
        fs.pipe_file(f"{base}/{file}", data)
        uris.append(f"{folder}/{file}")
        counts.append(len(mine))
    lengths = table.lengths().astype(np.int32)
    return Shards(uris, counts, lengths, table.sources, table.names)


def budget_of(tokens: int, cap: int | None = None) -> Budget:
    """A budget, by default without a cap that matters."""
    return Budget(tokens, tokens, 10**12 if cap is None else cap)


def feed_of(
    shards: Shards, budgets: dict[str, Budget], *, length: int = 16, batch_rows: int = 8,
    rows: int = 10**9, seed: int = 5, data: tuple[int, int] = (0, 1),
) -> Feed:  # fmt: skip
    """A feed whose separator is token 0."""
    return Feed(Plan(shards, budgets, seed), length, 0, batch_rows, rows, *data)
