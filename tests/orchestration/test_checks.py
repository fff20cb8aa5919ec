"""Checks read an artifact and say in a sentence what they saw."""

from __future__ import annotations

import json
from pathlib import Path

from hillclimb.artifacts import Artifact, ArtifactWriter, Manifest
from hillclimb.assets import checks

STEP = {"step": 1, "loss": 2.0, "grad_norm": 1.0, "balance_loss": 1.0, "router_max_share": 0.2}


def phase(folder: Path, epochs: float) -> Artifact:
    """A base phase whose code was read `epochs` times, at a cap of 2."""
    out = ArtifactWriter(str(folder))
    out.write_text("metrics.jsonl", json.dumps(STEP) + "\n")
    given = {"epochs": 1.0, "mixture_cap": 8.0}
    out.write_json("sources.json", {"books": given, "code": {"epochs": epochs, "mixture_cap": 2.0}})
    out.commit(
        Manifest(
            name="mai_base_16k", kind="base_phase", fingerprint="f" * 64, code_version="1", seed=0,
            inputs={}, config={}, files=[], metrics={}, run={}, summary={},
        )
    )  # fmt: skip
    return Artifact(out.uri)


def test_a_source_over_its_cap_fails_the_phase(tmp_path: Path) -> None:
    found = {
        name: {check.name: check for check in checks.examine(phase(tmp_path / name, epochs))}
        for name, epochs in (("kept", 1.9), ("over", 2.1))
    }
    assert all(check.passed for check in found["kept"].values())
    assert found["kept"]["caps_kept"].sentence == "code is nearest to its cap: 1.90 epochs"
    assert not found["over"]["caps_kept"].passed
    assert found["over"]["caps_kept"].sentence == "over their caps: code"
    assert found["over"]["caps_kept"].blocking
