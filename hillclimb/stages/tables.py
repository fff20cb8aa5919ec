"""Parquet tables of an artifact, the same bytes for the same rows."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hillclimb.artifacts import Artifact, ArtifactWriter


def write_table(
    out: ArtifactWriter, name: str, rows: list[dict[str, Any]], schema: pa.Schema
) -> None:
    """Write rows as one zstd-compressed parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    out.write_bytes(name, sink.getvalue().to_pybytes())


def read_rows(artifact: Artifact, pattern: str, columns: list[str] | None = None) -> list[dict]:
    """All rows of the parquet files that match, in the order of their names."""
    return read_table(artifact, pattern, columns).to_pylist()


def read_table(artifact: Artifact, pattern: str, columns: list[str] | None = None) -> pa.Table:
    """The parquet files that match as one table.

    Raises:
        FileNotFoundError: if none matches, naming the artifact.
    """
    if "*" in pattern:
        paths = sorted(glob.glob(str(artifact.local() / pattern)))
    else:
        paths = [str(path) for path in [artifact.local(pattern)] if path.exists()]
    if not paths:
        raise FileNotFoundError(f"{artifact.uri} holds no {pattern}")
    return pa.concat_tables(pq.read_table(path, columns=columns) for path in paths)


def jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSON lines."""
    import json

    return "".join(json.dumps(row) + "\n" for row in rows)
