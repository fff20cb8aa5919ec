"""The deterministic mode on a CPU: two runs, the same bytes."""

from __future__ import annotations

import pytest
from checkpointed import finished

from hillclimb.training import runtime
from hillclimb.training.determinism import be_deterministic


@pytest.mark.slow("two processes that import torch")
def test_two_runs_in_deterministic_mode_give_equal_bytes(tmp_path):
    first = finished("deterministic", str(tmp_path / "a"), "6", "2")
    assert finished("deterministic", str(tmp_path / "b"), "6", "2") == first


def test_deterministic_mode_is_refused_when_it_comes_too_late():
    runtime.start()
    try:
        with pytest.raises(RuntimeError, match=r"too late.*before runtime\.start"):
            be_deterministic()
    finally:
        runtime.stop()
