"""The manifests under k8s/: rendered, held against schemas and rules, and each file by itself."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from k8s_documents import (
    K8S,
    OVERLAYS,
    ROOT,
    Object,
    kubectl,
    kustomizations,
    name_of,
    references,
    render,
    write_kustomization,
    written_objects,
)
from k8s_network import WORLD, Peer, may_reach
from k8s_pods import pod_errors, pods, quantity
from k8s_references import of_kind, reference_errors
from k8s_schemas import SUPPORTED, schema_errors
from kubernetes import client
from render_overlays import errors_of

needs_kubectl = pytest.mark.skipif(kubectl() is None, reason="kubectl renders; it is not installed")
API, BUCKET = Peer(WORLD), Peer(WORLD)
RUN_WORKER = yaml.safe_load((K8S / "base/platform/dagster.yaml").read_text())["run_launcher"]


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> list[Object]:
    if kubectl() is None:
        pytest.skip("kubectl renders; it is not installed")
    return render(K8S / "overlays" / str(request.param))


@pytest.mark.parametrize("version", SUPPORTED)
def test_every_overlay_passes_the_schemas(rendered: list[Object], version: str) -> None:
    assert schema_errors(rendered, version) == []


def test_every_overlay_is_what_the_official_client_understands(rendered: list[Object]) -> None:
    """Its models read every field and write it again; a field that they do not know gets lost."""
    api, read = client.ApiClient(), 0
    for item in rendered:
        model = f"V1{item['kind']}"
        if hasattr(client, model) and item["apiVersion"].split("/")[-1] == "v1":
            response = SimpleNamespace(data=json.dumps(item))
            made = api.deserialize(response, model)
            assert api.sanitize_for_serialization(made) == item, name_of(item)
            read += 1
    assert read > 45


def test_namespaces_are_applied_before_what_is_in_them(rendered: list[Object]) -> None:
    kinds = [item["kind"] for item in rendered]
    assert kinds[:2] == ["Namespace", "Namespace"]
    assert kinds.index("ServiceAccount") < kinds.index("Deployment")


def test_every_overlay_keeps_the_rules(rendered: list[Object]) -> None:
    assert reference_errors(rendered) == []
    assert [error for pod in pods(rendered) for error in pod_errors(pod)] == []


def test_run_workers_get_the_image_of_the_code_location(rendered: list[Object]) -> None:
    code = of_kind(rendered, "Deployment")["dagster-code"]["spec"]["template"]["spec"]
    said = {v["name"]: v["value"] for v in code["containers"][0]["env"]}
    assert said["DAGSTER_CURRENT_IMAGE"] == code["containers"][0]["image"]


def test_both_namespaces_are_restricted_and_closed(rendered: list[Object]) -> None:
    for name, space in of_kind(rendered, "Namespace").items():
        assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        denied = of_kind(rendered, "NetworkPolicy", name)["default-deny"]["spec"]
        assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert list(of_kind(rendered, "NetworkPolicy", "hillclimb-sandboxes")) == ["default-deny"]


def peers(objects: list[Object]) -> dict[str, Peer]:
    """Everybody who may want to talk, by name."""
    found = {
        pod.owner["metadata"]["name"]: Peer(pod.namespace, tuple(pod.labels.items()))
        for pod in pods(objects)
    }
    return found | {
        "run-worker": Peer("hillclimb", tuple(RUN_WORKER["config"]["labels"].items())),
        "stage": Peer("hillclimb", (("app.kubernetes.io/managed-by", "hillclimb"),)),
        "sandbox": Peer("hillclimb-sandboxes", (("app.kubernetes.io/managed-by", "hillclimb"),)),
        "dns": Peer("kube-system"),
        "stranger": Peer("default"),
    }


REACHED = {
    ("dagster-code", 3030): {"dagster-webserver", "dagster-daemon"},
    ("mlflow", 5000): {"run-worker"},
    ("dagster-webserver", 3000): set(),
    ("stage", 29500): {"stage"},
    ("run-worker", 8080): set(),
    ("sandbox", 80): set(),
}
EVERYBODY = {"dagster-webserver", "dagster-daemon", "dagster-code", "mlflow", "run-worker", "stage"}


def test_nobody_reaches_more_than_it_needs(rendered: list[Object]) -> None:
    known = peers(rendered)
    for (target, port), wanted in REACHED.items():
        others = {n: p for n, p in known.items() if n != target or target == "stage"}
        found = {n for n, p in others.items() if may_reach(rendered, p, known[target], port)}
        assert found == wanted, f"{target}:{port}"
    asks = {n for n, p in known.items() if may_reach(rendered, p, known["dns"], 53, "UDP")}
    assert asks - {"dns", "stranger", "postgres"} == EVERYBODY
    uses_api = {n for n, p in known.items() if may_reach(rendered, p, API, 6443)}
    assert uses_api - {"dns", "stranger"} == EVERYBODY - {"mlflow"}
    assert not any(may_reach(rendered, known["sandbox"], API, port) for port in (53, 80, 443, 6443))


@needs_kubectl
def test_the_database_of_the_laptop_serves_its_clients_alone() -> None:
    objects = render(K8S / "overlays" / "laptop")
    known = peers(objects)
    target = known.pop("postgres")
    found = {name for name, peer in known.items() if may_reach(objects, peer, target, 5432)}
    assert found == EVERYBODY - {"stage"}


def test_an_ingress_gets_in_through_a_labelled_namespace(rendered: list[Object]) -> None:
    space = {"kind": "Namespace", "metadata": {"name": "web", "labels": {}}}
    objects, known = [*rendered, space], peers(rendered)
    assert not may_reach(objects, Peer("web"), known["dagster-webserver"], 3000)
    space["metadata"] = {"name": "web", "labels": {"hillclimb.dev/ingress": "true"}}
    assert may_reach(objects, Peer("web"), known["dagster-webserver"], 3000)
    assert may_reach(objects, Peer("web"), known["mlflow"], 5000)
    assert not may_reach(objects, Peer("web"), known["dagster-code"], 3030)


@needs_kubectl
def test_a_node_without_a_provisioner_gets_its_volumes_from_folders(tmp_path: Path) -> None:
    write_kustomization(
        tmp_path, [K8S / "overlays" / "laptop"], [K8S / "components" / "host-storage"]
    )
    objects = render(tmp_path)
    assert errors_of(objects) == []
    claims = of_kind(objects, "PersistentVolumeClaim")
    template = of_kind(objects, "StatefulSet")["postgres"]["spec"]["volumeClaimTemplates"][0]
    claims["data-postgres-0"] = template
    for volume in of_kind(objects, "PersistentVolume").values():
        claim = claims.pop(volume["spec"]["claimRef"]["name"])["spec"]
        assert claim["storageClassName"] == volume["spec"]["storageClassName"]
        assert set(claim["accessModes"]) <= set(volume["spec"]["accessModes"])
        wanted = claim["resources"]["requests"]["storage"]
        assert quantity(wanted) <= quantity(volume["spec"]["capacity"]["storage"])
    assert not claims


@needs_kubectl
def test_servers_that_can_be_two_survive_a_drain() -> None:
    objects = render(K8S / "overlays" / "gpu")
    workloads = of_kind(objects, "Deployment")
    assert {name for name, d in workloads.items() if d["spec"]["replicas"] > 1} == set(
        of_kind(objects, "PodDisruptionBudget")
    )
    for name in ("dagster-daemon", "dagster-code"):
        assert workloads[name]["spec"]["strategy"] == {"type": "Recreate"}


@needs_kubectl
def test_make_k8s_render_writes_what_it_checks(tmp_path: Path) -> None:
    program = Path(__file__).with_name("render_overlays.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in tmp_path.glob("*.yaml")} == set(OVERLAYS)
    assert "k8s-render" in (ROOT / "Makefile").read_text()


def _resources(container: Object) -> None:
    del container["resources"]["limits"]["memory"]


BREAKAGES: dict[str, tuple[Callable[[Object], object], str]] = {
    "root": (lambda d: d["securityContext"].pop("runAsNonRoot"), "runAsNonRoot"),
    "host path": (
        lambda d: d["volumes"].append({"name": "tmp", "hostPath": {"path": "/"}}),
        "hostPath",
    ),
    "no limit": (lambda d: _resources(d["containers"][0]), "limit of memory"),
    "latest": (lambda d: d["containers"][0].update(image="hillclimb/control:latest"), "pin"),
    "untagged": (lambda d: d["containers"][0].update(image="here:5000/control"), "pin"),
    "mount": (
        lambda d: d["containers"][0]["volumeMounts"].append({"name": "x", "mountPath": "/x"}),
        "there is no volume x",
    ),
    "idle volume": (
        lambda d: d["volumes"].append({"name": "idle", "emptyDir": {}}),
        "nothing mounts",
    ),
    "probe": (lambda d: d["containers"][0].pop("readinessProbe"), "readinessProbe"),
    "probe port": (
        lambda d: d["containers"][0]["livenessProbe"]["httpGet"].update(port=1),
        "asks port 1",
    ),
    "capability": (
        lambda d: d["containers"][0]["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        "drop ALL",
    ),
    "token": (lambda d: d.update(serviceAccountName="mlflow"), "token"),
    "account": (lambda d: d.update(serviceAccountName="nobody"), "no ServiceAccount nobody"),
    "secret": (
        lambda d: d["containers"][0]["envFrom"].append({"secretRef": {"name": "lost"}}),
        "no Secret lost",
    ),
    "claim": (
        lambda d: d["volumes"].append(
            {"name": "tmp2", "persistentVolumeClaim": {"claimName": "lost"}}
        ),
        "no PersistentVolumeClaim lost",
    ),
}


@needs_kubectl
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_the_rules_find_what_schemas_do_not(breakage: str) -> None:
    objects = copy.deepcopy(_laptop())
    spec = of_kind(objects, "Deployment")["dagster-webserver"]["spec"]["template"]["spec"]
    change, said = BREAKAGES[breakage]
    change(spec)
    found = [*reference_errors(objects), *(e for pod in pods(objects) for e in pod_errors(pod))]
    assert any(said in error for error in found), found


def _laptop() -> list[Object]:
    return render(K8S / "overlays" / "laptop")


def test_the_schemas_find_unknown_fields_and_wrong_types() -> None:
    objects = {name_of(item): item for _, item in written_objects()}
    deployment = copy.deepcopy(objects["Deployment dagster-webserver"])
    deployment["spec"]["replica"] = 1
    assert any("replica" in e for e in schema_errors([deployment], "1.36"))
    queue = copy.deepcopy(objects["ClusterQueue hillclimb"])
    queue["spec"]["cohort"] = "v1beta1 called it so"
    queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]["nominalQuota"] = 8
    errors = schema_errors([queue], "1.36")
    assert len(errors) == 2
    assert any("cohort" in error for error in errors)
    stranger = {"apiVersion": "v9", "kind": "Odd", "metadata": {"name": "x"}}
    assert schema_errors([stranger], "1.36") == ["Odd x: Kubernetes 1.36 has no Odd of v9"]


def test_every_file_is_listed_and_every_listed_file_is_there() -> None:
    named: set[Path] = set()
    for path, content in kustomizations().items():
        for reference in references(path, content):
            assert reference.exists(), f"{path} names {reference}"
            named.add(reference.resolve())
    written = {p.resolve() for p in K8S.rglob("*.yaml") if p.name != "kustomization.yaml"}
    assert written <= named


@pytest.mark.parametrize("version", SUPPORTED)
def test_every_file_passes_the_schemas_by_itself(version: str) -> None:
    assert schema_errors([item for _, item in written_objects()], version) == []


def test_every_file_keeps_the_rules_for_pods_but_for_the_image_tag() -> None:
    """The overlays give the tags."""
    found = [e for pod in pods(item for _, item in written_objects()) for e in pod_errors(pod)]
    assert all("pin the image" in error for error in found)
