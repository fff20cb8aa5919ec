"""A mixture on a real S3 server is read where it lies, and waited for while the server fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "artifacts"))
from made_feed import budget_of, feed_of
from s3_server import Proxy, ask, moto, proxy

from hillclimb.artifacts import Artifact, ArtifactWriter, Manifest
from hillclimb.stages.dealing import TOKENS, deal, open_shards
from hillclimb.training.shards import ShardError

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_MAX_ATTEMPTS": "2",
}  # fmt: skip
LENGTHS = np.random.default_rng(0).integers(0, 50, 300)
ROWS = [
    {"id": f"d{i}", "source": "p", "category": "code", "bytes": 1, "tokens": [i % 40 + 1] * int(n)}
    for i, n in enumerate(LENGTHS)
]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The server behind its proxy."""
    with moto() as port, proxy(port) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        assert ask(port, "PUT", "/lab") == 200
        yield server


def written(uri: str) -> Artifact:
    """The rows above as a mixture."""
    out = ArtifactWriter(uri)
    deal(out, iter([pa.Table.from_pylist(ROWS, schema=TOKENS)]), np.zeros(300, bool), LENGTHS)
    fields = {"name": "m", "kind": "mixture", "fingerprint": "0" * 64, "code_version": "1"}
    out.commit(Manifest(**fields, seed=None, inputs={}, config={}, files=[], metrics={},
                        summary={}, run={}))  # fmt: skip
    return Artifact(uri)


@pytest.mark.slow("starts an S3 server")
def test_shards_on_s3_give_the_rows_of_local_ones(s3: Proxy, tmp_path: Path) -> None:
    local, remote = (written(uri) for uri in (str(tmp_path), "s3://lab/mixture"))
    budgets = {"p": budget_of(4000)}
    here = list(feed_of(open_shards(local), budgets).batches(0))
    shards = open_shards(remote)
    s3.only = "GET /lab/mixture/tokens-00000.parquet"
    s3.faults.extend([503, "drop"])
    there = list(feed_of(shards, budgets).batches(0))
    assert not s3.faults
    assert len(here) == len(there) > 10
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(here, there, strict=True))
    remote.fs.pipe_file("lab/mixture/tokens-00000.parquet", b"PAR1")
    with pytest.raises(ShardError, match=r"s3://lab/mixture/tokens-00000.parquet is truncated"):
        list(feed_of(open_shards(remote), budgets).batches(0))
