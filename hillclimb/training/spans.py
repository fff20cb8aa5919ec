"""Where a training process's time goes: spans in files that outlive the process.

Rank 0 writes rows `{kind, start, end, attempt, step}` to `resume/spans-<attempt>-<part>.jsonl`
under the artifact's prefix, times in seconds since the epoch. A part is written whole, again and
again until it is full, since object stores cannot append; an attempt that is killed loses what
came after the last write. The other ranks write only their sums by kind, with each checkpoint.

The spans of an attempt never overlap: a span within another one takes its time from it.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hillclimb.artifacts import ArtifactWriter

Kind = Literal["start", "data", "step", "checkpoint", "held_out", "finish", "other"]
FOLDER = "resume"
EVERY = 1.0
_PART_BYTES = 200_000
_WORTH = 200


@dataclass(frozen=True)
class Span:
    """Seconds spent on one thing: `start` and `end` since the epoch, the step where it has one."""

    kind: str
    start: float
    end: float
    attempt: int
    step: int | None = None


class Spans:
    """Records one attempt at a stage, from the start of its process.

    The time until the first span is `start`; afterwards, what no span covers is left out. Times
    within an attempt come from a clock that never goes backwards.

    Args:
        out: the artifact under whose prefix the files go.
        rank: rank 0 writes spans, the others only sums.
    """

    def __init__(self, out: ArtifactWriter, rank: int = 0) -> None:
        self._out, self._rank = out, rank
        self._offset = time.time() - time.monotonic()
        self._since = time.time() - process_age()
        self._id = f"{rank}-{round(self._since * 1000)}"
        self._open: list[tuple[str, int | None]] = [("start", None)]
        self._lines: list[str] = []
        self._part, self._next = 0, 0.0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Seconds of this attempt by kind."""
        self.attempt = 0 if rank else 1 + max(_attempts(out), default=-1)
        self._cut()
        if not rank:
            self._write()

    @contextmanager
    def span(self, kind: Kind, step: int | None = None) -> Iterator[None]:
        """Count the time until the block ends as `kind`; a checkpoint's end is a time to write."""
        self._cut()
        if self._open == [("start", None)]:
            self._open.clear()
        self._open.append((kind, step))
        try:
            yield
        finally:
            self._cut()
            self._open.pop()
        if kind == "checkpoint":
            self.write()
        elif not self._rank and time.monotonic() >= self._next:
            self._write()

    def write(self) -> None:
        """Put down what is recorded so far."""
        if self._rank:
            sums = json.dumps(dict(sorted(self.seconds.items())))
            self._out.write_text(f"{FOLDER}/sums-{self._id}.json", sums)
        else:
            self._cut()
            self._write()

    def _now(self) -> float:
        return self._offset + time.monotonic()

    def _cut(self) -> None:
        """End the innermost open span here; it goes on from here when it is not closed."""
        now = self._now()
        if self._open and now > self._since:
            kind, step = self._open[-1]
            self.seconds[kind] += now - self._since
            if not self._rank:
                self._lines.append(
                    json.dumps(vars(Span(kind, self._since, now, self.attempt, step))) + "\n"
                )
        self._since = now

    def _write(self) -> None:
        """Write the part; to a slow store less often, so that it takes 0.5 % of the time."""
        began = time.monotonic()
        text = "".join(self._lines)
        self._out.write_text(f"{FOLDER}/spans-{self.attempt:04d}-{self._part:05d}.jsonl", text)
        if len(text) > _PART_BYTES:
            self._part, self._lines = self._part + 1, []
        ended = time.monotonic()
        self._next = ended + max(EVERY, _WORTH * (ended - began))


def read_spans(out: ArtifactWriter) -> list[Span]:
    """The spans of all attempts so far, in the order of their files."""
    names = [name for name in out.list(FOLDER) if name.startswith(f"{FOLDER}/spans-")]
    lines = (line for name in names for line in out.read_text(name).splitlines())
    return [Span(**json.loads(line)) for line in lines]


def read_sums(out: ArtifactWriter) -> list[dict[str, float]]:
    """Seconds by kind of every attempt of every rank but the first."""
    names = [name for name in out.list(FOLDER) if name.startswith(f"{FOLDER}/sums-")]
    return [json.loads(out.read_text(name)) for name in names]


def _attempts(out: ArtifactWriter) -> Iterable[int]:
    prefix = f"{FOLDER}/spans-"
    names = (name.removeprefix(prefix) for name in out.list(FOLDER) if name.startswith(prefix))
    return {int(name.partition("-")[0]) for name in names}


def process_age() -> float:
    """Seconds since this process began, imports included; 0 where the kernel does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, AttributeError):
        return 0.0
