"""What the manifests start, started: the rendered commands, settings and dagster.yaml.

Not the cluster's part: files of ConfigMaps are copied, ports are free ones of this machine, and
Kubernetes is a server that takes the Job of a run worker and says that it runs.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from dagster_servers import Dagster, until
from grpc import insecure_channel
from grpc_health.v1 import health_pb2, health_pb2_grpc
from k8s_access import Recorder, recording
from k8s_documents import K8S, Object, kubectl, render
from k8s_programs import command, container, environment, free_port, running, surroundings
from k8s_readme import launch_of_readme
from k8s_references import of_kind
from postgres_server import PASSWORD, USER, Postgres, a_postgres

from hillclimb.artifacts import Store
from hillclimb.experiments import Experiment

sys.path.insert(0, str(Path(__file__).parent.parent / "artifacts"))
from s3_server import ask, moto

DONE_WITHOUT = {"logs", ".logs_queue"}
"""Empty folders for usage statistics; Dagster goes on where it cannot make them."""
pytestmark = pytest.mark.skipif(kubectl() is None, reason="kubectl renders; it is not installed")


@pytest.fixture(scope="module")
def overlay() -> list[Object]:
    return render(K8S / "overlays" / "gpu")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with a_postgres() as made:
        yield made


@pytest.fixture(scope="module")
def bucket() -> Iterator[int]:
    """The port of an S3 server that has the bucket `hillclimb`."""
    with moto() as port:
        assert ask(port, "PUT", "/hillclimb") == 200
        yield port


@pytest.fixture
def secrets(postgres: Postgres, bucket: int) -> dict[str, dict[str, str]]:
    """The two Secrets that people make, as docs/kubernetes.md says."""
    return {
        "hillclimb-postgres": {
            "PGHOST": "127.0.0.1", "PGPORT": str(postgres.port), "PGUSER": USER,
            "PGPASSWORD": PASSWORD,
        },
        "hillclimb-object-store": {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{bucket}",
        },
    }  # fmt: skip


def request(port: int, method: str, path: str, host: str, body: object = None) -> tuple[int, bytes]:
    """One request with a Host header of one's own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
    connection.request(method, path, data, {"Host": host, "Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def answers(port: int, path: str) -> bool:
    try:
        return request(port, "GET", path, f"127.0.0.1:{port}")[0] == 200
    except OSError:
        return False


@pytest.mark.slow("MLflow's migrations and its server")
def test_mlflow_makes_its_tables_and_serves_its_clients_alone(
    overlay: list[Object],
    secrets: dict[str, dict[str, str]],
    postgres: Postgres,
    bucket: int,
    tmp_path: Path,
) -> None:
    upgrade = container(overlay, "mlflow", "upgrade")
    values = environment(overlay, upgrade, secrets)
    argv = command(upgrade, values)
    subprocess.run(argv, env=surroundings(values), cwd=tmp_path, check=True, timeout=300)
    assert postgres.ask("mlflow", "SELECT count(*) FROM experiments") == [(0,)]

    server, port = container(overlay, "mlflow", "mlflow"), free_port()
    values = environment(overlay, server, secrets)
    probe = server["readinessProbe"]["httpGet"]["path"]
    with running(command(server, values, port), values, tmp_path):
        until(lambda: answers(port, probe))
        search = "/api/2.0/mlflow/experiments/search"
        for host, status in (("mlflow:5000", 200), ("localhost:5000", 200), ("evil", 403)):
            assert request(port, "POST", search, host, {"max_results": 1})[0] == status
        place = "/api/2.0/mlflow-artifacts/artifacts/notes/a.txt"
        assert request(port, "PUT", place, "mlflow:5000", b"kept")[0] == 200
        assert request(port, "GET", place, "mlflow:5000") == (200, b"kept")
    assert ask(bucket, "GET", "/hillclimb/mlflow/notes/a.txt") == 200


@pytest.fixture
def kubernetes() -> Iterator[Recorder]:
    """Takes the Jobs of run workers and says that they run."""
    running = {"apiVersion": "batch/v1", "kind": "Job", "status": {"active": 1}}
    with recording(lambda method, path: running if path.endswith("/status") else None) as made:
        yield made


@pytest.fixture
def settings(
    overlay: list[Object], kubernetes: Recorder, secrets: dict[str, dict[str, str]], tmp_path: Path
) -> dict[str, str]:
    """What Dagster's programs get, with folders and Kubernetes of this test.

    A kubeconfig stands for the token of a pod, and stages run on this machine.
    """
    home = tmp_path / "instance"
    home.mkdir()
    files = of_kind(overlay, "ConfigMap")["dagster-instance"]["data"]
    text = files["dagster.yaml"].replace("/tmp/dagster", str(tmp_path / "local"))
    config = yaml.safe_load(text)
    cluster = {"name": "here", "cluster": {"server": kubernetes.url}}
    context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "here", "contexts": [context],
        "clusters": [cluster], "users": [{"name": "me", "user": {}}],
    }))  # fmt: skip
    reached = {"load_incluster_config": False, "kubeconfig_file": str(tmp_path / "kubeconfig")}
    config["run_launcher"]["config"] |= reached
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    code = container(overlay, "dagster-code", "code")
    return environment(overlay, code, secrets) | {
        "HILLCLIMB_ROOT": str(tmp_path / "root"),
        "HILLCLIMB_ARTIFACTS": "s3://hillclimb/artifacts",
        "HILLCLIMB_LAUNCHER": "local",
        "HOME": str(tmp_path),
        "DAGSTER_HOME": str(home),
    }


@pytest.mark.slow("Dagster's servers, a run worker and a stage")
def test_dagster_launches_a_run_worker_that_makes_a_stage_in_the_bucket(
    overlay: list[Object],
    kubernetes: Recorder,
    settings: dict[str, str],
    postgres: Postgres,
    bucket: int,
    tmp_path: Path,
) -> None:
    root, ports = Path(settings["HILLCLIMB_ROOT"]), (free_port(), free_port())
    experiment = Experiment.make("smoke", 0)
    experiment.save(root)
    files = of_kind(overlay, "ConfigMap")["dagster-instance"]["data"]
    workspace = yaml.safe_load(files["workspace.yaml"])
    workspace["load_from"][0]["grpc_server"] |= {"host": "127.0.0.1", "port": ports[0]}
    place = Path(settings["DAGSTER_HOME"]) / "workspace.yaml"
    place.write_text(yaml.safe_dump(workspace))
    wanted = {
        "code": ("dagster-code", ports[0]),
        "webserver": ("dagster-webserver", ports[1]),
        "daemon": ("dagster-daemon", 0),
    }
    with ExitStack() as stack:
        for name, (workload, port) in wanted.items():
            argv = command(container(overlay, workload, name), settings, port)
            argv = [word.replace("/opt/dagster/workspace.yaml", str(place)) for word in argv]
            stack.enter_context(running(argv, settings, tmp_path))
        code = container(overlay, "dagster-code", "code")
        until(lambda: serves(ports[0], code["readinessProbe"]["grpc"]["service"]))
        path = container(overlay, "dagster-webserver", "webserver")["readinessProbe"]["httpGet"]
        until(lambda: answers(ports[1], path["path"]))
        dagster = Dagster(ports[1])
        run = until(lambda: launched(ports[1], experiment.name, settings))
        job = until(lambda: next(iter(kubernetes.bodies), None))
        worker = job["spec"]["template"]["spec"]["containers"][0]
        assert worker["image"] == code["image"]
        assert job["metadata"]["name"] == f"dagster-run-{run}"
        of_worker = {**settings, "DAGSTER_HOME": str(tmp_path / "is-not-mounted")}
        argv = command(worker, of_worker)
        done = subprocess.run(argv, env=surroundings(of_worker), cwd=tmp_path, timeout=300)
        assert done.returncode == 0
        assert dagster.status(run) == "SUCCESS"
        alive = container(overlay, "dagster-daemon", "daemon")["livenessProbe"]["exec"]
        subprocess.run(
            command(alive, settings), env=surroundings(settings), check=True, timeout=120
        )
    assert postgres.ask("dagster", "SELECT count(*) FROM runs") == [(1,)]
    stage = "raw_documents"
    made = Store(settings["HILLCLIMB_ARTIFACTS"]).uri(stage, experiment.plan().fingerprints[stage])
    assert ask(bucket, "GET", f"/{made.removeprefix('s3://')}/manifest.json") == 200
    assert not (root / "artifacts").exists()
    left = {path.name for path in Path(settings["DAGSTER_HOME"]).rglob("*")}
    assert left <= {"dagster.yaml", "workspace.yaml", *DONE_WITHOUT}, "its folder is a ConfigMap"


def serves(port: int, service: str) -> bool:
    """What the kubelet's gRPC probe asks."""
    with insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            asked = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=5)
        except Exception:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def launched(port: int, experiment: str, settings: Mapping[str, str]) -> str | None:
    """The id of the run that the README's command launches, once the webserver knows the code."""
    asked = launch_of_readme()
    asked["executionParams"]["executionMetadata"]["tags"][0]["value"] = experiment
    argv = ["dagster-graphql", "--remote", f"http://localhost:{port}"]
    argv += ["--predefined", "launchPipelineExecution", "--variables", json.dumps(asked)]
    done = subprocess.run(
        argv, env=surroundings(settings), capture_output=True, text=True, timeout=120
    )
    found = re.search(r"'LaunchRunSuccess', 'run': \{'runId': '([0-9a-f-]+)'", done.stdout)
    return found[1] if found else None
