"""Experiments: a recipe, its overrides and a seed under one name, and what that asks for.

An experiment is a file, `<root>/experiments/<name>.json`, and a partition of the Dagster graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from hillclimb.artifacts import InputRef, Store
from hillclimb.artifacts.fingerprint import code_version
from hillclimb.recipe.graph import CODE, StageSpec, identify, stage_specs
from hillclimb.recipe.load import experiment_name, load_recipe
from hillclimb.recipe.schema import Recipe
from hillclimb.stages.request import Request


class NotInExperiment(LookupError):
    """The experiment's recipe does not ask for this stage."""


class MissingInputs(LookupError):
    """Stages that have to be made first; the message names them."""


class Experiment(BaseModel):
    """What a partition stands for. `recipe` is a preset's name or the path of a YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    recipe: str
    overrides: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def make(
        cls, recipe: str, seed: int = 0, label: str | None = None, overrides: tuple[str, ...] = ()
    ) -> Experiment:
        """Name the experiment after its recipe, label and seed.

        Raises:
            RecipeError: if the recipe or an override is wrong.
            ValueError: if there are overrides and no label to tell the experiment apart.
        """
        if overrides and label is None:
            raise ValueError("overrides make another experiment: give it a name")
        loaded = load_recipe(recipe, overrides)
        place = str(Path(recipe).resolve()) if Path(recipe).is_file() else recipe
        name = experiment_name(loaded.name, seed, label)
        return cls(name=name, recipe=place, overrides=overrides, seed=seed)

    def save(self, root: Path) -> None:
        """Write the experiment down under `root`."""
        path = _path(root, self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(self.model_dump_json(indent=1) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, root: Path, name: str) -> Experiment:
        """Read an experiment.

        Raises:
            LookupError: if there is none of that name, naming those that there are.
        """
        try:
            return cls.model_validate_json(_path(root, name).read_text())
        except FileNotFoundError:
            known = ", ".join(names(root)) or "none"
            raise LookupError(
                f"there is no experiment {name} under {root}; known: {known}"
            ) from None

    def plan(self) -> Plan:
        """Resolve the recipe as it stands now."""
        return Plan(self, load_recipe(self.recipe, self.overrides))


def names(root: Path) -> list[str]:
    """All experiments under `root`, sorted."""
    return sorted(path.stem for path in (root / "experiments").glob("*.json"))


def _path(root: Path, name: str) -> Path:
    return root / "experiments" / f"{name}.json"


@dataclass(frozen=True)
class Plan:
    """The stages of one experiment and their identities."""

    experiment: Experiment
    recipe: Recipe
    specs: dict[str, StageSpec] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "specs", stage_specs(self.recipe, self.experiment.seed))

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The identity of every stage."""
        return identify(self.specs)

    def spec(self, name: str) -> StageSpec:
        """One stage.

        Raises:
            NotInExperiment: if the recipe does not ask for it.
        """
        if name not in self.specs:
            raise NotInExperiment(
                f"the recipe {self.recipe.name} of the experiment {self.experiment.name} has no "
                f"stage {name}; leave it out of the selection"
            )
        return self.specs[name]

    def request(self, name: str, store: Store) -> Request:
        """What the stage's process is told.

        Raises:
            MissingInputs: naming the stages to make first.
        """
        inputs = self.spec(name).inputs.values()
        missing = [n for n in inputs if not store.find(n, self.fingerprints[n])]
        if missing:
            raise MissingInputs(
                f"{name} is made from {', '.join(sorted(set(missing)))}, which "
                f"{self.experiment.name} does not have yet: make that first"
            )
        return self.draft(name, store)

    def draft(self, name: str, store: Store) -> Request:
        """What the stage's process will be told once its inputs are made."""
        spec = self.spec(name)
        return Request(
            name=name,
            kind=spec.kind,
            output=store.uri(name, self.fingerprints[name]),
            fingerprint=self.fingerprints[name],
            code_version=code_version(CODE[spec.kind]),
            seed=spec.seed,
            inputs={
                role: InputRef(
                    name=n, fingerprint=self.fingerprints[n], uri=store.uri(n, self.fingerprints[n])
                )
                for role, n in spec.inputs.items()
            },
            config=spec.config,
            ranks=spec.ranks,
            threads=self.recipe.compute.threads,
            tracking={"experiment": self.experiment.name},
        )

    def made(self, store: Store) -> set[str]:
        """The stages whose artifact is in the store."""
        return {name for name, print_ in self.fingerprints.items() if store.find(name, print_)}
