"""What a recipe will take: tokens, operations, memory, storage, time and price of every stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from hillclimb.recipe.graph import PHASES, StageSpec, checkpoints, stage_specs
from hillclimb.recipe.schema import Recipe
from hillclimb.scaling.counts import Parameters, count_parameters
from hillclimb.scaling.memory import GIB, Memory, training_state_bytes, weights_bytes
from hillclimb.scaling.work import (
    Work,
    climb_work,
    distillation_work,
    evaluation_work,
    phase_work,
    tuning_work,
)

ASSUMPTIONS = (
    "responses are half as long as their limit on average",
    "the group filters pass just enough groups for the gradient steps",
    "fine-tuning has as many traces as it may take",
    "work outside of accelerators (corpus, graders, sandboxes) is not counted",
)


@dataclass(frozen=True)
class Misfit:
    """A stage that does not fit its accelerators."""

    stage: str
    needs_gib: float
    has_gib: float
    accelerator: str
    part: str
    change: str

    def __str__(self) -> str:
        return (
            f"{self.stage} needs {self.needs_gib:,.4g} GiB, a {self.accelerator} has "
            f"{self.has_gib:,.4g} GiB; most goes to {self.part}: change {self.change}"
        )


class PlanError(Exception):
    """A recipe that cannot run on its compute. `misfits` lists every stage that does not fit."""

    def __init__(self, recipe: str, misfits: list[Misfit]) -> None:
        self.misfits = misfits
        lines = [f"{recipe} does not fit its compute:", *(f"  {misfit}" for misfit in misfits)]
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class StagePlan:
    """What one stage takes. Sizes in bytes, times in hours; zero where nothing is counted."""

    name: str
    kind: str
    group: str
    parameters: Parameters | None = None
    tokens: int = 0
    flops: float = 0.0
    memory: Memory = field(default_factory=Memory)
    checkpoint: int = 0
    training_state: int = 0
    accelerators: int = 0
    hours: float = 0.0
    usd: float = 0.0

    @property
    def accelerator_hours(self) -> float:
        """Hours times accelerators."""
        return self.hours * self.accelerators


@dataclass(frozen=True)
class Plan:
    """Every stage of a recipe, in the graph's order."""

    recipe: Recipe
    parameters: Parameters
    stages: tuple[StagePlan, ...]
    misfits: tuple[Misfit, ...]
    chain_hours: float

    @property
    def tokens(self) -> int:
        """Tokens trained on or sampled, all stages."""
        return sum(stage.tokens for stage in self.stages if stage.flops)

    @property
    def flops(self) -> float:
        """Operations of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def accelerator_hours(self) -> float:
        """Accelerator-hours of all stages."""
        return sum(stage.accelerator_hours for stage in self.stages)

    @property
    def storage(self) -> int:
        """Bytes of all checkpoints that artifacts keep."""
        return sum(stage.checkpoint for stage in self.stages)

    @property
    def usd(self) -> float:
        """Price of all stages."""
        return sum(stage.usd for stage in self.stages)

    def require_fit(self) -> None:
        """Raise `PlanError` if a stage needs more memory than its accelerator has."""
        if self.misfits:
            raise PlanError(self.recipe.name, list(self.misfits))


def plan_recipe(recipe: Recipe, seed: int = 0) -> Plan:
    """Plan every stage of `recipe` on its own compute section.

    Times are what the work takes at the compute section's utilisation; `chain_hours` is the
    longest chain of stages, which no number of accelerators beside each other shortens.
    """
    specs = stage_specs(recipe, seed)
    parameters = count_parameters(recipe.model, recipe.tokenizer.vocab_size)
    stages = [_stage_plan(recipe, spec, specs, parameters) for spec in specs.values()]
    misfits = [misfit for stage in stages for misfit in _misfit(recipe, stage)]
    chain_hours = longest_chain(specs, {stage.name: stage.hours for stage in stages})
    return Plan(recipe, parameters, tuple(stages), tuple(misfits), chain_hours)


def longest_chain(specs: dict[str, StageSpec], hours: Mapping[str, float]) -> float:
    """Hours of the chain of stages that takes longest, however many run beside it."""

    @cache
    def until(name: str) -> float:
        return hours[name] + max((until(n) for n in specs[name].inputs.values()), default=0.0)

    return max(until(name) for name in specs)


def _stage_plan(
    recipe: Recipe, spec: StageSpec, specs: dict[str, StageSpec], parameters: Parameters
) -> StagePlan:
    estimate = _ESTIMATES.get(spec.kind)
    if estimate is None:
        return StagePlan(spec.name, spec.kind, spec.group)
    work = estimate(recipe, spec, specs)
    vocab = recipe.tokenizer.vocab_size
    makes_model = spec.name in checkpoints(specs)
    state = training_state_bytes(recipe.model, vocab)
    return StagePlan(
        spec.name,
        spec.kind,
        spec.group,
        parameters if work.flops else None,
        work.tokens,
        work.flops,
        work.memory,
        weights_bytes(recipe.model, vocab) if makes_model else 0,
        state if makes_model else 0,
        work.accelerators,
        work.hours,
        work.hours * work.accelerators * recipe.compute.usd_per_hour,
    )


def _phase(recipe: Recipe, spec: StageSpec, _: dict[str, StageSpec]) -> Work:
    return phase_work(recipe, getattr(recipe.base, f"phase_{_phase_name(spec)}"))


def _climb(recipe: Recipe, spec: StageSpec, _: dict[str, StageSpec]) -> Work:
    if spec.group == "final":
        return climb_work(recipe, recipe.final.climb)
    return climb_work(recipe, recipe.specialists[spec.group].climbs[spec.config["round"]])


def _student(recipe: Recipe, spec: StageSpec, specs: dict[str, StageSpec]) -> Work:
    specialist = recipe.specialists[spec.group]
    teacher = specs[specs[spec.inputs["traces"]].inputs["climb"]]
    climb = specialist.climbs[teacher.config["round"]]
    return tuning_work(
        recipe, specialist.student, specialist.traces.traces, climb.lengths[-1].max_tokens
    )


def _consolidation(recipe: Recipe, spec: StageSpec, _: dict[str, StageSpec]) -> Work:
    if (distilled := recipe.consolidation.on_policy) is not None:
        return distillation_work(recipe, distilled)
    shares = recipe.consolidation.shares
    limits = {n: s.climbs[-1].lengths[-1].max_tokens for n, s in recipe.specialists.items()}
    mean = sum(shares[n] * limits[n] for n in shares) / sum(shares.values())
    return tuning_work(recipe, recipe.consolidation.sft, recipe.consolidation.traces, round(mean))


def _scorecard(recipe: Recipe, spec: StageSpec, specs: dict[str, StageSpec]) -> Work:
    return evaluation_work(recipe, models=len(checkpoints(specs)))


def _mixture(recipe: Recipe, spec: StageSpec, _: dict[str, StageSpec]) -> Work:
    return Work(tokens=int(spec.config["tokens"]))


_ESTIMATES: dict[str, Callable[[Recipe, StageSpec, dict[str, StageSpec]], Work]] = {
    "mixture": _mixture,
    "base_phase": _phase,
    "climb": _climb,
    "student": _student,
    "consolidation": _consolidation,
    "scorecard": _scorecard,
}


def _phase_name(spec: StageSpec) -> str:
    return next(phase for phase in PHASES if spec.name.endswith(f"_{phase}"))


def _misfit(recipe: Recipe, stage: StagePlan) -> Iterator[Misfit]:
    accelerator = recipe.compute.accelerator
    needs = stage.memory.total / GIB
    if needs > accelerator.memory_gib:
        part = stage.memory.largest
        change = _change(recipe, stage, part)
        yield Misfit(stage.name, needs, accelerator.memory_gib, accelerator.name, part, change)


def _consolidated_by(recipe: Recipe) -> str:
    return "sft" if recipe.consolidation.on_policy is None else "on_policy"


def _change(recipe: Recipe, stage: StagePlan, part: str) -> str:
    """The fields that make `part` of a stage smaller."""
    if part == "cache" or stage.kind == "scorecard":
        return "compute.rollout_server"
    if stage.kind == "base_phase":
        place, micro = f"base.phase_{stage.name.rsplit('_', 1)[-1]}", "base.micro_batch_tokens"
    else:
        place = "compute.post_training"
        micro = {
            "consolidation": f"consolidation.{_consolidated_by(recipe)}.micro_batch_tokens",
            "student": f"specialists.{stage.group}.student.micro_batch_tokens",
        }.get(stage.kind, _climb_place(stage))
    if part == "activations":
        return f"{micro} or {place}.activations"
    if part == "logits":
        return micro
    return f"{place}.zero_stage or {place}.expert_parallel"


def _climb_place(stage: StagePlan) -> str:
    if stage.group == "final":
        return "final.climb.micro_batch_tokens"
    round_ = stage.name.split("/")[1].removeprefix("round_")
    return f"specialists.{stage.group}.climbs.{round_}.micro_batch_tokens"
