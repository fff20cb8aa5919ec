"""Where stages run."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import dagster as dg

from hillclimb.launcher import Launcher, LocalLauncher
from hillclimb.recipe.compute import Compute
from hillclimb.recipe.errors import Problem, RecipeError

if TYPE_CHECKING:
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

    from hillclimb.launcher.kubernetes import KubernetesLauncher

CHOICE = "HILLCLIMB_LAUNCHER"


class StageLauncher(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Processes of this machine, or pods of the recipe's cluster, as HILLCLIMB_LAUNCHER says."""

    root: str

    def get(self, compute: Compute) -> Launcher:
        """The launcher of an experiment; every thread of one process shares it.

        Raises:
            RecipeError: if stages are to run on Kubernetes and the recipe names no cluster.
        """
        return cluster_launcher(compute) or local_launcher(self.root)


def on_cluster() -> bool:
    """Whether HILLCLIMB_LAUNCHER says that stages run on Kubernetes."""
    return os.environ.get(CHOICE) == "kubernetes"


def orchestrator(instance: dg.DagsterInstance) -> str:
    """The identity of a Dagster instance: that of its database, whoever opens it."""
    return cast("SqlRunStorage", instance.run_storage).get_run_storage_id()


@cache
def local_launcher(root: str) -> LocalLauncher:
    """The local launcher of a root: one warm nursery for all stages that a process asks for."""
    return LocalLauncher(Path(root) / "runs")


def cluster_launcher(compute: Compute) -> KubernetesLauncher | None:
    """The launcher of the recipe's cluster; None where stages run on this machine.

    Raises:
        RecipeError: if HILLCLIMB_LAUNCHER has no such value, or the recipe names no cluster.
    """
    choice = os.environ.get(CHOICE, "local")
    if choice == "local":
        return None
    if choice != "kubernetes":
        problem = Problem("", f"is to run on {choice!r}", f"set {CHOICE} to local or kubernetes")
        raise RecipeError(CHOICE, [problem])
    if compute.kubernetes is None:
        what, fix = f"is missing, but {CHOICE} is kubernetes", "add it, with image and runs"
        raise RecipeError("the recipe", [Problem("compute.kubernetes", what, fix)])
    return _cluster_launcher(compute.model_dump_json())


@cache
def _cluster_launcher(compute: str) -> KubernetesLauncher:
    from hillclimb.launcher.kubernetes import KubernetesLauncher

    return KubernetesLauncher(Compute.model_validate_json(compute))
