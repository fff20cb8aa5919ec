"""`hillclimb plan --kubernetes`: the manifests, what they ask for, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from cli_support import SMALL, Cli
from kubernetes.client import ApiClient

from hillclimb.recipe.kubernetes import Kubernetes

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "kubernetes"))
SECTION = """compute.kubernetes=
image: registry/training:1
control_image: registry/control:1
rollout_image: registry/rollout:1
runs: /shared/runs
volumes: [{name: root, mount: /shared, claim: root}]
gpus_per_node: 2
sandboxes: {namespace: boxes, image: python}
"""
SPREAD = (
    "compute.base_ranks=4",
    "compute.climb_rollout_accelerators=4",
    "compute.rollout_server=2",
)
Manifest = dict[str, Any]


def plan(cli: Cli, *sets: str, recipe: object = SMALL, root: str = "") -> Any:
    options = [option for value in sets for option in ("--set", value)]
    place = ("--root", root) if root else ()
    return cli("plan", "--kubernetes", "--recipe", recipe, *place, *options)


def manifests(cli: Cli, *sets: str, **how: Any) -> dict[str, Manifest]:
    """What was printed, by stage."""
    done = plan(cli, *sets, **how)
    assert done.exit_code == 0, done.stderr
    found = list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))
    return {m["metadata"]["annotations"]["hillclimb.dev/stage"]: m for m in found}


def rows(stderr: str) -> dict[str, list[str]]:
    """The cells of the table by their first."""
    lines = [line.split("  ") for line in stderr.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {line[0]: line[1:] for line in cells if len(line) > 1}


def refused(cli: Cli, *sets: str, **how: Any) -> list[str]:
    """The sentences of a plan that is refused; nothing else is printed."""
    done = plan(cli, *sets, **how)
    assert (done.exit_code, done.stdout) == (2, "")
    return [line.strip() for line in done.stderr.splitlines()[1:]]


def official(manifest: Manifest) -> list[Manifest]:
    """The manifest as the official client's models read and write it: its Jobs, for a JobSet."""
    api = ApiClient()

    def through(part: Manifest, model: str) -> Manifest:
        answer = type("Answer", (), {"data": json.dumps(part)})()
        return dict(api.sanitize_for_serialization(api.deserialize(answer, model)))

    if manifest["kind"] == "Job":
        return [through(manifest, "V1Job")]
    jobs = manifest["spec"]["replicatedJobs"]
    return [through(job["template"]["spec"], "V1JobSpec") for job in jobs]


def test_every_stage_is_one_object_that_the_schemas_and_the_client_take(cli: Cli) -> None:
    from k8s_pods import pod_errors, pods
    from k8s_schemas import SUPPORTED, schema_errors

    found = manifests(cli, SECTION, *SPREAD, "compute.kubernetes.queue=hillclimb")
    assert len(found) == 28
    assert {m["kind"] for m in found.values()} == {"Job", "JobSet"}
    assert [
        error for version in SUPPORTED for error in schema_errors(found.values(), version)
    ] == []
    assert [error for pod in pods(found.values()) for error in pod_errors(pod)] == []
    for manifest in found.values():
        whole = manifest["kind"] == "Job"
        jobs = [] if whole else manifest["spec"]["replicatedJobs"]
        assert official(manifest) == (
            [manifest] if whole else [j["template"]["spec"] for j in jobs]
        )


def test_the_table_says_what_the_manifests_ask_for(cli: Cli) -> None:
    """Two pods of two GPUs for the base; a climb has one for its rank and two servers of two."""
    done = plan(cli, SECTION, *SPREAD)
    table = rows(done.stderr)
    assert table["mai_base_16k"][:3] == ["JobSet", "2", "4"]
    assert table["stem/round_0/climb"][:3] == ["JobSet", "3", "5"]
    assert table["stem/round_1/student"][:3] == ["Job", "1", "1"]
    assert table["tokenizer"] == ["Job", "1", "–", "–", "–"]
    assert "with compute.parallel_stages = 2: 10 (stem/round_0/climb, agentic/" in done.stderr
    for name, manifest in manifests(cli, SECTION, *SPREAD).items():
        pods, gpus = counted(manifest)
        assert table[name][:3] == [manifest["kind"], str(pods), str(gpus) if gpus else "–"]
        comment = re.search(rf"^---\n# {re.escape(name)}: (.*)$", done.stdout, re.MULTILINE)
        assert comment is not None
        said = re.findall(r"(\d+) (pods?|GPUs?)(?:,|$)", comment[1])
        assert [int(number) for number, _ in said] == [pods, *([gpus] if gpus else [])]


def counted(manifest: Manifest) -> tuple[int, int]:
    """Pods and GPUs that a manifest asks for."""
    spec = manifest["spec"]
    jobs = [(1, spec)] if manifest["kind"] == "Job" else [
        (job["replicas"], job["template"]["spec"]) for job in spec["replicatedJobs"]
    ]  # fmt: skip
    pods = gpus = 0
    for replicas, job in jobs:
        [container] = job["template"]["spec"]["containers"]
        each = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        pods += replicas * job["completions"]
        gpus += replicas * job["completions"] * each
    return pods, gpus


REACHES = {
    "namespace": "other",
    "image": "registry/training:2",
    "control_image": "registry/control:2",
    "rollout_image": "registry/rollout:2",
    "rollout_engine": "torch",
    "image_pull_policy": "Never",
    "runs": "/shared/others",
    "volumes": "[{name: data, mount: /shared, host_path: /srv/hillclimb}]",
    "gpus_per_node": "4",
    "cpu": "3",
    "memory": "65Gi",
    "shm": "15Gi",
    "light_cpu": "2",
    "light_memory": "20Gi",
    "rdma": "{rdma/hca: 1}",
    "node_selector": "{pool: h100}",
    "tolerations": "[{key: nvidia.com/gpu, effect: NoSchedule}]",
    "topology_key": "example.com/rack",
    "priority_class": "urgent",
    "queue": "hillclimb",
    "max_restarts": "7",
    "service_account": "somebody",
    "secrets": "[bucket]",
    "env": "{PLACE: here}",
    "sandboxes": "{image: other}",
    "ttl_seconds": "60",
}
NO_PART_OF_MANIFESTS = {"nodes", "quota", "topology_nodes", "max_preemptions"}


def test_every_field_of_the_section_reaches_the_manifests(cli: Cli) -> None:
    assert REACHES.keys() | NO_PART_OF_MANIFESTS == Kubernetes.model_fields.keys()
    before = manifests(cli, SECTION, *SPREAD, root="memory://root")
    for field, value in REACHES.items():
        change = f"compute.kubernetes.{field}={value}"
        after = manifests(cli, SECTION, *SPREAD, change, root="memory://root")
        assert after.keys() == before.keys()
        assert after != before, field
        names = [[m["metadata"]["name"] for m in found.values()] for found in (before, after)]
        assert names[0] == names[1], field


def test_the_plan_says_what_servers_draw_with_and_which_gpus_stand_idle(cli: Cli) -> None:
    def told(*sets: str) -> list[str]:
        lines = plan(cli, SECTION, *SPREAD, *sets).stderr.splitlines()
        return [line for line in lines if re.match("rollout servers|torch|vLLM", line)]

    assert told() == ["rollout servers draw with vllm"]
    idle = told("compute.kubernetes.rollout_engine=torch")
    assert idle[0] == "rollout servers draw with torch"
    assert "the servers' GPUs stand idle" in idle[1]
    far = told("compute.kubernetes.gpus_per_node=1", "compute.kubernetes.queue=hillclimb")
    assert "of the 2 pods of a server it uses the first, with 1 GPUs" in far[1]
    assert told("compute.climb_rollout_accelerators=0") == []


def test_names_of_pods_fit_a_host_name(cli: Cli) -> None:
    for manifest in manifests(cli, recipe="mai-thinking-1").values():
        name = manifest["metadata"]["name"]
        for job in manifest["spec"].get("replicatedJobs", ()):
            last = (job["replicas"] - 1, job["template"]["spec"]["completions"] - 1)
            assert len(f"{name}-{job['name']}-{last[0]}-{last[1]}-abcde") <= 63


def test_the_full_recipe_is_planned_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from hillclimb.cli.main import app\n"
        "app(['plan', '--kubernetes', '--recipe', 'mai-thinking-1'], standalone_mode=False)\n"
        "assert not {'kubernetes', 'dagster', 'mlflow', 'deepspeed'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    table = rows(done.stderr)
    # 8,192 ranks in pods of 4; 768 ranks in 192 pods beside 64 servers of 16 pods each.
    assert table["mai_base_16k"][:3] == ["JobSet", "2,048", "8,192"]
    assert table["mai_thinking"][:3] == ["JobSet", "1,216", "4,864"]
    assert "with compute.parallel_stages = 3: 14,592 (" in done.stderr
    assert len(list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))) == 58


def test_the_documented_section_puts_the_toy_on_a_cluster(cli: Cli) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    [section] = re.findall(r"```yaml\n(# cluster\.yaml\n.*?)```", text, re.DOTALL)
    for recipe in ("toy", "smoke"):
        found = manifests(cli, f"compute.kubernetes={section.rstrip()}", recipe=recipe)
        assert {m["kind"] for m in found.values()} == {"Job"}
        assert {counted(m) for m in found.values()} == {(1, 0)}
        output = found["tokenizer"]["metadata"]["annotations"]["hillclimb.dev/output"]
        assert output.startswith("/var/lib/hillclimb/artifacts/tokenizer/")


def test_a_recipe_without_a_cluster_says_what_to_add(cli: Cli) -> None:
    [sentence] = refused(cli, recipe="toy")
    assert sentence.startswith("compute.kubernetes is missing. Fix: add it with image,")


def test_everything_that_the_cluster_cannot_give_is_told_at_once(cli: Cli) -> None:
    sets = (
        SECTION, *SPREAD, "compute.kubernetes.sandboxes=null", "compute.kubernetes.nodes=3",
        "compute.accelerator.memory_gib=0.05",
    )  # fmt: skip
    found = refused(cli, *sets, root="somewhere")
    fields = [sentence.split(" ")[0] for sentence in found]
    assert set(fields) == {
        "--root", "compute.accelerator.memory_gib", "compute.kubernetes.sandboxes",
        "compute.kubernetes.queue",
    }  # fmt: skip
    told = dict(zip(fields, found, strict=True))
    assert "is somewhere, a folder that pods do not see" in told["--root"]
    assert "with an image that has sh and python3" in told["compute.kubernetes.sandboxes"]
    assert "ask for 10 GPUs of 6" in told["compute.kubernetes.queue"]


def test_artifacts_are_planned_where_pods_can_reach_them(cli: Cli) -> None:
    def output(**how: str) -> str:
        found = manifests(cli, SECTION, **how)["tokenizer"]
        return str(found["metadata"]["annotations"]["hillclimb.dev/output"])

    assert output().startswith("/shared/artifacts/tokenizer/")
    assert output(root="/shared/climbs").startswith("/shared/climbs/artifacts/tokenizer/")
    assert output(root="memory://bucket/x").startswith("memory://bucket/x/artifacts/tokenizer/")
