"""The outbox: append-only files of tracking records, one file per materialisation.

`<root>/outbox/<experiment>/<asset>-<fingerprint>.jsonl` holds records of three types. `start`
has tags and params, `metrics` a step and values, `end` the status, final metrics, the artifact
and what it was made from. `sent/` holds one ledger per tracking server: how many bytes of each
file have arrived there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class RunKey:
    """Which MLflow run a record belongs to: one per artifact and experiment."""

    experiment: str
    asset: str
    fingerprint: str

    @property
    def id(self) -> str:
        """The value of the tag `hillclimb.run`, which makes sending again harmless."""
        return f"{self.experiment}:{self.asset}:{self.fingerprint[:16]}"


def default_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or SQLite under `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve()}/mlflow.db"


class RunLog:
    """Writes the records of one run. Steps that the file already has are not written again.

    `unfinished` says whether the run was begun before, and never came to a good end.
    """

    def __init__(self, path: Path, key: RunKey) -> None:
        self._path, self._key = path, key
        known = read_records(path, 0)[0]
        self._last_step = max((r["step"] for r in known if "step" in r), default=-1)
        self.unfinished = bool(known) and not any(r.get("status") == "FINISHED" for r in known)

    def start(self, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        """The run begins, or goes on."""
        self._append("start", time.time(), tags=dict(tags), params=dict(params))

    def metrics(self, values: Mapping[str, float], step: int, at: float) -> None:
        """Numbers at a step, as they were measured at the time `at`."""
        if step > self._last_step:
            self._last_step = step
            self._append("metrics", at, step=step, values=dict(values))

    def end(self, status: str, **fields: Any) -> None:
        """The run is FINISHED, FAILED or KILLED."""
        self._append("end", time.time(), status=status, **fields)

    def _append(self, type_: str, at: float, **fields: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        record = {"type": type_, "at": at, "run": asdict(self._key), **fields}
        line = json.dumps(record, default=str).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


class Outbox:
    """All records under one root, and what has been delivered where."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.folder = self.root / "outbox"

    def open(self, key: RunKey) -> RunLog:
        """The log of one run."""
        name = f"{key.asset.replace('/', '__')}-{key.fingerprint[:16]}.jsonl"
        return RunLog(self.folder / key.experiment / name, key)

    def files(self) -> list[Path]:
        """Every file of records, sorted."""
        return sorted(self.folder.glob("*/*.jsonl"))

    def pending(self, uri: str) -> int:
        """Bytes that the server at `uri` has not got yet."""
        ledger = self.ledger(uri)
        return sum(max(0, f.stat().st_size - ledger.get(self._name(f), 0)) for f in self.files())

    def ledger(self, uri: str) -> dict[str, int]:
        """Bytes of each file that the server at `uri` has."""
        try:
            return dict(json.loads(self._ledger_path(uri).read_text()))
        except FileNotFoundError:
            return {}

    def settle(self, uri: str, ledger: Mapping[str, int]) -> None:
        """Write the ledger down."""
        path = self._ledger_path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(ledger, sort_keys=True))
        partial.replace(path)

    def undelivered(self, uri: str) -> Iterator[tuple[str, int, Record]]:
        """(file, offset after it, record) that the server lacks, oldest first."""
        ledger, found = self.ledger(uri), []
        for path in self.files():
            name = self._name(path)
            records, offsets = read_records(path, ledger.get(name, 0))
            latest = 0.0
            for record, offset in zip(records, offsets, strict=True):
                latest = max(latest, record["at"])
                found.append((latest, name, offset, record))
        found.sort(key=lambda item: item[:3])
        yield from ((name, offset, record) for _, name, offset, record in found)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    def _ledger_path(self, uri: str) -> Path:
        return self.folder / "sent" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.json"


def read_records(path: Path, offset: int) -> tuple[Sequence[Record], Sequence[int]]:
    """The whole records after `offset`, and the offset behind each."""
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            block = stream.read()
    except FileNotFoundError:
        return [], []
    records, offsets = [], []
    for line in block.splitlines(keepends=True):
        if line.endswith(b"\n"):
            offset += len(line)
            records.append(json.loads(line))
            offsets.append(offset)
    return records, offsets
