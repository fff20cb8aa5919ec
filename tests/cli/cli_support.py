"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

SMALL = Path(__file__).parent.parent / "recipe" / "small.yaml"
SCORES = {
    model: {
        domain: {"pass_at_1": 0.25, "greedy": 0.5, "n": 200}
        for domain in ("stem", "agentic", "helpfulness")
    }
    for model in ("mai_thinking", "mai_base_256k", "stem/round_1/climb")
}

Cli = Callable[..., Result]
