"""The command line as a user has it, and what two machines have in common."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hillclimb.artifacts import Artifact, Store
from hillclimb.experiments import Plan

COMMAND = Path(sys.executable).parent / "hillclimb"


def hillclimb(root: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the smallest recipe."""
    return subprocess.run(
        [str(COMMAND), *words, "--root", str(root), "--recipe", "smoke"],
        capture_output=True, text=True, check=False, timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
    )  # fmt: skip


def identity_bearing(artifact: Artifact) -> dict[str, str]:
    """Digests of files that hold no timings."""
    timed = ("metrics.jsonl", "goodput.json", "MODEL_CARD.md", "card.json")
    return {f.path: f.sha256 for f in artifact.manifest.files if f.path not in timed}


def require_same_bytes(plan: Plan, first: Store, second: Store) -> None:
    """Every stage has the same files in both stores."""
    for name, fingerprint in plan.fingerprints.items():
        one, two = first.find(name, fingerprint), second.find(name, fingerprint)
        assert one is not None, name
        assert two is not None, name
        assert identity_bearing(one) == identity_bearing(two), name
