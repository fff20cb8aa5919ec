"""Recipe files: YAML with anchors and merge keys, plain scalars, and no repeated keys.

Scalars follow YAML 1.2: only `true` and `false` are booleans (`no` is Norwegian), `1e-6` and
`30e12` are numbers, dates stay text. Top-level keys that begin with `x-` hold anchors for the
rest of the file and are dropped.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hillclimb.recipe.errors import Problem, RecipeError

Lines = dict[tuple[str | int, ...], int]
_PLAIN = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's plain scalars."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012


for _tag, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which any YAML version would read as something else.

    What occurs twice is written twice: no anchors.
    """

    yaml_implicit_resolvers: dict[str, list[Any]] = {  # noqa: RUF012
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *rules]
        for first, rules in (
            {first: [] for first in yaml.SafeDumper.yaml_implicit_resolvers}
            | _Loader.yaml_implicit_resolvers
        ).items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _number(loader: yaml.SafeLoader, node: ScalarNode) -> float | int:
    """A float; `30e12` is the whole number that it says."""
    value = float(yaml.constructor.SafeConstructor.construct_yaml_float(loader, node))
    whole = "e" in node.value.lower() and value.is_integer() and abs(value) < 2**63
    return int(value) if whole else value


_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def parse_value(text: str) -> Any:
    """The value that `text` would have in a recipe file. Raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Loader)


def write_document(data: dict[str, Any]) -> str:
    """`data` as a recipe file that `read_document` reads back."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100))


def read_document(text: str, source: str) -> tuple[dict[str, Any], Lines]:
    """Parse a recipe file into plain values and the line of every field.

    Raises:
        RecipeError: for text that is not YAML, is no mapping or repeats keys.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, MappingNode):
            raise RecipeError(source, [_not_a_mapping()])
        lines: Lines = {}
        repeated = _locate(node, (), lines, set())
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise RecipeError(source, [_not_yaml(error)]) from error
    if repeated:
        raise RecipeError(source, repeated)
    return {key: value for key, value in data.items() if not str(key).startswith("x-")}, lines


def _locate(
    node: Node, path: tuple[str | int, ...], lines: Lines, seen: set[tuple[int, int]]
) -> list[Problem]:
    """Note the line of every field below `node`; returns the keys given twice."""
    if isinstance(node, SequenceNode):
        found = []
        for index, item in enumerate(node.value):
            lines.setdefault((*path, index), item.start_mark.line + 1)
            found += _locate(item, (*path, index), lines, seen)
        return found
    if not isinstance(node, MappingNode):
        return []
    found = _repeats(node, path, seen)
    merged = [value for key, value in node.value if key.tag.endswith(":merge")]
    for key, value in node.value:
        if not key.tag.endswith(":merge"):
            here = (*path, str(key.value))
            lines.setdefault(here, key.start_mark.line + 1)
            found += _locate(value, here, lines, seen)
    for value in merged:
        for part in value.value if isinstance(value, SequenceNode) else [value]:
            found += _locate(part, path, lines, seen)
    return found


def _repeats(
    node: MappingNode, path: tuple[str | int, ...], seen: set[tuple[int, int]]
) -> list[Problem]:
    first: dict[str, int] = {}
    found = []
    for key, _ in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        place = (line, key.start_mark.column)
        if name in first and place not in seen:
            seen.add(place)
            field = ".".join(map(str, (*path, name)))
            what = f"is given twice (lines {first[name]} and {line})"
            found.append(Problem(field, what, "keep one of the two", line))
        first.setdefault(name, line)
    return found


def _not_a_mapping() -> Problem:
    return Problem("", "is not a mapping of fields", "start the file with `name:` and the sections")


def _not_yaml(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    line = mark.line + 1 if mark else None
    return Problem("", f"is not readable as YAML: {what}", "correct the syntax there", line)
