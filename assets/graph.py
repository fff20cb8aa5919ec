"""The nodes of the asset graph: what the stages of all known recipes are, taken together."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import dagster as dg

import hillclimb
from hillclimb.recipe.graph import StageSpec, stage_specs
from hillclimb.recipe.load import load_recipe, presets
from hillclimb.stages.registry import KINDS

EXPERIMENTS = dg.DynamicPartitionsDefinition(name="experiment")

_PACKAGE = Path(hillclimb.__file__).resolve().parent

DESCRIPTIONS = {
    "problems": "Problems made by rule, verified by their own graders, split by what decides them.",
    "raw_documents": "Every source's documents as they were read, each with its provenance.",
    "ai_text_detector": "The scorer of machine-written text and its calibration per domain.",
    "filtered_corpus": "Documents that passed every filter; what each step dropped, and why.",
    "tokenizer": "Byte-level BPE learnt from the filtered corpus.",
    "mixture": "Token shares by category, epochs per source under the memorisation-aware cap.",
    "base_phase": "One phase of base training at one sequence length.",
    "climb": "Reinforcement learning from verifiable rewards; every rollout is kept.",
    "traces": "Rollouts of the late climb that self-distillation learns from.",
    "student": "The fresh base, fine-tuned on the traces of the round before.",
    "consolidation": "One model from the traces of three specialists.",
    "scorecard": "Every checkpoint on every domain's held-out problems, sampled and greedy.",
    "model_card": "Lineage, data, recipe, scores and cost of the final model.",
}

TECHNOLOGY = {
    "raw_documents": {"python", "parquet"},
    "filtered_corpus": {"python", "parquet"},
    "ai_text_detector": {"python", "scikitlearn"},
    "problems": {"python", "parquet"},
    "tokenizer": {"huggingface"},
    "mixture": {"pytorch", "parquet"},
    "traces": {"python", "parquet"},
    "scorecard": {"pytorch"},
    "model_card": {"markdown"},
}
_TRAINED = {"pytorch", "huggingface"}

OWNERS = {"problems": "team:data", "corpus": "team:data", "base": "team:pretraining"}


RECIPE = "recipe"


def recipe_key(name: str) -> dg.AssetKey:
    """The external asset whose data version is what a recipe says about one stage."""
    return dg.AssetKey([RECIPE, *name.split("/")])


@dataclass
class Node:
    """One asset: what the recipes that know it agree on, and all that it may be made from."""

    name: str
    kind: str
    group: str
    gpu: bool
    inputs: set[str] = field(default_factory=set)
    recipes: int = 0

    @property
    def key(self) -> dg.AssetKey:
        """The name, split on its slashes."""
        return dg.AssetKey(self.name.split("/"))

    @property
    def technology(self) -> set[str]:
        """What the graph shows on the node."""
        return TECHNOLOGY.get(self.kind, _TRAINED)

    @property
    def owner(self) -> str:
        """Who answers for it."""
        return OWNERS.get(self.group, "team:post-training")


def union_of_recipes(names: Iterable[str] | None = None) -> dict[str, Node]:
    """The nodes of all recipes, sorted by name; rounds go up to the most that one asks for."""
    nodes: dict[str, Node] = {}
    for recipe in presets() if names is None else names:
        for spec in stage_specs(load_recipe(recipe)).values():
            _add(nodes, spec)
    return dict(sorted(nodes.items()))


def optional(nodes: dict[str, Node]) -> list[dg.AssetKey]:
    """The nodes that only some recipes have: later rounds of specialists."""
    most = max(node.recipes for node in nodes.values())
    return [node.key for node in nodes.values() if node.recipes < most]


def _add(nodes: dict[str, Node], spec: StageSpec) -> None:
    node = nodes.setdefault(spec.name, Node(spec.name, spec.kind, spec.group, spec.gpu))
    node.gpu = node.gpu or spec.gpu
    node.recipes += 1
    node.inputs |= set(spec.inputs.values())


@cache
def code_reference(kind: str) -> dg.CodeReferencesMetadataValue:
    """Where the function that makes a kind is, found without importing it."""
    module, function = KINDS[kind].split(":")
    path = _PACKAGE / Path(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(path.read_text())
    lines = [n.lineno for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        place = dg.LocalFileCodeReference(
            file_path=str(path), line_number=lines[0] if lines else 1, label=f"{module}.{function}"
        )
        return dg.CodeReferencesMetadataValue(code_references=[place])
