"""The shared folder of one stage: its request, its messages, and whether somebody cancelled it.

Unlike the objects of a cluster it is never deleted. Its store may be away for a while.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from hillclimb.artifacts.store import MANIFEST
from hillclimb.artifacts.tree import Tree
from hillclimb.launcher.base import Message
from hillclimb.stages.request import Request

_ERRORS = "rank-*.error"


class SharedFolder:
    """What orchestrator and pods both see of a stage. All attempts append to one message file."""

    def __init__(self, where: str) -> None:
        self._where = Path(where)
        self._request = self._where / "request.json"
        self._messages = self._where / "messages.jsonl"
        self._cancelled = self._where / "cancelled"

    @property
    def asked(self) -> bool:
        """Whether the stage was ever asked for here; no while the store is away."""
        with contextlib.suppress(OSError):
            return self._request.exists()
        return False

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled the launch; no while the store is away."""
        with contextlib.suppress(OSError):
            return self._cancelled.exists()
        return False

    def made(self) -> bool:
        """Whether the stage's artifact is there.

        Raises:
            OSError: while the store of the folder or that of the artifact is away.
            ArtifactError: where the artifact's store cannot be used.
        """
        return is_made(Request.read(str(self._request)))

    def begin(self, request: Request) -> int:
        """Write the request down for a new launch; returns the bytes of earlier messages.

        Raises:
            OSError: while the store is away.
        """
        self._where.mkdir(parents=True, exist_ok=True)
        for old in (self._cancelled, *self._where.glob(_ERRORS)):
            old.unlink(missing_ok=True)
        partial = self._where / "request.partial"
        partial.write_text(request.model_dump_json(indent=1))
        partial.replace(self._request)
        return self._messages.stat().st_size if self._messages.exists() else 0

    def cancel(self) -> None:
        """Note that the launch ends because somebody wants it to."""
        with contextlib.suppress(OSError):
            self._cancelled.touch()

    def messages(self, offset: int) -> tuple[list[tuple[int, Message]], int]:
        """The whole messages after `offset` bytes, each with its place; none while the store is
        away. Lines that a process did not live to finish are left out."""
        try:
            with open(self._messages, "rb") as stream:
                stream.seek(offset)
                block = stream.read()
        except OSError:
            return [], offset
        found = []
        for line in block[: block.rfind(b"\n") + 1].splitlines(keepends=True):
            with contextlib.suppress(ValueError):
                found.append((offset, json.loads(line)))
            offset += len(line)
        return found, offset

    def told(self, offset: int) -> str:
        """Why the last attempt after `offset` failed, as the rank says that failed first; nothing
        where none did."""
        told: list[tuple[float, str]] = []
        for _, message in self.messages(offset)[0]:
            payload = (message.get("params") or {}).get("payload") or {}
            if message["method"] == "opened":
                told = []
            elif payload.get("type") == "error":
                told = [(float(payload["at"]), str(payload["message"]))]
        return min([*told, *self._told_by_others()], default=(0.0, ""))[1]

    def _told_by_others(self) -> Iterator[tuple[float, str]]:
        for path in sorted(self._where.glob(_ERRORS)):
            with contextlib.suppress(OSError, ValueError):
                error = json.loads(path.read_text())
                yield float(error["at"]), f"{path.stem.replace('-', ' ')}: {error['message']}"

    def begun(self, offset: int) -> bool:
        """Whether an attempt after `offset` has begun; no while the store is away."""
        return any(message["method"] == "opened" for _, message in self.messages(offset)[0])


def is_made(request: Request) -> bool:
    """Whether the request's artifact is committed; raises as `SharedFolder.made`."""
    return Tree(request.output).exists(MANIFEST)
