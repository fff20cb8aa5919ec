"""What the tests of whole machines share: one machine, and the helpers of other tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from machines import hillclimb

sys.path.append(str(Path(__file__).parents[1] / "kubernetes"))


@pytest.fixture(scope="session")
def local_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which `hillclimb climb` made the smoke recipe on this machine."""
    folder = tmp_path_factory.mktemp("machine") / "root"
    done = hillclimb(folder, "climb")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder
