"""A root with made-up artifacts, and the command line in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import SCORES, SMALL, Cli
from typer.testing import CliRunner

from hillclimb.artifacts import InputRef, Manifest, Store
from hillclimb.artifacts.fingerprint import code_version
from hillclimb.artifacts.store import ArtifactWriter
from hillclimb.cli.main import app
from hillclimb.recipe.graph import CODE, identify, stage_specs
from hillclimb.recipe.load import load_recipe


@pytest.fixture
def cli() -> Cli:
    """Run `hillclimb ARGS`."""
    return lambda *args, **kwargs: CliRunner().invoke(app, [str(arg) for arg in args], **kwargs)


@pytest.fixture
def made_root(tmp_path: Path) -> Path:
    """A root where every stage of the small recipe is committed, each with one small file."""
    recipe = load_recipe(SMALL)
    specs, store = stage_specs(recipe), Store(str(tmp_path / "root"))
    prints = identify(specs)
    for name, spec in specs.items():
        out = ArtifactWriter(store.uri(name, prints[name]))
        out.write_text("notes.txt", f"{name}\n")
        if name == "scorecard":
            out.write_json("scorecard.json", SCORES)
        inputs = {
            role: InputRef(name=n, fingerprint=prints[n], uri=store.uri(n, prints[n]))
            for role, n in spec.inputs.items()
        }
        out.commit(
            Manifest(
                name=name,
                kind=spec.kind,
                fingerprint=prints[name],
                code_version=code_version(CODE[spec.kind]),
                seed=spec.seed,
                inputs=inputs,
                config=spec.config,
                files=[],
                metrics={"goodput": 0.875} if spec.kind == "base_phase" else {},
                summary={},
                run={"seconds": 2.0, "ranks": spec.ranks, "pid": 1},
            )
        )
    return tmp_path / "root"
