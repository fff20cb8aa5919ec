"""Mixtures dealt out to shards: every document once, at random, one shard as it always was."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hillclimb.artifacts import Artifact, ArtifactWriter, Manifest
from hillclimb.stages import dealing, tokens
from hillclimb.stages.dealing import TOKENS, deal, open_shards
from hillclimb.stages.tables import write_table

RNG = np.random.default_rng(0)
ROWS = [
    {"id": f"d{i}", "source": "pq"[i >= 200], "category": ("code", "math")[i >= 200], "bytes": i,
     "tokens": RNG.integers(0, 99, RNG.integers(0, 60)).tolist()}
    for i in range(400)
]  # fmt: skip
LENGTHS = np.array([len(row["tokens"]) for row in ROWS])
HELD = np.arange(400) % 17 == 3


def dealt(folder: Path) -> tuple[Artifact, list[dict], dict[str, tuple[str, int]]]:
    """The rows above, given in tables of 32."""
    out = ArtifactWriter(str(folder))
    tables = (pa.Table.from_pylist(ROWS[i : i + 32], schema=TOKENS) for i in range(0, 400, 32))
    held, available = deal(out, tables, HELD, LENGTHS)
    fields = {"name": "m", "kind": "mixture", "fingerprint": "0" * 64, "code_version": "1"}
    out.commit(Manifest(**fields, seed=None, inputs={}, config={}, files=[], metrics={},
                        summary={}, run={}))  # fmt: skip
    return Artifact(str(folder)), held, available


def test_a_small_mixture_is_one_shard_in_the_order_of_the_corpus(tmp_path):
    mixture, held, available = dealt(tmp_path / "dealt")
    train = [row for row, out in zip(ROWS, HELD, strict=True) if not out]
    write_table(ArtifactWriter(str(tmp_path)), "whole.parquet", train, TOKENS)
    assert mixture.read_bytes("tokens-00000.parquet") == (tmp_path / "whole.parquet").read_bytes()
    assert held == [row for row, out in zip(ROWS, HELD, strict=True) if out]
    sizes = {s: sum(len(r["tokens"]) for r in train if r["source"] == s) for s in "pq"}
    assert available == {"p": ("code", sizes["p"]), "q": ("math", sizes["q"])}


def test_a_large_mixture_is_many_shards_that_are_samples_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(dealing, "SHARD_TOKENS", 1500)
    monkeypatch.setattr(dealing, "WAITING_TOKENS", 400)
    mixture, _, _ = dealt(tmp_path)
    files = sorted(tmp_path.glob("tokens-*.parquet"))
    assert len(files) == math.ceil(LENGTHS[~HELD].sum() / 1500) > 5
    tables = [pq.read_table(file) for file in files]
    found = {row["id"]: row for table in tables for row in table.to_pylist()}
    assert found == {row["id"]: row for row, out in zip(ROWS, HELD, strict=True) if not out}
    assert sum(len(table) for table in tables) == len(found)
    assert all({"p", "q"} == set(table["source"].to_pylist()) for table in tables)
    assert max(pq.ParquetFile(file).num_row_groups for file in files) > 1

    shards = open_shards(mixture)
    read = shards.read(np.arange(len(found)))
    rows = [row for table in tables for row in table.to_pylist()]
    assert [read.body(i).tolist() for i in range(len(rows))] == [row["tokens"] for row in rows]
    assert [shards.names[n] for n in shards.sources] == [row["source"] for row in rows]
    assert shards.place(len(tables[0]) + 2) == ("tokens-00001.parquet", 2)


@pytest.mark.parametrize("limit", [0, 40, 10**9])
def test_held_out_documents_are_the_first_by_hash_of_each_category(tmp_path, limit):
    known = tokens._spool(iter(ROWS), tmp_path / "spool.arrow")
    held = tokens._held_out(known, limit)
    for category in ("code", "math"):
        mine = [i for i, row in enumerate(ROWS) if row["category"] == category]
        left, expected = min(limit, 0.02 * LENGTHS[mine].sum()), set()
        for i in sorted(mine, key=lambda i: tokens._unit(ROWS[i]["id"])):
            if left > 0:
                expected.add(i)
                left -= LENGTHS[i]
        assert set(np.flatnonzero(held)) & set(mine) == expected
