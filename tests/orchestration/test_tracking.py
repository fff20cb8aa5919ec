"""The outbox, its sender, and lineage, against a real MLflow store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hillclimb.tracking import Outbox, RunKey, Sender
from hillclimb.tracking.outbox import RunLog
from hillclimb.tracking.sending import redact, take

FINGERPRINTS = {"raw_documents": "a" * 64, "mai_base_16k": "b" * 64, "stem/round_0/climb": "c" * 64}


def source(name: str, is_model: bool) -> dict[str, Any]:
    return {
        "role": "input",
        "name": name,
        "fingerprint": FINGERPRINTS[name],
        "uri": f"/store/{name}",
        "is_model": is_model,
    }


def record(root: Path, asset: str, inputs: list[dict[str, Any]], experiment: str = "toy") -> RunLog:
    log = Outbox(root).open(RunKey(experiment, asset, FINGERPRINTS[asset]))
    log.start({"hillclimb.recipe": "toy", "hillclimb.seed": "0"}, {"climb.epsilon": 0.6})
    for step in range(5):
        log.metrics({"loss": 1.0 / (step + 1), "tokens": float(step)}, step, 1_000.0 + step)
    log.end(
        "FINISHED",
        metrics={"pass_rate": 0.5},
        is_model=asset != "raw_documents",
        uri=f"/store/{asset}",
        inputs=inputs,
    )
    return log


def record_all(root: Path) -> None:
    record(root, "raw_documents", [])
    record(root, "mai_base_16k", [source("raw_documents", False)])
    record(
        root,
        "stem/round_0/climb",
        [source("mai_base_16k", True), source("raw_documents", False)],
    )


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow database without runs: making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def root(tmp_path: Path, empty_store: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    return tmp_path


def contents(root: Path) -> tuple[int, int, int, int]:
    """Runs, metric points of one run, models, output edges of one model."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("hillclimb")
    assert experiment is not None
    where = [experiment.experiment_id]
    runs = client.search_runs(where)
    climb = client.search_runs(where, "tags.`hillclimb.asset` = 'stem/round_0/climb'")[0]
    outputs = client.get_run(climb.info.run_id).outputs
    return (
        len(runs),
        len(client.get_metric_history(climb.info.run_id, "loss")),
        len(client.search_logged_models(where)),
        len(outputs.model_outputs),
    )


def test_delivered_twice_is_there_once(root: Path) -> None:
    from hillclimb.tracking.delivery import deliver

    record_all(root)
    outbox, uri = Outbox(root), f"sqlite:///{root}/mlflow.db"
    assert deliver(outbox, uri) == ("", 0)
    assert outbox.pending(uri) == 0
    once = contents(root)
    assert once == (4, 5, 2, 1)
    outbox.settle(uri, {})
    assert outbox.pending(uri) > 0
    assert deliver(outbox, uri) == ("", 0)
    assert contents(root) == once


def test_lineage_walks_to_the_documents(root: Path) -> None:
    from hillclimb.tracking.delivery import deliver
    from hillclimb.tracking.lineage import LineageError, lineage

    record_all(root)
    uri = f"sqlite:///{root}/mlflow.db"
    deliver(Outbox(root), uri)
    tree = lineage("stem/round_0/climb", uri)
    base, raw = tree.inputs
    assert (tree.asset, base.asset, raw.asset) == tuple(reversed(FINGERPRINTS))[:3]
    assert [node.asset for node in base.inputs] == ["raw_documents"]
    assert base.model_id is not None
    assert raw.seen
    assert tree.to_json()["inputs"][0]["inputs"][0]["fingerprint"] == "a" * 64
    with pytest.raises(LineageError, match="no finished run of scorecard in toy"):
        lineage("scorecard", uri, "toy")


def test_what_another_experiment_made_keeps_its_model(root: Path) -> None:
    from hillclimb.tracking.delivery import deliver
    from hillclimb.tracking.lineage import lineage

    record_all(root)
    record(root, "mai_base_16k", [source("raw_documents", False)], "ablation")
    uri = f"sqlite:///{root}/mlflow.db"
    deliver(Outbox(root), uri)
    assert contents(root)[2] == 2
    shared = lineage("mai_base_16k", uri, "ablation")
    assert shared.model_id == lineage("mai_base_16k", uri, "toy").model_id


def test_a_server_that_is_away_delays_and_loses_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://user:secret@127.0.0.1:{closed.getsockname()[1]}"
    record_all(root)
    sender = Sender(root, address)
    began = time.monotonic()
    sender.wake()
    assert time.monotonic() - began < 0.5
    status = sender.finish(timeout=30)
    assert status.pending == Outbox(root).pending(address) > 0
    assert "secret" not in status.sentence
    assert "secret" not in "".join(p.read_text() for p in (root / "outbox").glob("*.*"))
    assert "kept in the outbox" in status.sentence
    later = Sender(root, f"sqlite:///{root}/mlflow.db").finish(timeout=60)
    assert later.pending == 0
    assert contents(root) == (4, 5, 2, 1)


def test_a_killed_sender_is_followed_by_another(root: Path) -> None:
    record_all(root)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"}
    command = [sys.executable, "-m", "hillclimb.tracking", str(root)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    until = time.monotonic() + 60
    while not (root / "outbox" / "sent").exists() and time.monotonic() < until:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    sender = Sender(root, environment["MLFLOW_TRACKING_URI"])
    assert sender.finish(timeout=60).pending == 0
    assert contents(root) == (4, 5, 2, 1)


def test_only_one_sends(tmp_path: Path) -> None:
    held = take(Outbox(tmp_path))
    assert held is not None
    assert take(Outbox(tmp_path)) is None
    held.close()
    again = take(Outbox(tmp_path))
    assert again is not None
    again.close()


def test_repeated_steps_are_written_once(tmp_path: Path) -> None:
    record(tmp_path, "mai_base_16k", [])
    record(tmp_path, "mai_base_16k", [])
    steps = [r["step"] for _, _, r in Outbox(tmp_path).undelivered("x") if r["type"] == "metrics"]
    assert steps == [0, 1, 2, 3, 4]


def test_passwords_are_not_said() -> None:
    assert redact("cannot reach http://me:pw@host:1/x") == "cannot reach http://host:1/x"
