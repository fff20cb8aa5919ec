"""The sender's process: `python -m hillclimb.tracking ROOT`, with its owner at standard input.

It delivers until the standard input closes, then once more, and goes.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path

from hillclimb.tracking.outbox import Outbox, default_uri
from hillclimb.tracking.sending import Status, redact, take, write_status

_BEAT = 2.0
_LONGEST_PAUSE = 60.0


def main() -> int:
    """Deliver until the owner is gone; 0 unless records are left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.nice(10)
    root = Path(sys.argv[1])
    outbox, uri = Outbox(root), default_uri(root)
    held = take(outbox)
    if held is None:
        return 0
    pause, owned = _BEAT, True
    while owned:
        owned = not select.select([0], [], [], pause if outbox.pending(uri) else _BEAT)[0]
        status = _deliver(outbox, uri)
        pause = min(pause * 2, _LONGEST_PAUSE) if status.error else _BEAT
    held.close()
    return 1 if outbox.pending(uri) else 0


def _deliver(outbox: Outbox, uri: str) -> Status:
    error, rejected = "", 0
    if outbox.pending(uri):
        from hillclimb.tracking.delivery import deliver  # imports mlflow, which takes seconds

        error, rejected = deliver(outbox, uri)
    status = Status(redact(uri), outbox.pending(uri), redact(error), rejected)
    write_status(outbox, status)
    return status


if __name__ == "__main__":
    sys.exit(main())
