"""What a stage has said so far, from the message files of its attempts.

The launchers of this machine and of Kubernetes both append them, so files are all that it takes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hillclimb.report.experiment import Row

NOTES = 5


@dataclass
class Told:
    """Everything of one stage.

    Attributes:
        rows: of metrics, one a gradient step; a step that is told again replaces the old one and
            all after it, since the stage went back to a checkpoint.
        at: when it last said something, seconds since 1970; 0 for never.
        error: why the last attempt ended, if it failed.
        notes: the latest sentences.
    """

    rows: list[Row] = field(default_factory=list)
    done: float = 0.0
    total: float = 0.0
    note: str = ""
    at: float = 0.0
    error: str = ""
    attempts: int = 0
    notes: list[str] = field(default_factory=list)

    def hear(self, message: dict[str, Any]) -> None:
        """Take one message."""
        if message.get("method") == "opened":
            self.attempts, self.error = self.attempts + 1, ""
            return
        said = (message.get("params") or {}).get("payload") or {}
        kind = said.get("type") if isinstance(said, dict) else None
        if kind is None:
            return
        self.at = max(self.at, float(said.get("at", 0.0)))
        if kind == "progress":
            self.done, self.total, self.note = said["done"], said["total"], said["note"]
        elif kind == "metrics":
            row = {**said["values"], "step": said["step"]}
            while self.rows and self.rows[-1]["step"] >= row["step"]:
                self.rows.pop()
            self.rows.append(row)
        elif kind == "error":
            self.error = str(said["message"])
        elif kind == "note":
            self.notes = [*self.notes, str(said["message"])][-NOTES:]


class Listener:
    """Reads on in the files of one stage.

    Args:
        folders: where launchers keep its attempts: message files directly in it, all attempts in
            one, or in a folder an attempt.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._read: dict[Path, int] = {}
        self.told = Told()

    def listen(self) -> Told:
        """Everything that has been said by now; a store that is away says nothing new."""
        for path in self._files():
            with contextlib.suppress(OSError), open(path, "rb") as stream:
                offset = self._read.get(path, 0)
                stream.seek(offset)
                block = stream.read()
                whole = block[: block.rfind(b"\n") + 1]
                self._read[path] = offset + len(whole)
                for line in whole.splitlines():
                    with contextlib.suppress(ValueError):
                        self.told.hear(json.loads(line))
        return self.told

    def _files(self) -> list[Path]:
        found = []
        for folder in self._folders:
            attempts = [p for p in folder.glob("attempt-*") if p.name[8:].isdigit()]
            found += [folder, *sorted(attempts, key=lambda path: int(path.name[8:]))]
        return [folder / "messages.jsonl" for folder in found]
