"""What README.md and docs/kubernetes.md tell people to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from k8s_documents import K8S, ROOT, Object, kubectl, render
from k8s_pods import pod_errors, pods
from k8s_readme import cluster_of_readme, launch_of_readme
from k8s_references import USERS_OWN, of_kind, reference_errors
from k8s_schemas import SUPPORTED, schema_errors
from render_overlays import errors_of

from hillclimb.assets import build_assets, union_of_recipes
from hillclimb.recipe.load import experiment_name

DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text()
README = (ROOT / "README.md").read_text()
needs_kubectl = pytest.mark.skipif(kubectl() is None, reason="kubectl renders; it is not installed")


def test_what_people_make_themselves_is_in_the_documentation() -> None:
    made = set(re.findall(r"create secret generic (\S+)", DOCUMENT))
    assert {name for kind, name in USERS_OWN if kind == "Secret"} == made


@needs_kubectl
def test_an_overlay_of_ones_own_gives_run_workers_its_image(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.S)
    (text,) = (block for block in blocks if "kind: Kustomization" in block)
    place = os.path.relpath(K8S / "overlays", tmp_path.resolve())
    assert "../hillclimb/k8s/overlays" in text
    text = text.replace("../hillclimb/k8s/overlays", place)
    (tmp_path / "kustomization.yaml").write_text(text)
    objects = render(tmp_path)
    assert errors_of(objects) == []
    code = of_kind(objects, "Deployment")["dagster-code"]["spec"]["template"]["spec"]
    image = "registry.example/ml/hillclimb-control:0.1.0"
    assert code["containers"][0]["image"] == image
    assert {"name": "DAGSTER_CURRENT_IMAGE", "value": image} in code["containers"][0]["env"]
    settings = of_kind(objects, "ConfigMap")["hillclimb-environment"]["data"]
    assert settings["HILLCLIMB_ARTIFACTS"] == "s3://my-bucket/hillclimb"
    assert settings["HILLCLIMB_LAUNCHER"] == "kubernetes"
    claim = of_kind(objects, "PersistentVolumeClaim")["hillclimb-root"]["spec"]
    assert (claim["storageClassName"], claim["accessModes"]) == ("shared", ["ReadWriteMany"])


def planned(recipe: str, *options: str) -> list[Object]:
    """The manifests that the command line prints for a recipe."""
    command = [sys.executable, "-m", "hillclimb.cli.main", "plan", "--kubernetes"]
    done = subprocess.run(
        [*command, "--recipe", recipe, *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def admitted(stages: list[Object], overlay: str) -> None:
    """An overlay has what stages name, and lets their pods in."""
    installed = render(K8S / "overlays" / overlay)
    assert [error for version in SUPPORTED for error in schema_errors(stages, version)] == []
    assert [error for pod in pods(stages) for error in pod_errors(pod)] == []
    assert reference_errors([*installed, *stages]) == []


@needs_kubectl
def test_the_stages_of_the_readme_are_admitted_where_it_installs() -> None:
    stages = planned("smoke", "--set", f"compute.kubernetes={cluster_of_readme()}")
    assert len(stages) > 20
    admitted(stages, "laptop")
    images = {c["image"] for pod in pods(stages) for c in pod.containers}
    assert images == {"hillclimb/training:0.1.0", "hillclimb/control:0.1.0"}
    assert all(f"-t {image} ." in README for image in images)


@needs_kubectl
def test_the_stages_of_the_full_size_recipe_are_admitted_in_the_overlay_for_gpus() -> None:
    stages = planned("mai-thinking-1")
    assert {stage["kind"] for stage in stages} == {"Job", "JobSet"}
    admitted(stages, "gpu")
    nowhere = reference_errors([*render(K8S / "overlays" / "laptop"), *stages])
    assert any("there is no LocalQueue hillclimb" in error for error in nowhere)


def test_the_documentation_names_the_versions_that_are_checked() -> None:
    assert f"| {SUPPORTED[0]} to {SUPPORTED[-1]} |" in DOCUMENT
    assert f"{SUPPORTED[0]} to {SUPPORTED[-1]}, JobSet and Kueue" in DOCUMENT


def test_the_readme_launches_a_stage_of_the_experiment_that_it_registers() -> None:
    asked = launch_of_readme()["executionParams"]
    assert asked["executionMetadata"]["tags"] == [
        {"key": "dagster/partition", "value": experiment_name("smoke", 0, "cluster")}
    ]
    assert "--recipe smoke --experiment cluster" in README
    (chosen,) = asked["selector"]["assetSelection"]
    keys = {tuple(asset.key.path) for asset in build_assets(union_of_recipes())}
    assert tuple(chosen["path"]) in keys
    assert json.dumps(asked)


def test_links_between_the_documents_lead_somewhere() -> None:
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)]+)\)", file.read_text()):
            path, _, anchor = target.partition("#")
            there = file.parent / path if path else file
            assert there.exists(), f"{file.name} links to {target}"
            if anchor:
                heads = re.findall(r"^#+ (.*)$", there.read_text(), re.M)
                slugs = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}
                assert anchor in slugs, f"{file.name} links to {target}"
