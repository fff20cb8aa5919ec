"""Which experiment a command is about: a recipe with a seed, or one that was named before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec

from hillclimb.cli.failures import Exit, Failure
from hillclimb.experiments import Experiment, names
from hillclimb.recipe.load import experiment_name, load_recipe
from hillclimb.recipe.schema import Recipe


@dataclass(frozen=True)
class Target:
    """What `--root`, `--recipe` and `--seed` mean together."""

    root: str
    recipe: Recipe
    seed: int
    experiment: str


def resolve(root: str, name: str, seed: int, overrides: Sequence[str] = ()) -> Target:
    """Find the recipe. The name of an experiment under the root stands for all that it fixed.

    Raises:
        RecipeError: if the recipe or an override is wrong.
    """
    local = local_root(root)
    if local and name in names(local):
        found = Experiment.load(local, name)
        recipe = load_recipe(found.recipe, (*found.overrides, *overrides))
        return Target(root, recipe, found.seed, found.name)
    recipe = load_recipe(name, overrides)
    return Target(root, recipe, seed, experiment_name(recipe.name, seed))


def local_root(root: str) -> Path | None:
    """The root as a folder of this machine, or None where it is a remote store."""
    fs, path = fsspec.core.url_to_fs(root)
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return Path(path) if "file" in protocols else None


def require_local(root: str, what: str) -> Path:
    """A root on this machine, which `what` needs for its databases.

    Raises:
        Failure: if the root is a remote store.
    """
    local = local_root(root)
    if local is None:
        raise Failure(f"{what} needs a local --root; {root} is a remote store", Exit.USAGE)
    return local
