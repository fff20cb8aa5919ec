"""Whether a recipe fits the cluster that its compute section describes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from hillclimb.recipe.compute import Compute
from hillclimb.recipe.errors import Problem
from hillclimb.recipe.kubernetes import Kubernetes, size_bytes
from hillclimb.recipe.schema import Recipe

PLACE = "compute.kubernetes"
HOSTNAME = "kubernetes.io/hostname"
_OWN_VOLUMES, _OWN_MOUNTS = ("scratch", "shm"), ("/tmp", "/dev/shm")
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_SECRET_WORDS = {"KEY", "PASSWORD", "PASSWD", "SECRET", "TOKEN"}
_NO_SECRET = ("_FILE", "_PATH", "_DIR", "_URL")


class _Gang(NamedTuple):
    """What has to run at the same time: ranks, and servers of `size` accelerators each."""

    field: str
    ranks: int
    servers: int = 0
    size: int = 1

    @property
    def gpus(self) -> int:
        return self.ranks + self.servers * self.size

    def __str__(self) -> str:
        beside = f" beside {self.servers * self.size} accelerators of servers"
        return f"{self.field} = {self.ranks}{beside if self.servers else ''}"


def runs_are_shared(recipe: Recipe) -> Iterator[Problem]:
    """Pods and the orchestrator share the folder of messages."""
    if (cluster := recipe.compute.kubernetes) and not cluster.shares(cluster.runs):
        what = f"is {cluster.runs}, which lies in no volume with a claim or a host_path"
        yield Problem(f"{PLACE}.runs", what, f"mount one above it in {PLACE}.volumes")


def volumes_differ(recipe: Recipe) -> Iterator[Problem]:
    """Every volume has one kind of storage, and a name and a place of its own."""
    cluster = recipe.compute.kubernetes
    for index, volume in enumerate(cluster.volumes if cluster else ()):
        place, before = f"{PLACE}.volumes.{index}", cluster.volumes[:index] if cluster else ()
        if volume.claim and volume.host_path:
            yield Problem(place, "has a claim and a host_path", "keep one of them")
        for field, taken in (("name", _OWN_VOLUMES), ("mount", _OWN_MOUNTS)):
            given = getattr(volume, field)
            if given in taken:
                what, fix = f"is {given}, which pods have already", "choose another one"
                yield Problem(f"{place}.{field}", what, fix)
            if given in [getattr(other, field) for other in before]:
                what, fix = f"is {given} for the second time", "choose another one"
                yield Problem(f"{place}.{field}", what, fix)


def servers_have_what_they_need(recipe: Recipe) -> Iterator[Problem]:
    """Servers beside climbs have whole shares of the accelerators or CPUs, and an image."""
    compute, place = recipe.compute, "compute.climb_rollout_accelerators"
    count, size, cluster = (
        compute.climb_rollout_accelerators,
        compute.rollout_server,
        compute.kubernetes,
    )
    if cluster is None or not count:
        return
    if count % size:
        what = f"is {count}, which does not divide into servers of {size}"
        yield Problem(place, what, f"choose a multiple of compute.rollout_server = {size}")
    if not cluster.rollout_image:
        what, fix = f"is empty, but {place} is {count}", "name the image of rollout servers"
        yield Problem(f"{PLACE}.rollout_image", what, fix)


def vllm_splits_the_model(recipe: Recipe) -> Iterator[Problem]:
    """The GPUs of a server's pod have equal shares of the heads and of the inner widths."""
    compute, cluster, model = recipe.compute, recipe.compute.kubernetes, recipe.model
    if cluster is None or not compute.climb_rollout_accelerators:
        return
    if cluster.draws_with == "torch" or not cluster.gpus_per_node:
        return
    gpus = compute.rollout_server // cluster.pods(compute.rollout_server)
    uneven = {
        f"query_heads = {model.query_heads}": model.query_heads % gpus,
        f"kv_heads = {model.kv_heads}": max(model.kv_heads, gpus) % min(model.kv_heads, gpus),
        f"dense_ffn / 2 = {model.dense_ffn // 2}": model.dense_ffn // 2 % gpus,
        f"expert_ffn / 2 = {model.expert_ffn // 2}": model.expert_ffn // 2 % gpus,
    }
    for width in (width for width, left in uneven.items() if left):
        what = f"puts {gpus} GPUs into a pod, over which vLLM cannot split model.{width} evenly"
        fix = f"choose a size that divides it, or set {PLACE}.rollout_engine to torch"
        yield Problem("compute.rollout_server", what, fix)


def shared_memory_fits(recipe: Recipe) -> Iterator[Problem]:
    """What is written to /dev/shm counts to the pod's memory."""
    cluster = recipe.compute.kubernetes
    for field in ("memory", "light_memory") if cluster else ():
        size = getattr(cluster, field)
        if cluster and size and size_bytes(cluster.shm) >= size_bytes(size):
            what = f"is {cluster.shm}, but all of the pod has {PLACE}.{field} = {size}"
            yield Problem(f"{PLACE}.shm", what, f"keep it below, or raise {PLACE}.{field}")


def ranks_fill_nodes(recipe: Recipe) -> Iterator[Problem]:
    """What is larger than a node takes whole nodes, so that every pod holds as many ranks."""
    compute, cluster = recipe.compute, recipe.compute.kubernetes
    if cluster is None or not (per_node := cluster.gpus_per_node):
        return
    fields = ["base_ranks", "climb_ranks", "sft_ranks", "evaluation_ranks"]
    for field in [*fields, "rollout_server"] if compute.climb_rollout_accelerators else fields:
        if (count := getattr(compute, field)) > per_node and count % per_node:
            what = f"is {count}, which does not divide over nodes of {per_node} GPUs each"
            fix = f"choose a multiple of {PLACE}.gpus_per_node = {per_node}, or at most that"
            yield Problem(f"compute.{field}", what, fix)


def nodes_hold_every_stage(recipe: Recipe) -> Iterator[Problem]:
    """No stage asks for more nodes than there are."""
    cluster = recipe.compute.kubernetes
    if cluster is None or cluster.nodes is None:
        return
    if not cluster.gpus_per_node:
        what, fix = f"is {cluster.nodes}, but {PLACE}.gpus_per_node is 0", "leave it out"
        yield Problem(f"{PLACE}.nodes", what, fix)
    for gang in _gangs(recipe.compute):
        if (needs := _nodes(cluster, gang)) > cluster.nodes:
            what = (
                f"is {cluster.nodes}, but {gang} takes {needs} nodes "
                f"({PLACE}.gpus_per_node = {cluster.gpus_per_node})"
            )
            fix = f"lower {gang.field}, or use {needs} nodes"
            yield Problem(f"{PLACE}.nodes", what, fix)


def quota_holds_every_stage(recipe: Recipe) -> Iterator[Problem]:
    """A queue admits a stage whole: one that is larger than the quota waits for ever."""
    cluster = recipe.compute.kubernetes
    if cluster is None or cluster.quota is None:
        return
    if not cluster.queue:
        what, fix = f"is {cluster.quota}, but no queue grants it", f"name it in {PLACE}.queue"
        yield Problem(f"{PLACE}.quota", what, fix)
    for gang in _gangs(recipe.compute):
        if gang.gpus > cluster.quota:
            what = f"is {cluster.quota}, but {gang} asks for {gang.gpus} GPUs at once"
            fix = f"lower {gang.field}, or raise the ClusterQueue's quota to {gang.gpus}"
            yield Problem(f"{PLACE}.quota", what, fix)


def topology_holds_every_stage(recipe: Recipe) -> Iterator[Problem]:
    """What has to be in one place, a rack or one node, is no larger than the place."""
    cluster = recipe.compute.kubernetes
    if cluster is None:
        return
    field, nodes = "topology_nodes", cluster.topology_nodes
    if nodes and not cluster.topology_key:
        what, fix = f"is {nodes}, but there is no topology_key", f"name it in {PLACE}.topology_key"
        yield Problem(f"{PLACE}.{field}", what, fix)
    if nodes is None and cluster.topology_key == HOSTNAME:
        field, nodes = "topology_key", 1
    for gang in _gangs(recipe.compute):
        needs = _nodes_together(cluster, gang)
        if nodes and cluster.topology_key and needs > nodes:
            what = f"is {getattr(cluster, field)}, but {gang} takes {needs} nodes in one place"
            fix = f"lower {gang.field}, or choose a topology_key that more nodes share"
            yield Problem(f"{PLACE}.{field}", what, fix)


def names_are_valid(recipe: Recipe) -> Iterator[Problem]:
    """Names that the API server would refuse, pod by pod, long after the launch."""
    cluster = recipe.compute.kubernetes
    if cluster is None:
        return
    for key, value in cluster.node_selector.items():
        if not _LABEL.fullmatch(key.rpartition("/")[2]) or (value and not _LABEL.fullmatch(value)):
            what = f"is {value!r}, which is no label that a node can have"
            fix = "give at most 63 letters, digits, dashes, dots and underscores"
            yield Problem(f"{PLACE}.node_selector.{key}", what, fix)
    for name, count in cluster.rdma.items():
        if "/" not in name or count < 1:
            what = f"is {count}, but it takes the name and a count of an extended resource"
            fix = "write it as nodes advertise it, such as rdma/hca_shared_devices_a: 1"
            yield Problem(f"{PLACE}.rdma.{name}", what, fix)


def environment_holds_no_secrets(recipe: Recipe) -> Iterator[Problem]:
    """Manifests and the recipe itself are read by many; values of secrets are in neither."""
    cluster = recipe.compute.kubernetes
    for name in cluster.env if cluster else ():
        words = set(name.upper().split("_"))
        if words & _SECRET_WORDS and not name.upper().endswith(_NO_SECRET):
            what = "is a secret by its name, and everybody can read manifests"
            fix = f"put it into a Secret, and name that in {PLACE}.secrets"
            yield Problem(f"{PLACE}.env.{name}", what, fix)


def _gangs(compute: Compute) -> Iterator[_Gang]:
    """The largest stages of each kind; none where nodes have no GPUs."""
    if compute.kubernetes is None or not compute.kubernetes.gpus_per_node:
        return
    yield _Gang("compute.base_ranks", compute.base_ranks)
    yield _Gang("compute.sft_ranks", compute.sft_ranks)
    yield _Gang("compute.evaluation_ranks", compute.evaluation_ranks)
    servers = compute.climb_rollout_accelerators // compute.rollout_server
    yield _Gang("compute.climb_ranks", compute.climb_ranks, servers, compute.rollout_server)


def _nodes(cluster: Kubernetes, gang: _Gang) -> int:
    """Nodes of a stage; small servers share what its ranks leave of theirs."""
    ranks = cluster.pods(gang.ranks)
    free = ranks * cluster.gpus_per_node - gang.ranks
    return ranks + _server_nodes(cluster, gang, max(0, gang.servers - free // gang.size))


def _nodes_together(cluster: Kubernetes, gang: _Gang) -> int:
    """Nodes in one place: Kueue asks it of ranks and servers apart, affinity of both together."""
    if not cluster.queue:
        return _nodes(cluster, gang)
    return max(cluster.pods(gang.ranks), _server_nodes(cluster, gang, gang.servers))


def _server_nodes(cluster: Kubernetes, gang: _Gang, servers: int) -> int:
    if gang.size >= cluster.gpus_per_node:
        return servers * cluster.pods(gang.size)
    return -(-servers // (cluster.gpus_per_node // gang.size))


CLUSTER_CHECKS = (
    runs_are_shared,
    volumes_differ,
    servers_have_what_they_need,
    vllm_splits_the_model,
    shared_memory_fits,
    ranks_fill_nodes,
    nodes_hold_every_stage,
    quota_holds_every_stage,
    topology_holds_every_stage,
    names_are_valid,
    environment_holds_no_secrets,
)
