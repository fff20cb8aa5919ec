"""Artifacts on a real S3 server that fails now and then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import Proxy, ask, moto, proxy

from hillclimb.artifacts import (
    Artifact,
    ArtifactError,
    ArtifactWriter,
    Manifest,
    Overtaken,
    Store,
    StoreAway,
    remote,
)
from hillclimb.experiments import Experiment
from hillclimb.stages.request import Request

TESTS = Path(__file__).parent.parent
STAGE = "stem_problems"
FEW = ("specialists.stem.problems.train=12", "specialists.stem.problems.held_out=6")
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_MAX_ATTEMPTS": "2",
    "AWS_RETRY_MODE": "standard",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    """The server behind its proxy; the environment names it, as a user's would."""
    with moto() as port, proxy(port) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of remote files, of this test alone."""
    monkeypatch.setenv("HILLCLIMB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(s3: Proxy) -> Iterator[str]:
    """A bucket of this test alone."""
    bucket = f"b{uuid.uuid4().hex}"
    assert ask(s3.upstream, "PUT", f"/{bucket}") == 200
    yield f"s3://{bucket}/lab"
    s3.heal()


def manifest(name: str = "a") -> Manifest:
    return Manifest(
        name=name, kind="toy", fingerprint="f" * 64, code_version="1", seed=None, inputs={},
        config={}, files=[], metrics={}, summary={}, run={},
    )  # fmt: skip


def written(root: str, files: dict[str, bytes]) -> str:
    uri = Store(root).uri("a", "f" * 64)
    out = ArtifactWriter(uri)
    for name, data in files.items():
        out.write_bytes(name, data)
    out.commit(manifest())
    return uri


def key(uri: str, name: str) -> str:
    return f"/{uri.removeprefix('s3://')}/{name}"


def reads(s3: Proxy, name: str) -> int:
    return sum(method == "GET" and path.endswith(name) for method, path in s3.seen)


def test_an_artifact_is_written_committed_found_and_verified(s3: Proxy, root: str) -> None:
    store = Store(root)
    assert store.find("a", "f" * 64) is None
    uri = store.uri("a", "f" * 64)
    out = ArtifactWriter(uri)
    out.write_text("resume/step-1/weights", "old")
    with out.local("model") as folder:
        (folder / "deep").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "deep" / "weights").write_bytes(b"w" * 100_000)
    out.write_json("x.json", {"a": 1})
    assert store.find("a", "f" * 64) is None
    s3.seen.clear()
    out.commit(manifest())
    assert not [path for method, path in s3.seen if method == "GET" and "model" in path]
    made = store.find("a", "f" * 64)
    assert made is not None
    paths = [entry.path for entry in made.manifest.files]
    assert paths == ["model/config.json", "model/deep/weights", "x.json"]
    assert made.verify().problems == []
    assert not out.exists("resume")
    assert [artifact.uri for artifact in store.artifacts()] == [uri]


def test_looking_for_an_artifact_costs_two_requests(s3: Proxy, root: str) -> None:
    store = Store(root)
    s3.seen.clear()
    assert store.find("a", "f" * 64) is None
    assert len(s3.seen) == 2
    written(root, {"x": b"x"})
    s3.seen.clear()
    assert store.find("a", "f" * 64) is not None
    assert len(s3.seen) == 2


def test_damage_is_named(s3: Proxy, root: str) -> None:
    uri = written(root, {"x.txt": b"x", "y.txt": b"y", "z.txt": b"z"})
    assert ask(s3.upstream, "PUT", key(uri, "x.txt"), b"X") == 200
    assert ask(s3.upstream, "DELETE", key(uri, "y.txt")) == 204
    artifact = Artifact(uri)
    first, second = artifact.verify().problems
    assert f"{uri}/x.txt is not what was written" in first
    assert f"{uri}/y.txt is missing" in second
    with pytest.raises(ArtifactError, match=r"x\.txt.*y\.txt is missing.*make a again"):
        artifact.require_intact()
    with pytest.raises(ArtifactError, match=r"x\.txt is not what was written"):
        artifact.local("x.txt")
    assert artifact.local("z.txt").read_bytes() == b"z"


def test_what_others_write_is_seen_at_once(s3: Proxy, root: str) -> None:
    out = ArtifactWriter(f"{root}/artifacts/a/f")
    out.write_text("x", "one")
    assert out.list() == ["x"]
    assert not out.exists("y")
    assert ask(s3.upstream, "PUT", key(out.uri, "y"), b"new") == 200
    assert ask(s3.upstream, "PUT", key(out.uri, "x"), b"longer than before") == 200
    assert out.list() == ["x", "y"]
    assert out.exists("y")
    assert out.read_text("x") == "longer than before"


def test_a_copy_is_fetched_once_for_all_readers(s3: Proxy, root: str, cache: Path) -> None:
    uri = written(root, {"model/weights": b"w" * 1000, "model/config": b"c", "rows": b"r"})
    s3.seen.clear()
    assert (Artifact(uri).local("model") / "weights").stat().st_size == 1000
    assert reads(s3, "rows") == 0
    Artifact(uri).require_intact()
    folder = Artifact(uri).local()
    assert {p.name for p in folder.rglob("*") if p.is_file()} == {"weights", "config", "rows"}
    assert [reads(s3, name) for name in ("weights", "config", "rows")] == [1, 1, 1]
    assert folder.is_relative_to(cache)
    with pytest.raises(ArtifactError, match="holds no nothing"):
        Artifact(uri).local("nothing")


@pytest.mark.parametrize("fault", [500, 503, "drop", "cut"])
def test_a_store_that_stumbles_is_asked_again(s3: Proxy, root: str, fault: int | str) -> None:
    uri = Store(root).uri("a", "f" * 64)
    out = ArtifactWriter(uri)
    out.write_bytes("x", b"x" * 50_000)
    for step in (
        lambda: out.write_bytes("y", b"y" * 50_000),
        lambda: out.commit(manifest()),
        lambda: Artifact(uri).require_intact(),
    ):
        s3.faults = deque([fault] * 3)
        step()
        assert not s3.faults
    s3.faults = deque([fault] * 3)
    assert Artifact(uri).verify().problems == []


def test_a_store_that_goes_away_is_waited_for(s3: Proxy, root: str) -> None:
    out = ArtifactWriter(f"{root}/artifacts/a/f")
    out.write_text("x", "x")
    s3.away = True
    back = threading.Timer(4.0, lambda: setattr(s3, "away", False))
    back.start()
    began = time.monotonic()
    out.write_text("y", "y")
    assert time.monotonic() - began > 3.5
    assert out.read_text("y") == "y"


def test_a_store_that_stays_away_is_a_circumstance(
    s3: Proxy, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 1.0)
    out = ArtifactWriter(f"{root}/artifacts/a/f")
    out.write_text("resume/latest", "step-1")
    s3.away = True
    with pytest.raises(StoreAway, match=r"s3://b[0-9a-f]+ does not answer .*: check the endpoint"):
        out.exists("resume/latest")
    s3.heal()
    assert out.exists("resume/latest")


def test_a_second_writer_stops_when_the_first_has_committed(root: str) -> None:
    uri = Store(root).uri("a", "f" * 64)
    first, second = ArtifactWriter(uri), ArtifactWriter(uri)
    first.write_text("metrics.jsonl", "1 second")
    second.write_text("resume/latest", "step-2")
    first.commit(manifest())
    for do in (
        lambda: second.write_text("metrics.jsonl", "2 seconds"),
        lambda: second.commit(manifest()),
    ):
        with pytest.raises(Overtaken, match="committed by another process"):
            do()
    assert Artifact(uri).verify().problems == []
    assert [entry.path for entry in Artifact(uri).manifest.files] == ["metrics.jsonl"]


def test_a_missing_bucket_is_named_and_not_made(s3: Proxy) -> None:
    store = Store("s3://typo-in-the-name/lab")
    assert store.find("a", "f" * 64) is None
    with pytest.raises(ArtifactError, match="the bucket s3://typo-in-the-name does not exist"):
        ArtifactWriter(store.uri("a", "f" * 64)).write_text("x", "x")
    assert ask(s3.upstream, "HEAD", "/typo-in-the-name") == 404


def test_refused_access_is_said_and_not_tried_again(s3: Proxy, root: str) -> None:
    out = ArtifactWriter(f"{root}/artifacts/a/f")
    out.write_text("x", "x")
    s3.only = "PUT"
    s3.faults.append(403)
    with pytest.raises(ArtifactError, match=r"refuses access .*credentials that are valid"):
        out.write_text("y", "y")


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("gs://lab/x", r"needs the package gcsfs: pip install 'hillclimb\[gcs\]'"),
        ("abfs://lab/x", r"needs the package adlfs: pip install 'hillclimb\[azure\]'"),
        ("tape://lab/x", "unknown kind tape: use a folder, s3://"),
    ],
)
def test_a_missing_driver_is_named_with_its_extra(uri: str, sentence: str) -> None:
    with pytest.raises(ArtifactError, match=sentence):
        Store(uri)


# Stages with their artifacts on S3, as processes of their own.


def request_of(root: str, folder: Path) -> Request:
    small = str(TESTS / "recipe" / "small.yaml")
    asked = Experiment.make(small, 0, "few", FEW).plan().request(STAGE, Store(root))
    folder.mkdir()
    (folder / "request.json").write_text(asked.model_dump_json())
    return asked


def start(folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hillclimb.stages", "problems"]
    return subprocess.Popen(
        [*command, "--request", str(folder / "request.json")],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
    )


def last_error(folder: Path) -> str:
    lines = (folder / "messages.jsonl").read_text().splitlines()
    payloads = [(json.loads(line).get("params") or {}).get("payload", {}) for line in lines]
    return next(p["message"] for p in reversed(payloads) if p.get("type") == "error")


@pytest.mark.slow("four processes of a stage")
def test_a_stage_killed_while_writing_leaves_no_artifact_and_is_made_again(
    s3: Proxy, root: str, tmp_path: Path
) -> None:
    asked = request_of(root, tmp_path / "run")
    s3.only = f"PUT {key(asked.output, 'held_out.parquet')}"
    s3.faults.append("hang")
    stage = start(tmp_path / "run")
    assert s3.hanging.wait(60), "the stage did not come to its second file"
    stage.kill()
    stage.wait(10)
    s3.heal()
    out = ArtifactWriter(asked.output)
    assert out.list() == ["train.parquet"]
    assert Store(root).find(STAGE, asked.fingerprint) is None

    both = [start(tmp_path / "run"), start(tmp_path / "run")]
    codes = sorted(process.wait(120) for process in both)
    assert codes in ([0, 0], [0, 1])
    made = Store(root).find(STAGE, asked.fingerprint)
    assert made is not None
    assert made.verify().problems == []
    assert made.manifest.metrics == {"train": 12.0, "held_out": 6.0}
    before = made.manifest
    assert start(tmp_path / "run").wait(120) == 0
    assert Artifact(asked.output).manifest == before


@pytest.mark.slow("three processes of a stage")
def test_a_stage_says_what_its_store_lacks(s3: Proxy, root: str, tmp_path: Path) -> None:
    request_of(root, tmp_path / "keys")
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    without_keys = start(tmp_path / "keys", **nobody)
    request_of("s3://typo-in-the-name/lab", tmp_path / "bucket")
    without_bucket = start(tmp_path / "bucket")
    request_of(root, tmp_path / "away")
    without_store = start(tmp_path / "away", AWS_ENDPOINT_URL_S3="http://127.0.0.1:9")
    assert without_keys.wait(120) == 2
    assert "no credentials for s3://" in last_error(tmp_path / "keys")
    assert "set AWS_ACCESS_KEY_ID and" in last_error(tmp_path / "keys")
    assert without_bucket.wait(120) == 2
    assert "the bucket s3://typo-in-the-name does not exist" in last_error(tmp_path / "bucket")
    assert without_store.wait(120) == 1
    assert "does not answer" in last_error(tmp_path / "away")


def pretrained(out: str, die: int = 0) -> dict[str, object] | None:
    """What a run of its own ends with; None if it was to die and did."""
    script = TESTS / "training" / "pretrain_once.py"
    done = subprocess.run(
        [sys.executable, script, out, str(die), "2", "128", "0.0"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if die:
        assert done.returncode == -9, done.stderr[-2000:]
        return None
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return dict(json.loads(line.removeprefix("RESULT ")))


@pytest.mark.slow("three processes that import torch")
def test_training_killed_on_s3_goes_on_to_the_same_weights(
    s3: Proxy, root: str, tmp_path: Path
) -> None:
    undisturbed = pretrained(str(tmp_path / "local"))
    out = f"{root}/artifacts/base/f"
    pretrained(out, die=5)
    assert ArtifactWriter(out).read_text("resume/latest").startswith("resume/step-")
    s3.only = "GET"
    s3.faults.extend([500, "cut"])
    assert pretrained(out) == undisturbed
