"""Imports point downwards only; one module of the sandbox speaks to the cluster's API."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    0: ("recipe", "artifacts"),
    1: ("model", "corpus", "rewards", "environments"),
    2: ("training", "rollout"),
    3: ("rl", "distillation", "evaluation", "scaling"),
    4: ("stages",),
}
CLUSTER_CLIENT = ROOT / "hillclimb/environments/sandbox/pod_api.py"
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", sorted(FLOOR_OF))
def test_a_floor_knows_only_the_floors_below(package: str) -> None:
    for path in (ROOT / "hillclimb" / package).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            client = parts[0] == "kubernetes" and path == CLUSTER_CLIENT
            if parts[0] in ("dagster", "mlflow", "kubernetes") and not client:
                pytest.fail(f"{path} imports {name}")
            if parts[0] != "hillclimb" or len(parts) < 2 or parts[1] == package:
                continue
            floor = FLOOR_OF.get(parts[1], 5)
            below = floor < FLOOR_OF[package] or (floor == FLOOR_OF[package] != 1)
            assert below, f"{path} imports {name}"
