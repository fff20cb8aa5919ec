"""The message file of a stage: whole lines, appended by every attempt.

The file's store may be away for a while: what cannot be written waits, and nothing is lost.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster_pipes import (
    PipesMessage,
    PipesMessageWriter,
    PipesMessageWriterChannel,
    PipesParams,
)

_PATIENCE = 120.0
_PAUSE = 0.5


class MessageFile(PipesMessageWriterChannel):
    """One stage's end of the file. It begins on a line of its own, whatever was left there."""

    def __init__(self, path: Path) -> None:
        self._path, self._waiting, self._begun = path, b"", False
        self._lock = threading.Lock()

    def write_message(self, message: PipesMessage) -> None:
        """Append one line, or keep it for the next time; threads wait for each other."""
        with self._lock:
            self._waiting += json.dumps(message).encode() + b"\n"
            self._flush()

    def close(self) -> None:
        """Write what waits; gives up after two minutes, and says so."""
        until = time.monotonic() + _PATIENCE
        while not self._flush() and time.monotonic() < until:
            time.sleep(_PAUSE)
        if self._waiting:
            lines = self._waiting.count(b"\n")
            print(f"{lines} messages could not be written to {self._path}", file=sys.stderr)

    def _flush(self) -> bool:
        try:
            with open(self._path, "ab") as stream:
                if not self._begun and _torn(self._path):
                    stream.write(b"\n")
                stream.write(self._waiting)
        except OSError:
            self._begun = False
            return False
        self._begun, self._waiting = True, b""
        return True


def _torn(path: Path) -> bool:
    """Whether the file's last line has no end: a process died while it wrote."""
    with open(path, "rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 1))
        return stream.read(1) not in (b"", b"\n")


class MessageWriter(PipesMessageWriter[MessageFile]):
    """Opens the message file that the params name."""

    @contextmanager
    def open(self, params: PipesParams) -> Iterator[MessageFile]:
        """The file, for as long as the stage speaks."""
        made = MessageFile(Path(params["path"]))
        try:
            yield made
        finally:
            made.close()
