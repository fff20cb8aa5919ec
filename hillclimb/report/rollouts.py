"""Every kept rollout, packed by column for the reader's browser.

One block a climb: JSON columns, gzip without a timestamp, base64. The page unpacks a block when
it is looked at. Numbers beyond the known columns go along under their own names. Above `MAX_ROWS`
rows or `MAX_CHARACTERS` of packed text whole groups are left out, picked by a hash, so that the
same artifacts always show the same rollouts. Tokens go along with as many groups as `MAX_TOKENS`
bytes of their table allow, picked by the same hash.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hillclimb.artifacts import ArtifactError
from hillclimb.report.experiment import Experiment, Row, number
from hillclimb.report.gaps import place, views

MAX_ROWS = 60_000
MAX_CHARACTERS = 12_000_000
MAX_TOKENS = 12_000_000
NUMBERS = ("reward", "task", "language", "length")
INTEGERS = ("update", "group", "sample", "response_tokens", "turns")
WORDS = ("problem_id", "specialist", "kind", "status", "prompt", "reason")
FLAGS = ("graded", "truncated")
COLUMNS = (*INTEGERS, *WORDS, *NUMBERS, *FLAGS, "response")


@dataclass(frozen=True)
class Block:
    """The packed rollouts of one climb: `shown` of its `total` rows, `told` with their tokens."""

    climb: str
    total: int
    shown: int
    told: int
    text: str


def pack(
    experiment: Experiment, max_rows: int = MAX_ROWS, max_characters: int = MAX_CHARACTERS
) -> list[Block]:
    """Pack the rollouts of every climb that is made.

    Raises:
        ArtifactError: if a rollout file lacks a column, naming both.
    """
    totals = {name: _total(experiment, name) for name in experiment.of_kind("climb")}
    totals = {name: total for name, total in totals.items() if total}
    held = sum(_bytes(experiment, name, "rollouts/") for name in totals)
    tokens = sum(_bytes(experiment, name, "tokens/") for name in totals)
    told = MAX_TOKENS / max(tokens, 1)
    share = min(1.0, max_rows / max(sum(totals.values()), 1), 4 * max_characters / max(held, 1))
    while True:
        blocks = [
            _block(experiment, name, total, share, told * share) for name, total in totals.items()
        ]
        packed = sum(len(block.text) for block in blocks)
        if packed <= max_characters or share < 1e-6:
            return blocks
        share *= 0.95 * max_characters / packed


def _total(experiment: Experiment, name: str) -> int:
    parts = experiment.parts(name, "rollouts/")
    return sum(experiment.row_count(name, part) for part in parts)


def _bytes(experiment: Experiment, name: str, table: str) -> int:
    """Size of a table's files, which bounds what is read at once."""
    files = experiment.made[name].manifest.files
    return sum(entry.bytes for entry in files if entry.path.startswith(table))


def _block(experiment: Experiment, name: str, total: int, share: float, told: float) -> Block:
    index, rows = [], []
    for number_, row in enumerate(_rows(experiment, name)):
        if share >= 1 or _drawn(name, row) < share:
            index.append(number_)
            rows.append(row)
    data: dict[str, Any] = {"climb": name, "index": None if share >= 1 else index}
    for key in INTEGERS:
        data[key] = [row[key] for row in rows]
    for key in NUMBERS:
        data[key] = [_short(number(row, key)) for row in rows]
    for key in FLAGS:
        data[key] = [int(bool(row[key])) for row in rows]
    for key in WORDS:
        data[key] = _dictionary([row[key] for row in rows])
    data["response"] = [row["response"] or "" for row in rows]
    wanted = {place(row) for row in rows if told >= 1 or _drawn(name, row) < told}
    found = views(experiment, name, wanted) if wanted else {}
    data["tokens"] = [found.get(place(row)) for row in rows]
    others = [key for key in (rows[0] if rows else ()) if key not in COLUMNS]
    data["other"] = {
        key: [_short(number(row, key)) for row in rows]
        for key in others
        if any(number(row, key) is not None for row in rows)
    }
    raw = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = gzip.compress(raw.encode("utf-8", "backslashreplace"), 9, mtime=0)
    return Block(name, total, len(rows), len(found), base64.b64encode(packed).decode())


def _rows(experiment: Experiment, name: str) -> Iterator[Row]:
    for part in experiment.parts(name, "rollouts/"):
        for batch in experiment.batches(name, part):
            lacking = [key for key in COLUMNS if batch and key not in batch[0]]
            if lacking:
                raise ArtifactError(f"{part} of {name} lacks the column {', '.join(lacking)}")
            yield from batch


def _drawn(name: str, row: Row) -> float:
    key = f"{name}|{row['update']}|{row['group']}|{row['problem_id']}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _dictionary(values: list[Any]) -> dict[str, list[Any]]:
    """Distinct values in order of appearance, and each row's index among them."""
    words: dict[str, int] = {}
    at = [words.setdefault("" if v is None else str(v), len(words)) for v in values]
    return {"words": list(words), "at": at}


def _short(value: float | None) -> float | None:
    if value is None:
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded == int(rounded) else rounded


__all__ = ["Block", "pack"]
