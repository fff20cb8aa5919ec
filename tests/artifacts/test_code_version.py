"""The hash of code: what counts in it, and that versions of Python agree on it."""

from __future__ import annotations

import ast
from pathlib import Path

from hillclimb.artifacts.fingerprint import _code, _dump


def code(folder: Path, name: str, text: str) -> str:
    """What of a module counts."""
    path = folder / name
    path.write_text(text)
    return _code(path)


def test_comments_docstrings_and_layout_do_not_count(tmp_path: Path) -> None:
    bare = code(tmp_path, "a.py", "def f(x):\n    return x + 1\n")
    told = code(tmp_path, "b.py", '"""M."""\ndef f( x ):  # add\n    """Add."""\n    return x+1\n')
    other = code(tmp_path, "c.py", "def f(x):\n    return x + 2\n")
    assert bare == told != other


def test_fields_that_one_version_of_python_adds_do_not_count() -> None:
    plain, later = ast.parse("def f(): return None"), ast.parse("def f(): return None")
    function = later.body[0]
    function.type_params = []  # type: ignore[attr-defined]
    function._fields = (*function._fields, "type_params")  # type: ignore[misc]
    assert _dump(plain) == _dump(later)
    assert _dump(plain) == (
        "Module(body=[FunctionDef(name='f', args=arguments(), body=[Return(value=Constant())])])"
    )
