"""Render every overlay and hold it against schemas and rules: `make k8s-render`.

Writes `<folder>/<overlay>.yaml`, the folder being the only argument.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from k8s_documents import K8S, OVERLAYS, Object, kubectl, render
from k8s_pods import pod_errors, pods
from k8s_references import reference_errors
from k8s_schemas import SUPPORTED, schema_errors


def errors_of(objects: list[Object]) -> list[str]:
    """Everything that is wrong with a rendered overlay."""
    found = [error for version in SUPPORTED for error in schema_errors(objects, version)]
    found += reference_errors(objects)
    return found + [error for pod in pods(objects) for error in pod_errors(pod)]


def main(folder: Path) -> int:
    """0 when every overlay passes, 1 when one does not, 3 where kubectl is missing."""
    if kubectl() is None:
        print("kubectl is not installed: it renders the overlays; nothing was checked")
        return 3
    folder.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for overlay in OVERLAYS:
        objects = render(K8S / "overlays" / overlay)
        (folder / f"{overlay}.yaml").write_text(yaml.safe_dump_all(objects, sort_keys=False))
        errors = errors_of(objects)
        wrong += len(errors)
        print(f"{overlay}: {len(objects)} objects, {len(errors)} errors, {folder}/{overlay}.yaml")
        for error in errors:
            print(f"  {error}")
    print(f"held against Kubernetes {', '.join(SUPPORTED)}, JobSet and Kueue")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
