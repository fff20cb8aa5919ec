"""Where stages run."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import dagster as dg

from hillclimb.launcher import Launcher, LocalLauncher


class StageLauncher(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Processes of this machine, one warm nursery for all stages that a process asks for."""

    root: str

    def get(self) -> Launcher:
        """The launcher; every thread of one process shares it."""
        return local_launcher(self.root)


@cache
def local_launcher(root: str) -> LocalLauncher:
    """The local launcher of a root."""
    return LocalLauncher(Path(root) / "runs")
