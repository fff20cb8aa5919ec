"""The images under k8s/images: their locks, what they import, how they are built."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from k8s_documents import K8S, ROOT
from k8s_imports import not_locked
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hillclimb.launcher.kubernetes.pods import CONTROL_KINDS
from hillclimb.recipe.graph import CODE
from hillclimb.stages.registry import KINDS

IMAGES = ("control", "training", "rollout")
LOCKS = {"control": ["control"], "training": ["training", "cuda"], "rollout": ["rollout"]}
HEAVY = ("torch", "deepspeed", "vllm", "transformers", "triton")
CONTROL = (
    "hillclimb.definitions", "hillclimb.tracking.__main__", "hillclimb.launcher.kubernetes",
    "hillclimb.cli.plan", "hillclimb.cli.status", "hillclimb.cli.verify", "hillclimb.report",
)  # fmt: skip
ROLLOUT = ("hillclimb.rollout.server", "hillclimb.rollout.vllm_worker")


@cache
def locks() -> ModuleType:
    """scripts/locks.py."""
    spec = importlib.util.spec_from_file_location("locks", ROOT / "scripts" / "locks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(lock: str) -> dict[str, str]:
    """Package and version of every line of a lock."""
    lines = (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def names(image: str) -> set[str]:
    """The packages of an image."""
    return {name for lock in LOCKS[image] for name in pins(lock)}


def stage_modules(control: bool) -> list[str]:
    """The modules of the stages that run in the control image, or in the training image."""
    kinds = [kind for kind in KINDS if (kind in CONTROL_KINDS) == control]
    paths = [CODE[kind].removesuffix(".py").replace("/", ".") for kind in kinds]
    return ["hillclimb.stages.__main__", *(f"hillclimb.{path}" for path in paths)]


@pytest.mark.parametrize("image", ["control", "training"])
def test_the_locks_are_what_the_script_takes_out_of_the_whole_lock(image: str) -> None:
    written = (ROOT / "requirements" / f"{image}.txt").read_text().splitlines()
    assert written == locks().lock(image), "run python scripts/locks.py"


def test_the_script_says_what_the_whole_lock_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    script = locks()
    monkeypatch.setitem(script.OWN, "training", ("moto", "no-such-package"))
    with pytest.raises(LookupError, match=r"no-such-package is not installed"):
        script.lock("training")


def test_the_control_image_has_nothing_of_the_accelerators() -> None:
    assert not names("control") & set(HEAVY)
    assert not [name for name in names("control") if name.startswith(("nvidia", "cuda"))]


def test_the_training_image_has_nothing_of_dagster_but_its_pipes() -> None:
    found = {name for name in names("training") if name.startswith(("dagster", "mlflow"))}
    assert found == {"dagster-pipes"}


def test_cuda_comes_on_top_of_the_training_lock_and_agrees_with_it() -> None:
    assert not pins("cuda").keys() & pins("training").keys()
    assert {"triton", "nvidia-nccl-cu13", "nvidia-cudnn-cu13"} <= pins("cuda").keys()


def test_the_rollout_lock_holds_what_it_was_asked_for() -> None:
    lines = (ROOT / "requirements" / "rollout.in").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    locked = pins("rollout")
    for wish in wanted:
        assert wish.specifier.contains(locked[canonicalize_name(wish.name)]), wish
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["optional-dependencies"]["rollout"]:
        asked = Requirement(line)
        assert asked.specifier.contains(locked[canonicalize_name(asked.name)]), asked


@pytest.mark.parametrize(
    ("image", "entries"),
    [
        ("control", [*CONTROL, *stage_modules(True)]),
        ("training", stage_modules(False)),
        ("rollout", ROLLOUT),
    ],
)
def test_every_image_has_what_it_imports(image: str, entries: list[str]) -> None:
    assert not_locked(entries, names(image)) == []


def test_a_missing_package_is_noticed() -> None:
    missing = not_locked(stage_modules(False), names("training") - {"safetensors"})
    assert any("imports safetensors" in sentence for sentence in missing)


def dockerfile(image: str) -> list[str]:
    """The instructions of a Dockerfile, continued lines joined."""
    text = (K8S / "images" / f"{image}.Dockerfile").read_text()
    joined = re.sub(r"\\\n", " ", text)
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_built_in_two_stages_and_run_as_nobody_special(image: str) -> None:
    lines = dockerfile(image)
    final = lines[lines.index("FROM ${PYTHON}") :]
    assert sum(line.startswith("FROM ") for line in lines) == 2
    assert lines[0].startswith("ARG PYTHON=docker.io/library/python:3.1")
    assert re.search(r":\d+\.\d+\.\d+-slim-\w+$", lines[0]), "pin the base"
    assert "USER 1000:1000" in final
    assert final.index("USER 1000:1000") > max(
        i for i, line in enumerate(final) if line.startswith("RUN ")
    )
    assert [line for line in final if line.startswith("COPY")] == [
        "COPY --from=build /opt/hillclimb /opt/hillclimb"
    ]
    assert not [line for line in lines if line.startswith("ADD") or "--mount" in line]
    installs = [part for line in lines for part in line.split("&&") if "pip install" in part]
    assert installs
    assert all("--no-deps" in part for part in installs)


@pytest.mark.parametrize("image", IMAGES)
def test_images_install_their_own_locks_from_the_build_context(image: str) -> None:
    used = {
        name
        for line in dockerfile(image)
        for name in re.findall(r"-r requirements/(\w+)\.txt", line)
    }
    assert used == set(LOCKS[image])
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert allowed[1] == "*"
    sent = {line[1:] for line in allowed if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", "requirements", project["project"]["readme"]}
    needed |= {
        Path(path).parts[0] for path in project["tool"]["setuptools"]["package-dir"].values()
    }
    assert needed | set(project["project"]["license-files"]) == sent
