"""How far a recipe is: which of its artifacts exist, and what is in the way of the others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from hillclimb.artifacts import Artifact, ArtifactError, Manifest, Store
from hillclimb.artifacts.fingerprint import code_version
from hillclimb.artifacts.store import MANIFEST
from hillclimb.recipe.graph import CODE, StageSpec, identify, stage_specs
from hillclimb.recipe.schema import Recipe

State = Literal["made", "running", "partial", "stale", "missing"]


@dataclass(frozen=True)
class StageState:
    """Where one stage is.

    Attributes:
        why: for `stale` what differs from the newest artifact of that name; for `running` which
            process makes it.
        goodput: ideal over actual time, of a made training stage.
    """

    name: str
    group: str
    state: State
    why: str = ""
    bytes: int = 0
    seconds: float = 0.0
    uri: str = ""
    goodput: float | None = None


def stage_states(root: str, recipe: Recipe, seed: int) -> list[StageState]:
    """The state of every stage of the recipe, in the graph's order."""
    store, specs = Store(root), stage_specs(recipe, seed)
    fingerprints = identify(specs)
    files: dict[str, list[str]] = {}
    for path in store.tree.list("artifacts"):
        folder, _, tail = path.removeprefix("artifacts/").rpartition("/")
        while folder and folder.rpartition("/")[0] not in specs:
            folder, _, above = folder.rpartition("/")
            tail = f"{above}/{tail}"
        files.setdefault(folder, []).append(tail)
    return [_state(store, spec, fingerprints, files) for spec in specs.values()]


def _state(
    store: Store, spec: StageSpec, fingerprints: dict[str, str], files: dict[str, list[str]]
) -> StageState:
    folder = f"{spec.name}/{fingerprints[spec.name][:16]}"
    uri = store.uri(spec.name, fingerprints[spec.name])
    if MANIFEST in files.get(folder, ()):
        manifest = Artifact(uri).manifest
        size = sum(entry.bytes for entry in manifest.files)
        seconds = float(manifest.run.get("seconds", 0.0))
        goodput = manifest.metrics.get("goodput")
        return StageState(spec.name, spec.group, "made", "", size, seconds, uri, goodput)
    if holder := _holder(store, folder):
        return StageState(spec.name, spec.group, "running", f"process {holder}", uri=uri)
    if folder in files:
        why = "begun; it goes on from its last checkpoint"
        return StageState(spec.name, spec.group, "partial", why, uri=uri)
    others = [name for name in files if name.rpartition("/")[0] == spec.name]
    reasons = _reasons(store, spec, fingerprints, [o for o in others if MANIFEST in files[o]])
    if reasons:
        return StageState(spec.name, spec.group, "stale", reasons)
    return StageState(spec.name, spec.group, "missing")


def _holder(store: Store, folder: str) -> int | None:
    """The living process that holds the artifact's lock, on local disks."""
    try:
        holder = int(store.tree.read_text(f"artifacts/{folder}.lock"))
        os.kill(holder, 0)
    except PermissionError:
        return holder
    except (OSError, ValueError):
        return None
    return holder


def _reasons(
    store: Store, spec: StageSpec, fingerprints: dict[str, str], folders: list[str]
) -> str:
    """What changed since the artifact of this name that is nearest; empty if there is none.

    An artifact of another seed belongs to another experiment and does not count.
    """
    differences: list[list[str]] = []
    for folder in folders:
        try:
            manifest = Artifact(f"{store.root}/artifacts/{folder}").manifest
        except (ArtifactError, ValueError):
            continue
        if manifest.seed == spec.seed:
            differences.append(_differences(manifest, spec, fingerprints))
    return "; ".join(sorted(differences, key=len)[0]) if differences else ""


def _differences(manifest: Manifest, spec: StageSpec, fingerprints: dict[str, str]) -> list[str]:
    found = [
        f"{field}: {_short(before)} → {_short(after)}"
        for field, before, after in compare(manifest.config, spec.config)
    ]
    for role, name in spec.inputs.items():
        ref = manifest.inputs.get(role)
        if ref is None or ref.fingerprint != fingerprints[name]:
            found.append(f"{name} is another")
    if manifest.code_version != code_version(CODE[spec.kind]):
        found.append(f"the code of {spec.kind} changed")
    if manifest.run.get("ranks", 1) != spec.ranks:
        found.append(f"ranks: {manifest.run.get('ranks', 1)} → {spec.ranks}")
    return found


def compare(before: Any, after: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The places where two nested values differ: dotted path, value before, value after."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        pairs = [(str(key), before.get(key), after.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(str(i), *both) for i, both in enumerate(zip(before, after, strict=True))]
    else:
        return [] if before == after else [(path, before, after)]
    return [
        difference
        for key, old, new in pairs
        for difference in compare(old, new, f"{path}.{key}" if path else key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
