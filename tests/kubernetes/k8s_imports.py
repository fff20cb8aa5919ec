"""What modules of this project import, read from their source, inside functions too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from k8s_documents import ROOT
from packaging.utils import canonicalize_name

AT_THE_ROOT = ("assets", "jobs", "resources")


def outside(entries: Iterable[str]) -> dict[str, Path]:
    """The packages of others that the modules reach, each with a file that imports it."""
    waiting, seen = list(entries), set[str]()
    assert all(map(_file, waiting)), f"one of {waiting} is no module of ours"
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        if name in seen or (path := _file(name)) is None:
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0])
        for imported in _imports(path):
            top = imported.partition(".")[0]
            if top == "hillclimb":
                waiting.append(imported)
            elif top not in sys.stdlib_module_names:
                found.setdefault(top, path.relative_to(ROOT))
    return found


def not_locked(entries: Iterable[str], lock: Iterable[str]) -> list[str]:
    """What the modules import and a lock lacks, one sentence each."""
    locked, owners = set(lock), metadata.packages_distributions()
    return [
        f"{path} imports {top}"
        for top, path in sorted(outside(entries).items())
        if not locked & {canonicalize_name(owner) for owner in owners.get(top, (top,))}
    ]


def _file(name: str) -> Path | None:
    """The source of a module of ours; None for a name that is none."""
    parts = name.split(".")
    if parts[0] != "hillclimb":
        return None
    base = ROOT if len(parts) > 1 and parts[1] in AT_THE_ROOT else ROOT / "hillclimb"
    place = base.joinpath(*parts[1:])
    files = (place / "__init__.py", place.with_suffix(".py"))
    return next((file for file in files if file.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    """Every name that is imported when the code runs, not for type checkers alone."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        waiting += ast.iter_child_nodes(node)
