"""A task's files in one shell command."""

from __future__ import annotations

import shlex


def lay_out(files: dict[str, str]) -> str:
    """Shell commands that leave exactly these files in the working directory."""
    writes = [f"printf %s {shlex.quote(text)} > {shlex.quote(p)}" for p, text in files.items()]
    return "; ".join(["rm -rf ./*", *writes])
