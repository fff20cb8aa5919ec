"""Copies of remote files on this machine: one for all processes, checked as they arrive."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from hillclimb.artifacts.remote import ArtifactError


def cache_root() -> Path:
    """HILLCLIMB_CACHE, or a folder of this user among the temporary ones.

    Raises:
        ArtifactError: if somebody else has made the latter.
    """
    if chosen := os.environ.get("HILLCLIMB_CACHE"):
        return Path(chosen)
    root = Path(tempfile.gettempdir()) / f"hillclimb-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise ArtifactError(f"{root} belongs to somebody else: name a folder with HILLCLIMB_CACHE")
    return root


def bring(
    folder: Path, digests: Mapping[str, str], get: Callable[[list[str], list[str]], None]
) -> list[str]:
    """Fill `folder` with files that it does not have yet.

    Args:
        digests: SHA-256 by relative path.
        get: fetches relative paths to local paths.

    Returns:
        The files that are not what their digest says; they are not in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [name for name in sorted(digests) if not (folder / name).is_file()]
        if missing:
            get(missing, [f"{folder / name}.partial" for name in missing])
        return [name for name in missing if not _arrived(folder / name, digests[name])]


def _arrived(path: Path, sha256: str) -> bool:
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "rb") as stream:
        whole = hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    if whole:
        partial.replace(path)
    else:
        partial.unlink()
    return whole
