"""Dagster resources of hillclimb: the root and its experiments, the launcher, tracking."""

from hillclimb.resources.launching import StageLauncher
from hillclimb.resources.tracking import Tracking
from hillclimb.resources.workspace import Workspace, default_root

__all__ = ["StageLauncher", "Tracking", "Workspace", "default_root"]
