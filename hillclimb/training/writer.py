"""The process that writes a rank's checkpoints: it never sees torch, only bytes that are there.

`python -m hillclimb.training.writer URI RANK PARENT TENSORS FILES` reads one order a line from its
standard input and answers each with a line. Both memory files are the trainer's own; an order says
which part of them is which file. Rank 0's writer also waits for the parts of all ranks, and only
then makes the checkpoint the newest one. The writer dies with its trainer.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hillclimb.artifacts import ArtifactError, ArtifactWriter

FOLDER, LATEST, WHOLE = "resume", "resume/latest", "whole.json"
_BLOCK = 8 << 20
_PR_SET_PDEATHSIG = 1
_NICER = 10
_PAUSE, _LONGEST_PAUSE = 0.02, 1.0


def main(argv: Sequence[str]) -> int:
    """Serve one trainer until it closes the pipe."""
    uri, rank, parent, *memory = argv
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return 1
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    os.nice(_NICER)
    out = ArtifactWriter(uri)
    for line in sys.stdin:
        started = time.perf_counter()
        try:
            size = _write(out, int(rank), json.loads(line), [int(fd) for fd in memory])
            reply: dict[str, Any] = {"bytes": size, "seconds": time.perf_counter() - started}
        except Exception as error:
            traceback.print_exc()
            sentence = str(error) or type(error).__name__
            reply = {"error": sentence, "refused": isinstance(error, ArtifactError)}
        print(json.dumps(reply), flush=True)
    return 0


def _write(out: ArtifactWriter, rank: int, order: dict[str, Any], memory: list[int]) -> int:
    """Write a rank's files, then say in its part that they are there; returns bytes."""
    folder: str = order["folder"]
    files: dict[str, dict[str, Any]] = {}
    for name, source, start, size in order["files"]:
        where = f"{folder}/{name}"
        written, sha = out.write_blocks(where, _blocks(memory[source], start, size))
        files[name] = {"bytes": written, "sha256": sha}
    start, size = order["fragments"]
    part = {"files": files, "fragments": json.loads(os.pread(memory[1], size, start))}
    _write_json(out, part_name(folder, rank), part)
    if rank == 0:
        others = [_await(out, part_name(folder, r)) for r in range(1, order["world"])]
        _finish(out, folder, [part, *others])
    return sum(file["bytes"] for file in files.values())


def _blocks(descriptor: int, start: int, size: int) -> Callable[[], Iterator[memoryview]]:
    def blocks() -> Iterator[memoryview]:
        if size:
            view = memoryview(mmap.mmap(descriptor, start + size, access=mmap.ACCESS_READ))
            for at in range(start, start + size, _BLOCK):
                yield view[at : min(at + _BLOCK, start + size)]

    return blocks


def _await(out: ArtifactWriter, name: str) -> dict[str, Any]:
    """Another rank's part, once it is there."""
    pause = _PAUSE
    while not out.exists(name):
        time.sleep(pause)
        pause = min(_LONGEST_PAUSE, 1.5 * pause)
    part: dict[str, Any] = json.loads(out.read_text(name))
    return part


def _finish(out: ArtifactWriter, folder: str, parts: list[dict[str, Any]]) -> None:
    """Every rank's files are on disk: say so, make this the newest one, keep one before it.

    A faster rank may have begun the next one, which is left alone.
    """
    content = {
        "files": {name: file for part in parts for name, file in part["files"].items()},
        "ranks": [part["fragments"] for part in parts],
    }
    _write_json(out, f"{folder}/{WHOLE}", {"sha256": digest(content), "content": content})
    make_latest(out, folder)
    older = [found for found in folders(out) if found < folder]
    keep = [found for found in whole_folders(out) if found < folder][:1]
    for found in older:
        if found not in keep:
            out.remove(found)


def make_latest(out: ArtifactWriter, folder: str) -> None:
    """Say which checkpoint is the newest."""
    out.write_blocks(LATEST, lambda: [folder.encode()])


def folders(out: ArtifactWriter) -> list[str]:
    """The folders of checkpoints, whole or not, the latest step first."""
    heads = {"/".join(name.split("/")[:2]) for name in out.list(FOLDER)}
    return sorted((head for head in heads if head.startswith(f"{FOLDER}/step-")), reverse=True)


def whole_folders(out: ArtifactWriter) -> list[str]:
    """The folders whose every file was on disk once, the latest step first."""
    return [folder for folder in folders(out) if out.exists(f"{folder}/{WHOLE}")]


def part_name(folder: str, rank: int) -> str:
    """Where a rank says that its files are there."""
    return f"{folder}/rank-{rank}.json"


def digest(content: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_json(out: ArtifactWriter, name: str, value: Any) -> None:
    out.write_blocks(name, lambda: [json.dumps(value).encode()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
