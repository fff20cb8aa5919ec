"""Dagster's storage and MLflow's on a real PostgreSQL, as on a cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from dagster_servers import ENDED, serving, until
from postgres_server import PASSWORD, USER, Postgres, a_postgres
from slow_climb import experiment
from test_tracking import FINGERPRINTS, record_all

from hillclimb.artifacts import Store
from hillclimb.dagster_runs import CONFIG, Runs
from hillclimb.runner import climb
from hillclimb.tracking import Outbox

STORAGE = {
    "postgres": {
        "postgres_db": {
            "scheme": "postgresql+psycopg2",
            "hostname": {"env": "DAGSTER_PG_HOST"},
            "port": {"env": "DAGSTER_PG_PORT"},
            "username": {"env": "DAGSTER_PG_USERNAME"},
            "password": {"env": "DAGSTER_PG_PASSWORD"},
            "db_name": {"env": "DAGSTER_PG_DB"},
        }
    }
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with a_postgres() as made:
        yield made


@pytest.fixture
def tracking_uri(postgres: Postgres) -> str:
    """An MLflow database of the test's own: senders of other roots may still be at work."""
    name = f"mlflow_{uuid4().hex}"
    postgres.ask("postgres", f"CREATE DATABASE {name}")
    return f"postgresql://{USER}:s3cret%2Fwith%3Asigns@127.0.0.1:{postgres.port}/{name}"


def name_of(uri: str) -> str:
    return uri.rpartition("/")[2]


@pytest.fixture
def root(
    tmp_path: Path, postgres: Postgres, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A root whose dagster.yaml names PostgreSQL; everything secret is in the environment."""
    for name, value in {
        "DAGSTER_PG_HOST": "127.0.0.1",
        "DAGSTER_PG_PORT": str(postgres.port),
        "DAGSTER_PG_USERNAME": USER,
        "DAGSTER_PG_PASSWORD": PASSWORD,
        "DAGSTER_PG_DB": "dagster",
        "MLFLOW_TRACKING_URI": tracking_uri,
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text(
        yaml.safe_dump({**CONFIG, "storage": STORAGE})
    )
    return tmp_path


@pytest.mark.slow("MLflow's migrations, Dagster's servers and a run worker")
def test_stages_are_made_recorded_and_tracked(
    root: Path, postgres: Postgres, tracking_uri: str
) -> None:
    of = experiment()
    summary = climb(root, of, ["stem_problems"])
    assert summary.complete
    plan, version = of.plan(), of.plan().fingerprints["stem_problems"]
    assert Runs(root).materialised(of.name, "stem_problems") == version
    assert postgres.ask("dagster", "SELECT status FROM runs") == [("SUCCESS",)]
    assert not list((root / "dagster").rglob("*.db"))

    assert until(lambda: not Outbox(root).pending(tracking_uri))
    names = "SELECT name, status FROM runs ORDER BY name"
    assert postgres.ask(name_of(tracking_uri), names) == [
        ("small-few-seed0", "FINISHED"),
        ("stem_problems", "FINISHED"),
    ]

    workspace = root / "workspace.yaml"
    location = {"module_name": "hillclimb.definitions", "location_name": "hillclimb"}
    workspace.write_text(yaml.safe_dump({"load_from": [{"python_module": location}]}))
    with serving(root, workspace, {}) as dagster:
        run = dagster.launch("helpfulness_problems", of.name)
        until(lambda: dagster.status(run) in ENDED)
        assert dagster.status(run) == "SUCCESS"
    assert Store(str(root)).find("helpfulness_problems", plan.fingerprints["helpfulness_problems"])
    assert postgres.ask("dagster", "SELECT count(*) FROM runs WHERE status = 'SUCCESS'") == [(2,)]


@pytest.mark.slow("MLflow's migrations")
def test_lineage_is_walked_and_delivering_twice_changes_nothing(
    root: Path, postgres: Postgres, tracking_uri: str
) -> None:
    from hillclimb.tracking.delivery import deliver
    from hillclimb.tracking.lineage import lineage

    record_all(root)
    outbox = Outbox(root)
    tables = ("runs", "metrics", "inputs", "datasets", "logged_models")
    counts = "SELECT " + ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    assert deliver(outbox, tracking_uri) == ("", 0)
    once = postgres.ask(name_of(tracking_uri), counts)
    outbox.settle(tracking_uri, {})
    assert deliver(outbox, tracking_uri) == ("", 0)
    assert postgres.ask(name_of(tracking_uri), counts) == once
    tree = lineage("stem/round_0/climb", tracking_uri, "toy")
    assert [node.asset for node in tree.inputs] == ["mai_base_16k", "raw_documents"]
    assert tree.inputs[0].inputs[0].fingerprint == FINGERPRINTS["raw_documents"]


def test_a_server_that_is_away_delays_and_tells_no_password(
    root: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hillclimb.tracking.delivery import deliver

    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 2)  # 10 take 100 s
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = (
            f"postgresql://{USER}:s3cret%2Fwith%3Asigns@127.0.0.1:{closed.getsockname()[1]}/mlflow"
        )
        record_all(root)
        error, rejected = deliver(Outbox(root), away)
    assert "s3cret" not in error
    assert error
    assert rejected == 0
    assert Outbox(root).pending(away) > 0
