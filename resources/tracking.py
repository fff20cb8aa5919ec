"""What MLflow is told."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from urllib.parse import quote

import dagster as dg

from hillclimb.tracking import Outbox, RunKey, RunLog, Sender


class Tracking(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The outbox under the root, and the sender that empties it.

    `ui` is where people look at MLflow; by default the tracking server, or what
    `hillclimb ui` starts on loopback.
    """

    root: str
    ui: str = ""

    def open(self, key: RunKey) -> RunLog:
        """The log of one materialisation."""
        return Outbox(Path(self.root)).open(key)

    def wake(self) -> None:
        """See to it that somebody delivers."""
        sender(self.root).wake()

    def link(self, key: RunKey) -> str:
        """Where MLflow shows the run."""
        search = quote(f"tags.`hillclimb.run` = '{key.id}'")
        return f"{self._base()}/#/experiments/1?searchFilter={search}"

    def _base(self) -> str:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        return self.ui or (uri if uri.startswith("http") else "http://127.0.0.1:5000")


@cache
def sender(root: str) -> Sender:
    """The sender of a root; every thread of one process shares it."""
    return Sender(Path(root))
