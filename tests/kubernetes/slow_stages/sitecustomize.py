"""On the PYTHONPATH of pods: the kind `problems` is the slow one of `nursery_with_toys`."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.orig_argv[1:3] == ["-m", "hillclimb.stages"]:
    sys.path.append(str(Path(__file__).parents[2] / "orchestration"))

    from hillclimb.stages import registry

    registry.KINDS["problems"] = "nursery_with_toys:make_slow_problems"
