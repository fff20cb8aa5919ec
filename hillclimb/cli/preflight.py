"""What must be there before anything starts: the sandbox and room on the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import fsspec

from hillclimb.cli import words
from hillclimb.cli.failures import Exit, Failure
from hillclimb.environments.sandbox import SandboxUnavailable, check_sandbox
from hillclimb.resources.launching import on_cluster
from hillclimb.scaling.plan import Plan

Say = Callable[[str], None]
SPARE = 256 * 2**20
_INSTALL = ("apt-get", "install", "-y", "--no-install-recommends", "bubblewrap", "util-linux")


def preflight(root: str, plan: Plan, say: Say) -> None:
    """Refuse now what would fail later. On a cluster the sandboxes are elsewhere.

    Raises:
        PlanError: if a stage does not fit its accelerator.
        Failure: if the sandbox cannot isolate, or the disk has too little room.
    """
    plan.require_fit()
    require_room(root, plan)
    if not on_cluster():
        require_sandbox(say)


def require_room(root: str, plan: Plan) -> None:
    """The checkpoints that the plan keeps, one training state and some spare must fit the disk."""
    fs, path = fsspec.core.url_to_fs(root)
    if "file" not in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
        return
    there = Path(path)
    while not there.exists():
        there = there.parent
    state = max(stage.training_state for stage in plan.stages)
    needed, free = plan.storage + state + SPARE, shutil.disk_usage(there).free
    if free < needed:
        raise Failure(
            f"{there} has {words.size(free)} free, recipe {plan.recipe.name} needs about "
            f"{words.size(needed)}: free some, or choose another --root",
            Exit.MACHINE,
        )


def require_sandbox(say: Say) -> None:
    """Prove that the sandbox isolates; as root, install what it lacks where apt can."""
    try:
        check_sandbox()
        return
    except SandboxUnavailable as error:
        if shutil.which("bwrap") or os.geteuid() or not shutil.which("apt-get"):
            raise Failure(_one_line(error), Exit.MACHINE) from error
    say(f"the sandbox is missing; installing it with `{' '.join(_INSTALL)}`")
    _apt("apt-get", "update")
    installed = _apt(*_INSTALL)
    try:
        check_sandbox()
    except SandboxUnavailable as error:
        raise Failure(f"{_one_line(error)}{installed}", Exit.MACHINE) from error


def _apt(*command: str) -> str:
    """Run apt; returns its last complaint, for a message."""
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, env=quiet, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    complaint = (done.stderr.strip().splitlines() or [""])[-1]
    return f" ({command[0]} said: {complaint})" if done.returncode and complaint else ""


def _one_line(error: SandboxUnavailable) -> str:
    return " ".join(str(error).split())
