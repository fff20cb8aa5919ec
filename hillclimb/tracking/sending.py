"""The sender: a process of low priority that delivers the outbox while stages run."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from hillclimb.tracking.outbox import Outbox, default_uri


@dataclass(frozen=True)
class Status:
    """What the sender last did. `error` is a sentence while the server cannot be reached."""

    uri: str
    pending: int
    error: str = ""
    rejected: int = 0

    @property
    def sentence(self) -> str:
        """For people."""
        refused = f"; {self.rejected} records were refused by it" if self.rejected else ""
        if not self.pending:
            return f"everything is in MLflow at {self.uri}{refused}"
        why = f" ({self.error})" if self.error else ""
        return (
            f"{self.pending} bytes of records are kept in the outbox and go to MLflow at "
            f"{self.uri} with the next command{why}{refused}"
        )


def redact(text: str) -> str:
    """Without the user and password of any URI."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1", text)


class Sender:
    """Keeps one sender alive for as long as this process lives."""

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self._outbox = Outbox(root)
        self.uri = uri or default_uri(root)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def wake(self) -> None:
        """Start the sender if none runs for this root; costs a file lock's time."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            if not is_free(self._outbox):
                return
            self._outbox.folder.mkdir(parents=True, exist_ok=True)
            with open(self._outbox.folder / "sender.log", "ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "hillclimb.tracking", str(self._outbox.root)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={**os.environ, "MLFLOW_TRACKING_URI": self.uri},
                )

    def finish(self, timeout: float = 30.0) -> Status:
        """Let the sender make its last delivery and go; wait at most `timeout` seconds for it."""
        if self._outbox.pending(self.uri):
            self.wake()
        with self._lock:
            process, self._process = self._process, None
        if process is not None and process.stdin:
            process.stdin.close()
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            ended = process is None or process.poll() is not None
            if ended and (process is not None or not self._outbox.pending(self.uri)):
                break
            time.sleep(0.05)
        return self.status()

    def status(self) -> Status:
        """What is delivered, and what keeps the rest."""
        last = read_status(self._outbox)
        pending = self._outbox.pending(self.uri)
        error = last.error if last and pending else ""
        return Status(redact(self.uri), pending, error, last.rejected if last else 0)


def read_status(outbox: Outbox) -> Status | None:
    """What the sender last wrote down."""
    try:
        return Status(**json.loads((outbox.folder / "status.json").read_text()))
    except FileNotFoundError:
        return None


def write_status(outbox: Outbox, status: Status) -> None:
    """Write it whole."""
    partial = outbox.folder / "status.partial"
    partial.write_text(json.dumps(asdict(status)))
    partial.replace(outbox.folder / "status.json")


def take(outbox: Outbox) -> IO[str] | None:
    """The right to send, held while the file is open; None where another process sends."""
    outbox.folder.mkdir(parents=True, exist_ok=True)
    stream = (outbox.folder / "sender.lock").open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        return None
    return stream


def is_free(outbox: Outbox) -> bool:
    """Whether nobody sends."""
    if (held := take(outbox)) is None:
        return False
    held.close()
    return True
