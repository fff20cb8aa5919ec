"""How a stage is spread over pods, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass

from hillclimb.recipe.compute import Compute
from hillclimb.recipe.kubernetes import Kubernetes
from hillclimb.stages.request import Request

GPU_KINDS = ("base_phase", "climb", "student", "consolidation", "scorecard")


@dataclass(frozen=True)
class Layout:
    """Pods of ranks, and pods of each rollout server. `gpus` and `server_gpus` are of one pod."""

    nodes: int
    gpus: int
    servers: int = 0
    server_nodes: int = 0
    server_gpus: int = 0

    @property
    def single(self) -> bool:
        """Whether one pod does."""
        return self.nodes == 1 and not self.servers

    @property
    def pods(self) -> int:
        """Pods of all roles."""
        return self.nodes + self.servers * self.server_nodes

    @property
    def all_gpus(self) -> int:
        """Accelerators of all pods."""
        return self.nodes * self.gpus + self.servers * self.server_nodes * self.server_gpus


def cluster_of(compute: Compute) -> Kubernetes:
    """The cluster's section.

    Raises:
        ValueError: where the recipe has none.
    """
    if compute.kubernetes is None:
        raise ValueError("compute.kubernetes is missing: add it with image, control_image and runs")
    return compute.kubernetes


def layout(request: Request, compute: Compute) -> Layout:
    """The fewest pods that hold the stage's ranks, the same number in each."""
    cluster, size = cluster_of(compute), compute.rollout_server
    servers = compute.climb_rollout_accelerators // size if request.kind == "climb" else 0
    if not cluster.gpus_per_node or request.kind not in GPU_KINDS:
        return Layout(1, 0, servers, min(servers, 1))
    nodes = cluster.pods(request.ranks)
    gpus = request.ranks // nodes
    if not servers:
        return Layout(nodes, gpus)
    server_nodes = cluster.pods(size)
    return Layout(nodes, gpus, servers, server_nodes, size // server_nodes)


def folder(name: str, fingerprint: str, cluster: Kubernetes) -> str:
    """Where a stage's request and messages are, for its pods and for the orchestrator."""
    return f"{cluster.runs}/{name}/{fingerprint[:16]}"
