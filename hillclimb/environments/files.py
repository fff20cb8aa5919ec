"""A task's files in one shell command."""

from __future__ import annotations

import shlex


def lay_out(files: dict[str, str], clear: bool = True) -> str:
    """Shell commands that write these files; after `clear`, the working directory has no others."""
    writes = [f"printf %s {shlex.quote(text)} > {shlex.quote(p)}" for p, text in files.items()]
    return "; ".join([*(["rm -rf ./*"] if clear else []), *writes])
