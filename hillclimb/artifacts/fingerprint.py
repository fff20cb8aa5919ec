"""Identity: one hash over literal values, from an encoder that refuses the unstable."""

from __future__ import annotations

import ast
import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent


def canonical(value: Any) -> str:
    """Encode `value` as JSON with one form only.

    Dicts are sorted by key, tuples are lists, floats use `repr`.

    Raises:
        TypeError: for anything without a stable form (sets, objects, non-string keys, NaN).
    """
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"))


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}: only finite numbers have an identity")
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: keys must be strings")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where} is a {type(value).__name__}, which has no stable form")


def fingerprint(value: Any) -> str:
    """SHA-256 over the canonical form, as 64 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@cache
def code_version(entry: str) -> str:
    """Hash the code that the module `entry` (a path under `hillclimb/`) reaches, 12 hex digits.

    That is the module, every module of this package that it imports, directly or not, and the
    data files beside them. Comments, docstrings and formatting do not count: the hash is over the
    syntax trees.
    """
    digest = hashlib.sha256()
    for path in _reached(PACKAGE / entry):
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(_code(path).encode())
        for data in sorted((path.parent / "data").glob("*")) if path.name == "__init__.py" else []:
            digest.update(hashlib.sha256(data.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _reached(entry: Path) -> list[Path]:
    """`entry` and what it imports of this package, transitively, sorted."""
    found: set[Path] = set()
    pending = [entry]
    while pending:
        path = pending.pop()
        if path not in found:
            found.add(path)
            pending += _imports(path)
    return sorted(found)


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    parts = [name.split(".")[1:] for name in names if name.startswith(f"{PACKAGE.name}.")]
    candidates = [PACKAGE.joinpath(*part) for part in parts]
    files = [path / "__init__.py" for path in candidates if path.is_dir()]
    files += [path.with_suffix(".py") for path in candidates]
    return tuple(file for file in files if file.is_file())


@cache
def _code(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            node.body = body[1:]  # type: ignore[attr-defined]
    return _dump(tree)


def _dump(node: Any) -> str:
    """A syntax tree in words that every version of Python writes alike: fields without value are
    left out, because each version adds some.
    """
    if isinstance(node, list):
        return f"[{', '.join(map(_dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return f"{type(node).__name__}({', '.join(f'{name}={_dump(value)}' for name, value in fields)})"


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
