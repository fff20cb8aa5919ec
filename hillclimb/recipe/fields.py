"""Walking the recipe's schema: which section or type is expected at a place."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from hillclimb.recipe.base import Section

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def is_section(kind: Any) -> TypeGuard[type[Section]]:
    """Whether `kind` is a recipe section's class."""
    return isinstance(kind, type) and issubclass(kind, Section)


def alternatives(annotation: Any) -> list[type[Section]]:
    """The sections of a union that is told apart by `type`; empty for anything else."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, types.UnionType):
        return []
    members = [member for member in get_args(annotation) if is_section(member)]
    return [member for member in members if "type" in member.model_fields]


def tags(section: type[Section]) -> tuple[str, ...]:
    """The values of `type` that choose `section`."""
    return get_args(section.model_fields["type"].annotation)


def resolve(annotation: Any, value: Any) -> Any:
    """Strip `Annotated` and `None`; of a union of sections take the one that `value` chooses."""
    if get_origin(annotation) is Annotated:
        return resolve(get_args(annotation)[0], value)
    if sections := alternatives(annotation):
        tag = value.get("type") if isinstance(value, dict) else None
        return next((section for section in sections if tag in tags(section)), None)
    if get_origin(annotation) in (Union, types.UnionType):
        members = [m for m in get_args(annotation) if m is not types.NoneType]
        return resolve(members[0], value) if len(members) == 1 else annotation
    return annotation


def child(annotation: Any, value: Any, key: str | int) -> Any:
    """What is expected at `key` below a place; None where nothing is."""
    kind = resolve(annotation, value)
    if is_section(kind):
        field = kind.model_fields.get(str(key))
        return field.annotation if field else None
    origin, args = get_origin(kind), get_args(kind)
    if origin is dict:
        return args[1]
    if origin in (tuple, list) and isinstance(key, int):
        return args[0] if args[-1] is Ellipsis or origin is list else args[min(key, len(args) - 1)]
    return None


def item(value: Any, key: str | int) -> Any:
    """`value[key]`, or None where there is nothing."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return value[key]
    return None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most resembles, if any does."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def homes(section: type[Section], name: str, path: str = "") -> Iterator[str]:
    """Dotted places below `section` where a field called `name` exists."""
    for key, field in section.model_fields.items():
        if path and key == name:
            yield f"{path}.{key}"
        if is_section(field.annotation):
            yield from homes(field.annotation, name, f"{path}.{key}" if path else key)


def expects(field: FieldInfo) -> str:
    """What a field takes, in words: type, bounds, default, meaning."""
    text = describe(field.annotation)
    if is_section(kind := resolve(field.annotation, None)):
        required = [name for name, inner in kind.model_fields.items() if inner.is_required()]
        text += f" with {', '.join(required) or 'any of ' + ', '.join(kind.model_fields)}"
    bounds = [words for rule in field.metadata if (words := _bound(rule))]
    if bounds:
        text += " " + " and ".join(bounds)
    if not field.is_required() and isinstance(field.default, int | float | str | None):
        text += f" (default {field.default})"
    return f"{text}: {field.description}" if field.description else text


def describe(annotation: Any) -> str:
    """A type in words."""
    if sections := alternatives(annotation):
        return "a section with `type` " + " or ".join(t for s in sections for t in tags(s))
    kind = resolve(annotation, None)
    if is_section(kind):
        return "a section"
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(value) for value in args)
    if origin in (tuple, list):
        return "a list, each entry " + describe(args[0])
    if origin is dict:
        return f"names, each with {describe(args[1])}"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(member) for member in args)
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _bound(rule: Any) -> str:
    match rule:
        case Gt(gt=limit):
            return f"above {limit}"
        case Ge(ge=limit):
            return f"of at least {limit}"
        case Lt(lt=limit):
            return f"below {limit}"
        case Le(le=limit):
            return f"of at most {limit}"
        case MinLen(min_length=count):
            return f"with at least {count} entr{'y' if count == 1 else 'ies'}"
    return ""
