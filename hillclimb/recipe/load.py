"""Loading recipes: packaged presets or files, with overrides, and every mistake at once."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hillclimb.recipe.checks import cross_checks
from hillclimb.recipe.documents import Lines, parse_value, read_document, write_document
from hillclimb.recipe.errors import Problem, RecipeError
from hillclimb.recipe.explain import explain, salvage
from hillclimb.recipe.fields import nearest
from hillclimb.recipe.schema import Recipe

_FOLDER = resources.files("hillclimb.recipe") / "recipes"


def presets() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in _FOLDER.iterdir()
        if entry.name.endswith(".yaml")
    )


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `section.field=value` overrides to it.

    Args:
        name_or_path: a preset's name (see `presets`) or a YAML file.
        overrides: `specialists.stem.climbs.0.rewards.length=0.1`; the value is YAML, numbers in
            the path are positions in lists, absent sections begin with their defaults.

    Raises:
        RecipeError: listing everything that is wrong with the file or the overrides.
    """
    text, source = _read(name_or_path)
    data, lines = read_document(text, source)
    recipe = _validate(data, source, lines)
    if not overrides:
        return recipe
    changed, problems = apply_overrides(recipe.model_dump(mode="json"), overrides)
    if problems:
        raise RecipeError("the overrides", problems)
    told = [o if "\n" not in o else f"{o.partition('=')[0]}=…" for o in overrides]
    return _validate(changed, f"{source} with {', '.join(told)}", {})


def parse_recipe(text: str, source: str = "the recipe") -> Recipe:
    """Validate a recipe given as YAML text. Raises `RecipeError`."""
    data, lines = read_document(text, source)
    return _validate(data, source, lines)


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults written out; `parse_recipe` gives an equal one."""
    return write_document(recipe.model_dump(mode="json"))


def experiment_name(recipe: str, seed: int, label: str | None = None) -> str:
    """The name of an experiment: `toy-seed0`, `toy-no-entropy-control-seed1`.

    Raises:
        ValueError: for a label with other than lower-case letters, digits and single dashes.
    """
    if label is not None and not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", label):
        raise ValueError(
            f"the experiment name {label!r} must be lower-case letters, digits and single dashes, "
            "such as no-length-penalty"
        )
    return "-".join([recipe, *([label] if label else []), f"seed{seed}"])


def apply_overrides(
    data: dict[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[Problem]]:
    """A changed copy of `data`, and the overrides that could not be applied."""
    changed, problems = copy.deepcopy(data), []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            fix = "write it as section.field=value"
            problems.append(Problem(override, "is not an override", fix))
            continue
        try:
            _assign(changed, path.strip(), parse_value(text))
        except yaml.YAMLError:
            problems.append(Problem(path, f"has the unreadable value {text!r}", "quote it as YAML"))
        except LookupError as error:
            problems.append(Problem(path, str(error.args[0]), "correct the path"))
    return changed, problems


def _assign(data: dict[str, Any], path: str, value: Any) -> None:
    place: Any = data
    parts = path.split(".")
    for depth, part in enumerate(parts):
        last, here = depth == len(parts) - 1, ".".join(parts[: depth + 1])
        key: str | int = part
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                raise LookupError(f"goes through {here}, but the list ends at {len(place) - 1}")
            key = int(part)
        elif not isinstance(place, dict):
            raise LookupError(f"goes below {'.'.join(parts[:depth])}, which is a single value")
        elif part not in place and not last:
            guess = nearest(part, place)
            known = f"did you mean {guess}?" if guess else f"known are {', '.join(place)}"
            raise LookupError(f"goes through {here}, which is not there ({known})")
        if last:
            place[key] = value
            return
        if place[key] is None:
            place[key] = {}
        place = place[key]


def _read(name_or_path: str | Path) -> tuple[str, str]:
    name = str(name_or_path)
    path = Path(name)
    if name in presets():
        return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), name
    known = f"the presets are {', '.join(presets())}"
    if not path.is_file():
        guess = nearest(name, presets())
        hint = f" (did you mean {guess}?)" if guess else ""
        fix = f"name a preset or a YAML file; {known}"
        raise RecipeError(name, [Problem("", f"is neither a preset nor a file{hint}", fix)])
    try:
        return path.read_text(encoding="utf-8"), name
    except (OSError, UnicodeDecodeError) as error:
        fix = "make it a readable UTF-8 text file"
        raise RecipeError(name, [Problem("", f"cannot be read: {error}", fix)]) from error


def _validate(data: dict[str, Any], source: str, lines: Lines) -> Recipe:
    """Validate, then check across sections; or raise everything found."""
    try:
        recipe = Recipe.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        found = explain(Recipe, data, error)
        partial, more = salvage(Recipe, data)
        problems = list({**more, **found}.values())
        named = {problem.field for problem in problems}
        problems += [p for p in cross_checks(partial) if p.field not in named]
        raise RecipeError(source, _placed(problems, lines)) from error
    if mismatches := cross_checks(recipe):
        raise RecipeError(source, _placed(mismatches, lines))
    return recipe


def _placed(problems: list[Problem], lines: Lines) -> list[Problem]:
    """Problems with their lines; one that an anchor repeats is told once."""
    told: dict[Any, list[Problem]] = {}
    for problem in [_with_line(p, lines) for p in problems]:
        told.setdefault((problem.line or problem.field, problem.what, problem.fix), []).append(
            problem
        )
    return [
        replace(first, what=f"{first.what} (and {len(more)} more times through its anchor)")
        if more
        else first
        for first, *more in told.values()
    ]


def _with_line(problem: Problem, lines: Lines) -> Problem:
    """The line of the field, or of the nearest section above it that the file has."""
    path: tuple[str | int, ...] = tuple(
        int(part) if part.isdigit() else part for part in problem.field.split(".") if part
    )
    while path and path not in lines:
        path = path[:-1]
    return replace(problem, line=lines.get(path)) if path else problem
