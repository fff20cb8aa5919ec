"""Turning what pydantic found into problems that name the field and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hillclimb.recipe.base import Section
from hillclimb.recipe.errors import Problem
from hillclimb.recipe.fields import (
    alternatives,
    child,
    describe,
    expects,
    homes,
    is_section,
    item,
    nearest,
    resolve,
    tags,
)

Path = tuple[str | int, ...]
_BOUNDS = {
    "greater_than": ("gt", "must be above"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be below"),
    "less_than_equal": ("le", "must be at most"),
}
_TYPES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "model_type": "must be a section",
    "model_attributes_type": "must be a section",
    "dict_type": "must be a section",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "none_required": "must be empty",
}


def dotted(path: Path) -> str:
    """`('lengths', 0, 'steps')` as `lengths.0.steps`."""
    return ".".join(str(part) for part in path)


def explain(root: type[Section], data: Any, error: ValidationError) -> dict[Path, Problem]:
    """One problem for every wrong field, by path."""
    problems: dict[Path, Problem] = {}
    misspelt = set()
    for details in error.errors():
        path = _path(root, data, details["loc"])
        if path in problems or _follows(data, path, details):
            continue
        problems[path] = _problem(root, data, path, details)
        if details["type"] == "extra_forbidden":
            misspelt.add((*path[:-1], problems[path].fix.removeprefix("write ")))
    return {
        path: problem
        for path, problem in problems.items()
        if not (path in misspelt and problem.what == "is missing")
    }


def _follows(data: Any, path: Path, details: ErrorDetails) -> bool:
    """Whether pydantic calls a list too short only because it left out entries with mistakes."""
    if details["type"] != "too_short":
        return False
    value = _place(None, data, path)[1]
    return isinstance(value, list | dict) and len(value) >= details["ctx"]["min_length"]


def _path(root: Any, data: Any, loc: tuple[str | int, ...]) -> Path:
    """A location without what pydantic adds to it: union tags, member types, `[key]`."""
    path: list[str | int] = []
    annotation, value, skip = root, data, False
    for part in loc:
        if skip or part == "[key]":
            skip = False
            continue
        kind = resolve(annotation, value)
        if not (is_section(kind) or child(annotation, value, part) is not None):
            break
        path.append(part)
        annotation, value = child(annotation, value, part), item(value, part)
        skip = bool(alternatives(annotation))
    return tuple(path)


def _place(root: Any, data: Any, path: Path) -> tuple[Any, Any]:
    """The annotation and the value at a path."""
    annotation, value = root, data
    for part in path:
        annotation, value = child(annotation, value, part), item(value, part)
    return annotation, value


def _problem(root: Any, data: Any, path: Path, details: ErrorDetails) -> Problem:
    kind, name = details["type"], dotted(path)
    parent, parent_value = _place(root, data, path[:-1]) if path else (None, None)
    section = resolve(parent, parent_value)
    annotation, value = _place(root, data, path)
    if kind == "value_error":
        message = str(details["ctx"]["error"])
        return Problem(name, f"does not fit together: {message}", "change one of these values")
    if kind == "extra_forbidden":
        return _unknown(name, str(path[-1]), section)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _bad_tag(name, annotation, value)
    if details["loc"][-1] == "[key]":
        return _bad_key(name, str(path[-1]), parent)
    field = section.model_fields.get(str(path[-1])) if is_section(section) else None
    fix = f"give {expects(field) if field else describe(annotation)}"
    if kind == "missing":
        return Problem(name, "is missing", fix.replace("give", "add", 1))
    return Problem(name, _complaint(kind, details, value), fix)


def _complaint(kind: str, details: ErrorDetails, value: Any) -> str:
    shown = repr(value) if isinstance(value, str) else _short(value)
    ctx = details.get("ctx", {})
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{words} {ctx[key]}, but is {shown}"
    if kind in _TYPES:
        return f"{_TYPES[kind]}, but is {shown}"
    if kind == "literal_error":
        guess = nearest(str(value), str(ctx["expected"]).replace("'", "").split(", "))
        hint = f" (did you mean {guess}?)" if guess else ""
        return f"must be {ctx['expected']}, but is {shown}{hint}"
    if kind == "too_short":
        return f"needs at least {ctx['min_length']}, but has {ctx['actual_length']}"
    if kind == "string_pattern_mismatch":
        return f"must match {ctx['pattern']}, but is {shown}"
    return f"is {shown}: {details['msg'][0].lower()}{details['msg'][1:]}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return {None: "empty", True: "true", False: "false"}.get(value, str(value))


def _unknown(name: str, key: str, section: Any) -> Problem:
    known = list(section.model_fields)
    if places := list(homes(section, key)):
        return Problem(name, "is no field of this section", f"write it as {places[0]} below it")
    if guess := nearest(key, known):
        return Problem(name, f"is not a known field (did you mean {guess}?)", f"write {guess}")
    return Problem(name, "is not a known field", f"remove it; known are {', '.join(known)}")


def _bad_key(name: str, key: str, parent: Any) -> Problem:
    names = [str(value) for value in get_args(get_args(resolve(parent, None))[0])]
    guess = nearest(key, names)
    hint = f" (did you mean {guess}?)" if guess else ""
    fix = f"write {guess}" if guess else f"use one of {', '.join(names)}"
    return Problem(name, f"is not a known name{hint}", fix)


def _bad_tag(name: str, annotation: Any, value: Any) -> Problem:
    known = [tag for section in alternatives(annotation) for tag in tags(section)]
    given = item(value, "type")
    if given is None:
        return Problem(f"{name}.type", "is missing", f"add type: one of {', '.join(known)}")
    guess = nearest(str(given), known)
    fix = f"write {guess}" if guess else f"use one of {', '.join(known)}"
    return Problem(f"{name}.type", f"is {given!r}, which is no type of this section", fix)


_GAP = object()  # stands for a value that is too wrong to say more about


def salvage(root: type[Section], data: Any) -> tuple[Any, dict[Path, Problem]]:
    """Build what can be built of a wrong recipe, and run the validators that pydantic skipped.

    Pydantic does not run a section's own validators once one of its fields failed. Here they see
    the section without those fields; one that asks for such a field is left out.

    Returns:
        The partial recipe (wrong fields are absent: reading one raises AttributeError) and what
        the validators said.
    """
    found: dict[Path, Problem] = {}
    return _salvage(root, data, (), found), found


def _salvage(annotation: Any, value: Any, path: Path, found: dict[Path, Problem]) -> Any:
    if value is None:
        return None
    kind = resolve(annotation, value)
    if is_section(kind):
        return _salvage_section(kind, value, path, found)
    if alternatives(annotation):
        return _GAP
    if isinstance(value, dict) and _holds_sections(kind, value, ""):
        return {k: _salvage(child(kind, value, k), v, (*path, k), found) for k, v in value.items()}
    if isinstance(value, list) and _holds_sections(kind, value, 0):
        return tuple(
            _salvage(child(kind, value, i), v, (*path, i), found) for i, v in enumerate(value)
        )
    return value


def _holds_sections(kind: Any, value: Any, key: str | int) -> bool:
    inner = child(kind, value, key)
    return is_section(resolve(inner, None)) or bool(alternatives(inner))


def _salvage_section(
    kind: type[Section], value: Any, path: Path, found: dict[Path, Problem]
) -> Any:
    if not isinstance(value, dict):
        return _GAP
    try:
        return kind.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        wrong = {str(details["loc"][0]) for details in error.errors() if details["loc"]}
    built: dict[str, Any] = {}
    for name in [name for name in kind.model_fields if name in value]:
        inner = _salvage(kind.model_fields[name].annotation, value[name], (*path, name), found)
        if inner is not _GAP and (name not in wrong or inner is not value[name]):
            built[name] = inner
    section = kind.model_construct(**built)
    for name in wrong - built.keys():
        section.__dict__.pop(name, None)
    if wrong:
        _run_validators(section, path, found)
    return section


def _run_validators(section: Section, path: Path, found: dict[Path, Problem]) -> None:
    for decorator in type(section).__pydantic_decorators__.model_validators.values():
        judge: Callable[[Any], Any] = decorator.func
        try:
            judge(section)
        except ValueError as error:
            fix = "change one of these values"
            found[path] = Problem(dotted(path), f"does not fit together: {error}", fix)
        except (AttributeError, TypeError, KeyError):
            continue
