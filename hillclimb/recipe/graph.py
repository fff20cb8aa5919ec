"""The graph of stages that a recipe asks for: names, inputs, literal configs, identities."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from graphlib import TopologicalSorter
from importlib import metadata
from typing import Any

from hillclimb.artifacts.fingerprint import code_version, fingerprint
from hillclimb.recipe.climb import SPECIALISTS
from hillclimb.recipe.schema import Recipe

PHASES = ("16k", "64k", "256k")

CODE = {
    "problems": "stages/problems.py",
    "raw_documents": "stages/documents.py",
    "ai_text_detector": "stages/documents.py",
    "filtered_corpus": "stages/documents.py",
    "tokenizer": "stages/tokens.py",
    "mixture": "stages/tokens.py",
    "base_phase": "stages/base.py",
    "climb": "stages/climb.py",
    "traces": "stages/distil.py",
    "student": "stages/distil.py",
    "consolidation": "stages/consolidation.py",
    "scorecard": "stages/score.py",
    "model_card": "stages/card.py",
}


@dataclass(frozen=True)
class StageSpec:
    """One stage: what it makes, from what, with which literal config.

    `inputs` maps the role that the stage knows to the name of the artifact.
    `ranks` is the number of processes; it decides bytes, so it is identity.
    """

    name: str
    kind: str
    group: str
    inputs: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    ranks: int = 1
    gpu: bool = False

    def identity(self, inputs: dict[str, str]) -> str:
        """Fingerprint, given the fingerprints of the inputs by role."""
        return fingerprint(
            {
                "kind": self.kind,
                "name": self.name,
                "config": self.config,
                "seed": self.seed,
                "ranks": self.ranks,
                "inputs": inputs,
                "code": code_version(CODE[self.kind]),
            }
        )


def stage_specs(recipe: Recipe, seed: int = 0) -> dict[str, StageSpec]:
    """Every stage of `recipe`, in an order in which inputs come first."""
    specs = [*_corpus(recipe), *_base(recipe, seed)]
    for name in SPECIALISTS:
        specs += _specialist(recipe, name, seed)
    specs += _ending(recipe, seed)
    named = {spec.name: spec for spec in specs}
    order = TopologicalSorter({name: spec.inputs.values() for name, spec in named.items()})
    return {name: named[name] for name in order.static_order()}


def identify(specs: dict[str, StageSpec]) -> dict[str, str]:
    """The fingerprint of every stage."""
    done: dict[str, str] = {}
    for spec in specs.values():
        done[spec.name] = spec.identity({role: done[name] for role, name in spec.inputs.items()})
    return done


def upstream(specs: dict[str, StageSpec], names: Iterable[str]) -> list[str]:
    """`names` and everything they are made from, inputs first."""
    wanted, pending = set(), list(names)
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending += specs[name].inputs.values()
    return [name for name in specs if name in wanted]


def checkpoints(specs: dict[str, StageSpec]) -> list[str]:
    """The stages that make a model, in order."""
    kinds = ("base_phase", "climb", "student", "consolidation")
    return [name for name, spec in specs.items() if spec.kind in kinds]


def _corpus(recipe: Recipe) -> list[StageSpec]:
    problems = [
        StageSpec(
            f"{name}_problems",
            "problems",
            "problems",
            config={"specialist": name, **_dump(recipe.specialists[name].problems)},
        )
        for name in SPECIALISTS
    ]
    evaluations = {spec.name: spec.name for spec in problems}
    mixture_inputs = {"corpus": "filtered_corpus", "tokenizer": "tokenizer"}
    sources = _dump(recipe.corpus)
    return [
        *problems,
        StageSpec(
            "raw_documents",
            "raw_documents",
            "corpus",
            config={
                "corpus": {key: sources[key] for key in ("sources", "limits")},
                "inventory": inventory(source["type"] for source in sources["sources"]),
            },
        ),
        StageSpec("ai_text_detector", "ai_text_detector", "corpus"),
        StageSpec(
            "filtered_corpus",
            "filtered_corpus",
            "corpus",
            {"raw": "raw_documents", "detector": "ai_text_detector", **evaluations},
            {"corpus": sources},
        ),
        StageSpec(
            "tokenizer",
            "tokenizer",
            "corpus",
            {"corpus": "filtered_corpus"},
            _dump(recipe.tokenizer),
        ),
        StageSpec(
            "pretraining_mixture",
            "mixture",
            "corpus",
            mixture_inputs,
            {
                "mixture": _dump(recipe.pretraining_mixture),
                "tokens": recipe.base.phase_16k.tokens,
                "held_out_tokens": recipe.evaluation.held_out_tokens,
            },
        ),
        StageSpec(
            "midtraining_mixture",
            "mixture",
            "corpus",
            {**mixture_inputs, "checkpoint": "mai_base_16k"},
            {
                "mixture": _dump(recipe.midtraining_mixture),
                "tokens": recipe.base.phase_64k.tokens + recipe.base.phase_256k.tokens,
                "held_out_tokens": recipe.evaluation.held_out_tokens,
            },
        ),
    ]


def inventory(types: Iterable[str]) -> dict[str, str]:
    """Versions of what local sources read: they decide the documents, so they are identity."""
    found, wanted = {}, set(types)
    if "python_stdlib" in wanted:
        found["python"] = platform.python_version()
    if "installed_packages" in wanted:
        found["packages"] = _packages()
    return found


@cache
def _packages() -> str:
    """A fingerprint over the names and versions of the installed distributions."""
    found = ((d.metadata["Name"].lower(), d.version) for d in metadata.distributions())
    known = {pair for pair in found if pair[0] != "hillclimb"}
    return fingerprint(sorted(f"{name}=={version}" for name, version in known))[:16]


def _base(recipe: Recipe, seed: int) -> list[StageSpec]:
    specs = []
    for index, phase in enumerate(PHASES):
        inputs = {"tokenizer": "tokenizer"}
        inputs["mixture"] = "midtraining_mixture" if index else "pretraining_mixture"
        if index:
            inputs["checkpoint"] = f"mai_base_{PHASES[index - 1]}"
        training = _dump(recipe.base)
        config = {key: value for key, value in training.items() if not key.startswith("phase_")}
        config["phase"] = training[f"phase_{phase}"]
        config["mixture"] = _dump(
            recipe.midtraining_mixture if index else recipe.pretraining_mixture
        )
        if not index:
            config["model"] = _dump(recipe.model)
        specs.append(
            StageSpec(
                f"mai_base_{phase}",
                "base_phase",
                "base",
                inputs,
                config,
                seed,
                recipe.compute.base_ranks,
                gpu=True,
            )
        )
    return specs


def _specialist(recipe: Recipe, name: str, seed: int) -> list[StageSpec]:
    specialist, specs = recipe.specialists[name], []
    for round_, climb in enumerate(specialist.climbs):
        prefix, start = f"{name}/round_{round_}", "mai_base_256k"
        if round_:
            start = f"{prefix}/student"
            specs.append(
                StageSpec(
                    start,
                    "student",
                    name,
                    {
                        "checkpoint": "mai_base_256k",
                        "tokenizer": "tokenizer",
                        "traces": f"{name}/round_{round_ - 1}/traces",
                    },
                    _dump(specialist.student),
                    seed,
                    recipe.compute.sft_ranks,
                    gpu=True,
                )
            )
        specs.append(
            StageSpec(
                f"{prefix}/climb",
                "climb",
                name,
                {
                    "checkpoint": start,
                    "tokenizer": "tokenizer",
                    f"{name}_problems": f"{name}_problems",
                },
                {"climb": _dump(climb), "shares": {name: 1.0}, "round": round_},
                seed,
                recipe.compute.climb_ranks,
                gpu=True,
            )
        )
        specs.append(
            StageSpec(
                f"{prefix}/traces",
                "traces",
                name,
                {"climb": f"{prefix}/climb"},
                _dump(specialist.traces),
                seed,
            )
        )
    return specs


def _ending(recipe: Recipe, seed: int) -> list[StageSpec]:
    last = {n: f"{n}/round_{recipe.specialists[n].rounds - 1}" for n in SPECIALISTS}
    problems = {f"{n}_problems": f"{n}_problems" for n in SPECIALISTS}
    config = _dump(recipe.consolidation)
    if config["on_policy"]:
        config = {key: config[key] for key in ("shares", "on_policy")}
        told = {f"{n}_teacher": f"{prefix}/climb" for n, prefix in last.items()} | problems
    else:
        del config["on_policy"]
        told = {n: f"{prefix}/traces" for n, prefix in last.items()}
    consolidated = StageSpec(
        "consolidated_model",
        "consolidation",
        "final",
        {"checkpoint": "mai_base_256k", "tokenizer": "tokenizer", **told},
        config,
        seed,
        recipe.compute.sft_ranks,
        gpu=True,
    )
    final = StageSpec(
        "mai_thinking",
        "climb",
        "final",
        {"checkpoint": "consolidated_model", "tokenizer": "tokenizer", **problems},
        {
            "climb": _dump(recipe.final.climb),
            "shares": _dump(recipe.final)["shares"],
            "round": 0,
        },
        seed,
        recipe.compute.climb_ranks,
        gpu=True,
    )
    models = [f"mai_base_{phase}" for phase in PHASES]
    for name in SPECIALISTS:
        for round_ in range(recipe.specialists[name].rounds):
            models += [f"{name}/round_{round_}/student"] if round_ else []
            models.append(f"{name}/round_{round_}/climb")
    models += ["consolidated_model", "mai_thinking"]
    scorecard = StageSpec(
        "scorecard",
        "scorecard",
        "final",
        {**{model: model for model in models}, "tokenizer": "tokenizer", **problems},
        _dump(recipe.evaluation),
        seed,
        recipe.compute.evaluation_ranks,
        gpu=True,
    )
    card = StageSpec(
        "model_card",
        "model_card",
        "final",
        {"scorecard": "scorecard", "model": "mai_thinking", "corpus": "filtered_corpus"},
        {"recipe": recipe.name},
        seed,
    )
    return [consolidated, final, scorecard, card]


def _dump(section: Any) -> dict[str, Any]:
    return dict(section.model_dump(mode="json"))
