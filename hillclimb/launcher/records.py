"""The folder of one attempt: request, process, log, messages and how it ended.

`<runs>/<name>/<first 16 digits of the fingerprint>/attempt-<n>/`
    request.json  what was asked for
    process.json  process id and start time, written by the nursery's child before it begins
    messages.jsonl, log.txt
    exit.json     the exit code, written by the nursery
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)


def write_process(run: Path, pid: int) -> None:
    """Note which process makes the stage."""
    write_json(run / "process.json", {"pid": pid, "started": started(pid)})


def write_exit(run: Path, code: int) -> None:
    """Note how the process ended; negative codes are signals."""
    write_json(run / "exit.json", {"code": code})


def read_json(path: Path) -> dict[str, Any] | None:
    """The record, or None where it was never written."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def started(pid: int) -> str | None:
    """When a living process began (clock ticks after boot), told apart from an earlier boot."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return f"{_BOOT.read_text().strip() if _BOOT.exists() else ''}:{fields[19]}"


def alive(run: Path) -> int | None:
    """The id of the attempt's process, or None where it is gone."""
    process = read_json(run / "process.json")
    if process is None or (run / "exit.json").exists():
        return None
    pid = int(process["pid"])
    return pid if started(pid) == process["started"] else None


def attempts(folder: Path) -> list[Path]:
    """The attempts at one fingerprint, oldest first."""
    found = [p for p in folder.glob("attempt-*") if p.name[8:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[8:]))


def next_attempt(folder: Path) -> Path:
    """Make the folder of a new attempt."""
    made = attempts(folder)
    number = int(made[-1].name[8:]) + 1 if made else 1
    path = folder / f"attempt-{number}"
    path.mkdir(parents=True)
    return path
