"""Launchers: where a stage's process runs. One Protocol; the local one is the embedded default."""

from hillclimb.launcher.base import Handle, Launcher, Outcome, State
from hillclimb.launcher.local import LocalLauncher

__all__ = ["Handle", "Launcher", "LocalLauncher", "Outcome", "State"]
