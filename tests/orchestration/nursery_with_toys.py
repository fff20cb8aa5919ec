"""The nursery, with kinds of stages that only tests know.

`toy` counts to `steps` with a checkpoint each. `problems` is the real stage after a countdown that
the file `<root>/slow` asks for, so that a test has time to kill somebody.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from hillclimb.launcher import nursery
from hillclimb.stages import registry
from hillclimb.stages.context import Context
from hillclimb.stages.problems import make_problems_stage

BEAT = 0.05


def make_toy(context: Context) -> None:
    """Count, do as the config says at the step `at`, commit."""
    config = context.config
    first = resumed(context)
    for step in range(first, config["steps"]):
        context.reporter.progress(step, config["steps"], f"step {step}")
        context.reporter.metrics({"loss": 1.0 / (step + 1)}, step)
        if context.rank == 0:
            context.out.write_text("resume/step", str(step + 1))
        if step == config.get("at"):
            act(config, first)
        time.sleep(config.get("seconds", 0.0))
    if context.rank == 0:
        context.out.write_text("out.txt", f"{os.environ.get('WORLD_SIZE', '1')}\n")
        context.commit({"steps": config["steps"], "resumed_at": first})


def act(config: dict[str, Any], first: int) -> None:
    """What a stage may do to itself."""
    what = config["do"]
    if what == "refuse":
        raise ValueError("steps is 3: give it more")
    if what == "fail":
        raise RuntimeError("the disk is on fire")
    if what == "die" and first == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "lose a rank" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


def make_slow_problems(context: Context) -> None:
    """The real stage, after as many beats as the root's file `slow` says by then."""
    root = Path(context.request.output.split("/artifacts/")[0])
    for beat in count(resumed(context)):
        if beat >= wanted(root / "slow"):
            break
        context.reporter.metrics({"beat": float(beat)}, beat)
        context.out.write_text("resume/step", str(beat + 1))
        time.sleep(BEAT)
    if (root / "broken").exists():
        raise RuntimeError("the disk is on fire")
    make_problems_stage(context)


def wanted(slow: Path) -> int:
    """How many beats there are to be."""
    return int(slow.read_text() or 0) if slow.exists() else 0


def resumed(context: Context) -> int:
    """The step to go on from."""
    if not context.out.exists("resume/step"):
        return 0
    return int(context.out.fs.cat(context.out.path("resume/step")))


if __name__ == "__main__":
    sys.modules["nursery_with_toys"] = sys.modules["__main__"]
    registry.KINDS["toy"] = "nursery_with_toys:make_toy"
    registry.KINDS["problems"] = "nursery_with_toys:make_slow_problems"
    sys.exit(nursery.main())
