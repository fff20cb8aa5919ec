"""What a recipe takes of a cluster: pods, GPUs and hours of every stage, and GPUs at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hillclimb.recipe.errors import Problem
from hillclimb.recipe.graph import StageSpec, upstream
from hillclimb.recipe.kubernetes import Kubernetes, size_bytes
from hillclimb.scaling.memory import GIB
from hillclimb.scaling.plan import Plan, StagePlan, longest_chain

PLACE = "compute.kubernetes"


@dataclass(frozen=True)
class Asked:
    """Pods and GPUs that a stage asks for, all its roles together."""

    pods: int
    gpus: int


@dataclass(frozen=True)
class ClusterStage:
    """One stage on the cluster; hours are zero where the planner counts no work."""

    name: str
    pods: int
    gpus: int
    hours: float

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.hours * self.gpus


@dataclass(frozen=True)
class ClusterPlan:
    """Every stage of a recipe on its cluster, in the graph's order."""

    stages: tuple[ClusterStage, ...]
    peak: tuple[ClusterStage, ...]
    chain_hours: float

    @property
    def peak_gpus(self) -> int:
        """GPUs of the stages beside each other that ask for the most."""
        return sum(stage.gpus for stage in self.peak)

    @property
    def hours(self) -> float:
        """Hours of all stages, one after another."""
        return sum(stage.hours for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all stages."""
        return sum(stage.gpu_hours for stage in self.stages)


def plan_cluster(
    plan: Plan, specs: dict[str, StageSpec], asked: Mapping[str, Asked]
) -> ClusterPlan:
    """Spread the planner's work over what each stage asks for.

    A stage with fewer GPUs than the planner counts takes longer by as much, so that GPU-hours
    are the planner's accelerator-hours.
    """
    stages = {stage.name: _stage(stage, asked[stage.name]) for stage in plan.stages}
    gpus = {name: stage.gpus for name, stage in stages.items()}
    peak = most_at_a_time(specs, gpus, plan.recipe.compute.parallel_stages)
    chain = longest_chain(specs, {name: stage.hours for name, stage in stages.items()})
    return ClusterPlan(tuple(stages.values()), tuple(stages[name] for name in peak), chain)


def most_at_a_time(
    specs: dict[str, StageSpec], gpus: Mapping[str, int], stages: int
) -> tuple[str, ...]:
    """Of the sets of at most `stages` stages of which none waits for another, the one that asks
    for the most GPUs."""
    behind = {name: set(upstream(specs, [name])) for name in specs}
    best: tuple[str, ...] = ()

    def grow(chosen: tuple[str, ...], rest: list[str]) -> None:
        nonlocal best
        if sum(gpus[name] for name in chosen) > sum(gpus[name] for name in best):
            best = chosen
        if len(chosen) == stages:
            return
        for index, name in enumerate(rest):
            apart = [other for other in rest[index + 1 :] if name not in behind[other]]
            grow((*chosen, name), apart)

    grow((), [name for name in specs if gpus[name]])
    return best


def misfits(plan: Plan, specs: dict[str, StageSpec], on_cluster: ClusterPlan) -> Iterator[Problem]:
    """What the recipe's cluster cannot give, by the planner's estimates."""
    cluster = plan.recipe.compute.kubernetes
    if cluster is None:
        return
    for misfit in plan.misfits:
        what = (
            f"is {misfit.has_gib:,.4g}, but {misfit.stage} needs {misfit.needs_gib:,.4g} GiB on "
            f"each; most goes to {misfit.part}"
        )
        fix = f"change {misfit.change}"
        yield Problem("compute.accelerator.memory_gib", what, fix)
    if not cluster.gpus_per_node:
        yield from _ranks_share_memory(plan, specs, cluster)
    at_a_time = plan.recipe.compute.parallel_stages
    yield from _gangs_may_wait_for_each_other(specs, at_a_time, cluster, on_cluster)


def _ranks_share_memory(
    plan: Plan, specs: dict[str, StageSpec], cluster: Kubernetes
) -> Iterator[Problem]:
    """Without GPUs all ranks of a stage work in the memory of one pod."""
    needs = {s.name: s.memory.total * specs[s.name].ranks for s in plan.stages}
    fullest = max(needs, key=needs.__getitem__)
    if needs[fullest] > size_bytes(cluster.memory):
        what = (
            f"is {cluster.memory}, but {fullest} needs {needs[fullest] / GIB:,.4g} GiB for its "
            f"{specs[fullest].ranks} ranks"
        )
        fix = "raise it, or make the model, the micro-batches or the number of ranks smaller"
        yield Problem(f"{PLACE}.memory", what, fix)


def _gangs_may_wait_for_each_other(
    specs: dict[str, StageSpec], at_a_time: int, cluster: Kubernetes, on_cluster: ClusterPlan
) -> Iterator[Problem]:
    """Without a queue pods are placed one by one: two stages may each hold half of the nodes."""
    if cluster.queue or cluster.nodes is None:
        return
    gangs = {stage.name: stage.gpus if stage.pods > 1 else 0 for stage in on_cluster.stages}
    beside = most_at_a_time(specs, gangs, at_a_time)
    wanted, there = sum(gangs[name] for name in beside), cluster.nodes * cluster.gpus_per_node
    if len(beside) > 1 and wanted > there:
        what = (
            f"is empty, but {' and '.join(beside)} may start together, ask for {wanted:,} GPUs of "
            f"{there:,}, and may each hold pods while waiting for more"
        )
        fix = "name a Kueue queue, which admits stages whole, or set compute.parallel_stages to 1"
        yield Problem(f"{PLACE}.queue", what, fix)


def _stage(stage: StagePlan, asked: Asked) -> ClusterStage:
    hours = stage.accelerator_hours / asked.gpus if asked.gpus else stage.hours
    return ClusterStage(stage.name, asked.pods, asked.gpus, hours)
