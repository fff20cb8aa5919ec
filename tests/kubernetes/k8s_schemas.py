"""Objects against the schemas of each supported Kubernetes version, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from k8s_crds import CRDS
from k8s_documents import Object, name_of
from referencing import Registry, Resource

SUPPORTED = ("1.33", "1.34", "1.35", "1.36", "1.37")


def schema_errors(objects: Iterable[Object], version: str) -> list[str]:
    """What the API server of that version would refuse, one sentence each."""
    return [error for item in objects for error in _errors(item, version)]


def _errors(item: Object, version: str) -> list[str]:
    found = []
    for api_version, kind, path, part in _parts(item):
        validator = _validator(version, api_version, kind)
        if validator is None:
            found.append(f"{name_of(item)}: Kubernetes {version} has no {kind} of {api_version}")
            continue
        for error in validator.iter_errors(part):
            where = ".".join([*path, *map(str, error.absolute_path)])
            found.append(f"{name_of(item)}: {where or 'the object'}: {error.message} ({version})")
    return found


def _parts(item: Object) -> list[tuple[str, str, list[str], Any]]:
    """What to hold against which schema: the object, and the Jobs that a JobSet contains."""
    api_version, kind = item["apiVersion"], item["kind"]
    if (api_version, kind) not in CRDS:
        return [(api_version, kind, [], item)]
    spec = item.get("spec", {})
    parts: list[tuple[str, str, list[str], Any]] = [(api_version, kind, ["spec"], spec)]
    if kind == "JobSet":
        for index, job in enumerate(spec.get("replicatedJobs", ())):
            whole = {"apiVersion": "batch/v1", "kind": "Job", **job.get("template", {})}
            path = ["spec", "replicatedJobs", str(index), "template"]
            parts.append(("batch/v1", "Job", path, whole))
    return parts


@cache
def _validator(version: str, api_version: str, kind: str) -> Draft202012Validator | None:
    if (api_version, kind) in CRDS:
        return Draft202012Validator(CRDS[api_version, kind])
    group, _, number = api_version.rpartition("/")
    name = "-".join(filter(None, [kind.lower(), group.split(".")[0], number]))
    file = _folder(version) / f"{name}.json"
    if not file.is_file():
        return None
    return Draft202012Validator(json.loads(file.read_text()), registry=_registry(version))


@cache
def _registry(version: str) -> Any:
    content = json.loads((_folder(version) / "_definitions.json").read_text())
    return Resource.from_contents(content) @ Registry()


def _folder(version: str) -> Any:
    """The schemas of one version that refuse fields which they do not know."""
    schemas = files("kubernetes_validate") / "kubernetes-json-schema"
    return schemas / f"v{version}.0-local-strict"
