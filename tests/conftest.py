"""Shared fixtures."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts its background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)


SECONDS = {"e2e": 60.0, "slow": 10.0, "vllm": 5.0}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left alone with one at the end."""
    weights: dict[Path, float] = defaultdict(float)
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        weights[item.path] += max((SECONDS.get(name, 0.1) for name in marks), default=0.1)
    items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real files beside the checkout; tests that need it skip where it is absent."""
    for candidate in (ROOT.parent / "shared" / "data", ROOT / "shared" / "data"):
        if candidate.is_dir():
            return candidate
    pytest.skip("the folder ../shared/data with real files is not beside this checkout")
