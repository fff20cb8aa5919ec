"""What Dagster loads: the graph, from both entrances, light and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from hillclimb.assets import checks, metadata, union_of_recipes
from hillclimb.definitions import build
from hillclimb.jobs import JOBS

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
SNAPSHOT = HERE / "graph.json"


def graph(definitions: dg.Definitions) -> dict[str, list[str]]:
    return {
        spec.key.to_user_string(): sorted(dep.asset_key.to_user_string() for dep in spec.deps)
        for spec in sorted(definitions.resolve_all_asset_specs(), key=lambda spec: spec.key)
    }


def test_keys_and_dependencies_are_the_recorded_ones(tmp_path: Path) -> None:
    """After a wanted change: `python tests/orchestration/test_definitions.py` records anew."""
    assert graph(build(str(tmp_path))) == json.loads(SNAPSHOT.read_text())


def test_both_entrances_load_the_same_definitions() -> None:
    workspace = yaml.safe_load((REPOSITORY / "workspace.yaml").read_text())
    (entry,) = workspace["load_from"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    module = entry["python_module"]
    assert module["module_name"] == project["code_location_target_module"]
    assert module["location_name"] == project["code_location_name"] == "hillclimb"


def test_definitions_load_in_three_seconds_without_torch() -> None:
    code = (
        "import sys, resource, json\n"
        "import hillclimb.definitions\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = [m for m in ('torch', 'mlflow', 'pandas', 'pyarrow') if m in sys.modules]\n"
        "print(json.dumps([used.ru_utime + used.ru_stime, heavy]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = json.loads(done.stdout)
    assert heavy == []
    assert seconds < 3


def test_every_asset_is_described_grouped_owned_and_leads_to_its_code(tmp_path: Path) -> None:
    for spec in build(str(tmp_path)).resolve_all_asset_specs():
        assert spec.description
        assert spec.group_name
        assert spec.owners
        assert spec.kinds
        if spec.key.path[0] == "recipe":
            continue
        assert spec.code_version
        (place,) = spec.metadata["dagster/code_references"].code_references
        assert Path(place.file_path).is_file()
        line = Path(place.file_path).read_text().splitlines()[place.line_number - 1]
        assert line.startswith("def make_")


def test_accelerator_stages_share_a_pool_and_every_asset_has_blocking_checks(
    tmp_path: Path,
) -> None:
    definitions = build(str(tmp_path))
    nodes = union_of_recipes()
    for asset in definitions.resolve_asset_graph().assets_defs:
        if not asset.is_executable:
            continue
        name = "/".join(asset.key.path)
        assert asset.op.pool == ("gpu" if nodes[name].gpu else None)
        specs = list(asset.check_specs)
        assert {spec.name for spec in specs} == set(checks.declared(nodes[name].kind))
        warnings = {spec.name for spec in specs if not spec.blocking}
        assert all(spec.blocking == checks.blocks(spec.name) for spec in specs)
        assert bool(warnings) == (nodes[name].kind == "climb")


def test_jobs_cover_the_graph(tmp_path: Path) -> None:
    definitions = build(str(tmp_path))
    parts = [set(_assets(definitions, name)) for name in JOBS if name != "everything"]
    assert set().union(*parts) == set(_assets(definitions, "everything"))
    assert sum(map(len, parts)) == len(set().union(*parts))


def _assets(definitions: dg.Definitions, job: str) -> list[Any]:
    return list(definitions.resolve_job_def(job).asset_layer.executable_asset_keys)


def test_a_picture_carries_its_numbers() -> None:
    drawn = metadata.picture("loss <a>", [3.0, 2.0, float("nan"), 1.0])
    assert drawn.startswith("![loss <a>: 3 to 1](data:image/svg+xml;base64,")
    assert metadata.picture("loss", [1.0]) == ""


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(graph(build("/nowhere")), indent=1) + "\n")
