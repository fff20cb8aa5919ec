"""What happens by itself: the next round, a nightly run, changed data versions."""

import json
from collections.abc import Iterator

import dagster as dg

from hillclimb.assets import EXPERIMENTS, recipe_events
from hillclimb.experiments import Experiment, Plan, names
from hillclimb.recipe.climb import SPECIALISTS
from hillclimb.recipe.errors import RecipeError
from hillclimb.resources import Workspace
from hillclimb.self_distillation import decide, next_round

NIGHTLY = "smoke"
BROKEN = (LookupError, ValueError, RecipeError)
"""What an experiment raises that is not there, or whose recipe is wrong."""

automation = dg.AutomationConditionSensorDefinition(
    "changed_versions",
    target=dg.AssetSelection.all(),
    description="Makes again what is made from a changed data version. Off until it is wanted: "
    "it spends accelerator time unasked.",
    default_status=dg.DefaultSensorStatus.STOPPED,
)


@dg.sensor(
    target=dg.AssetSelection.groups(*SPECIALISTS),
    minimum_interval_seconds=30,
    description="Opens a specialist's next round when its climb says why it ended.",
    default_status=dg.DefaultSensorStatus.STOPPED,
)
def self_distillation(
    context: dg.SensorEvaluationContext, workspace: Workspace
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Ask for traces, student, climb and traces of every round that may open and is not made."""
    said, asked = [], False
    for partition in sorted(context.instance.get_dynamic_partitions(EXPERIMENTS.name or "")):
        try:
            plan = workspace.plan(partition)
        except BROKEN as error:
            said.append(str(error))
            continue
        for request in _rounds(plan, workspace):
            if isinstance(request, dg.RunRequest):
                asked = True
                yield request
            else:
                said.append(request)
    if not asked:
        yield dg.SkipReason("; ".join(said) or "there are no experiments")


def _rounds(plan: Plan, workspace: Workspace) -> Iterator[dg.RunRequest | str]:
    for name, spec in plan.specs.items():
        if spec.kind != "climb" or spec.group not in SPECIALISTS:
            continue
        decision = decide(plan, name, workspace.stop_of(plan, name))
        wanted = [stage for stage in next_round(name) if stage in plan.specs]
        left = [stage for stage in wanted if workspace.find(plan, stage) is None]
        if not decision.opens or not left:
            yield decision.reason
            continue
        version = plan.fingerprints[name][:16]
        yield dg.RunRequest(
            run_key=f"{plan.experiment.name}:{name}:{version}",
            partition_key=plan.experiment.name,
            asset_selection=[dg.AssetKey(stage.split("/")) for stage in left],
            tags={"hillclimb/opened_by": decision.reason[:200]},
        )


@dg.sensor(
    minimum_interval_seconds=30,
    description="Reads the experiments' recipes anew and shows what a change makes stale.",
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def recipe_changes(
    context: dg.SensorEvaluationContext, workspace: Workspace
) -> dg.SensorResult | dg.SkipReason:
    """Tell the data version of every recipe entry that has changed, and new experiments."""
    known: dict[str, dict[str, str]] = json.loads(context.cursor or "{}")
    partitions = set(context.instance.get_dynamic_partitions(EXPERIMENTS.name or ""))
    fresh = [name for name in names(workspace.path) if name not in partitions]
    events, broken = [], []
    for name in names(workspace.path):
        try:
            events += recipe_events(workspace.plan(name), known.setdefault(name, {}))
        except BROKEN as error:
            broken.append(f"{name}: {error}")
    if not events and not fresh:
        return dg.SkipReason("; ".join(broken) or "no recipe has changed")
    requests = [EXPERIMENTS.build_add_request(fresh)] if fresh else []
    return dg.SensorResult(
        asset_events=events, dynamic_partitions_requests=requests, cursor=json.dumps(known)
    )


@dg.schedule(
    cron_schedule="0 2 * * *",
    job_name="everything",
    description=f"The {NIGHTLY} recipe from end to end, every night.",
    default_status=dg.DefaultScheduleStatus.STOPPED,
)
def nightly(context: dg.ScheduleEvaluationContext, workspace: Workspace) -> dg.RunRequest:
    """Register the experiment and ask for what its recipe has."""
    experiment = Experiment.make(NIGHTLY)
    experiment.save(workspace.path)
    context.instance.add_dynamic_partitions(EXPERIMENTS.name or "", [experiment.name])
    day = context.scheduled_execution_time.strftime("%Y-%m-%d")
    return dg.RunRequest(
        run_key=f"{experiment.name}:{day}",
        partition_key=experiment.name,
        asset_selection=[dg.AssetKey(name.split("/")) for name in experiment.plan().specs],
    )
