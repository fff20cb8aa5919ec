"""The YAML under k8s/: as it is written, and as kubectl's kustomize renders it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
K8S = ROOT / "k8s"
OVERLAYS = tuple(sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml")))
Object = dict[str, Any]


def kubectl() -> str | None:
    """The path of kubectl, or None where it is not installed."""
    return shutil.which("kubectl")


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization.

    Raises:
        RuntimeError: with what kubectl says against it.
    """
    command = [kubectl() or "kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{folder}: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def write_kustomization(folder: Path, resources: list[Path], components: list[Path]) -> None:
    """An overlay of a user's own in `folder`; kustomize takes relative paths only."""
    folder = folder.resolve()
    content = {
        "resources": [os.path.relpath(path, folder) for path in resources],
        "components": [os.path.relpath(path, folder) for path in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))


def kustomizations() -> dict[Path, Object]:
    """Every kustomization under k8s/ and what it says."""
    return {p: yaml.safe_load(p.read_text()) for p in sorted(K8S.rglob("kustomization.yaml"))}


def references(path: Path, content: Object) -> Iterator[Path]:
    """The files and folders that a kustomization names."""
    for field in ("resources", "components"):
        yield from (path.parent / name for name in content.get(field, ()))
    for patch in content.get("patches", ()):
        if "path" in patch:
            yield path.parent / patch["path"]
    for generator in content.get("configMapGenerator", ()):
        yield from (path.parent / name for name in generator.get("files", ()))


def written_objects() -> list[tuple[Path, Object]]:
    """Every object that some kustomization lists as a resource, with its file."""
    found = []
    for path, content in kustomizations().items():
        for name in content.get("resources", ()):
            file = path.parent / name
            if file.is_file():
                documents = yaml.safe_load_all(file.read_text())
                found += [(file, document) for document in documents if document]
    return found


def name_of(item: Object) -> str:
    """Kind, namespace and name, for people."""
    meta = item["metadata"]
    place = f"{meta['namespace']}/" if "namespace" in meta else ""
    return f"{item['kind']} {place}{meta['name']}"
