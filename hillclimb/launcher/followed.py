"""Whether somebody waits for a stage: a file in the stage's folder, touched while it is followed.

It tells followers apart from orphans where no process and no database can: the follower may be on
another machine, under another run, or of an orchestrator that has forgotten the run.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

EVERY = 15.0
"""Seconds between two touches."""

_NAME = "followed"


def say_followed(where: str) -> None:
    """Note that the stage in this folder is followed now; not while the folder's store is away."""
    with contextlib.suppress(OSError):
        (Path(where) / _NAME).touch()


def last_followed(where: str) -> float | None:
    """When the stage was followed last, in seconds since the epoch; None where it never was.

    Raises:
        OSError: while the folder's store is away.
    """
    try:
        return min((Path(where) / _NAME).stat().st_mtime, time.time())
    except FileNotFoundError:
        return None
