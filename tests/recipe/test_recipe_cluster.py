"""The cluster's section of a recipe: what it takes, and what cannot be scheduled."""

from __future__ import annotations

from pathlib import Path

import pytest

from hillclimb.recipe.errors import RecipeError
from hillclimb.recipe.graph import identify, stage_specs
from hillclimb.recipe.kubernetes import Kubernetes, Toleration, Volume, size_bytes
from hillclimb.recipe.load import dump_recipe, load_recipe, parse_recipe

SMALL = Path(__file__).with_name("small.yaml")
SECTION = """compute.kubernetes=
image: registry/training:1
control_image: registry/control:1
runs: /shared/runs
volumes: [{name: root, mount: /shared, claim: root}]
"""
PLACE = "compute.kubernetes"


def mistakes(*overrides: str) -> list[str]:
    """Sentences about the small recipe on a cluster."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMALL, [SECTION, *overrides])
    return [str(problem) for problem in caught.value.problems]


def test_the_section_is_no_identity() -> None:
    bare, on_cluster = load_recipe(SMALL), load_recipe(SMALL, [SECTION, f"{PLACE}.cpu=3"])
    assert bare.compute.kubernetes is None
    assert on_cluster.compute.kubernetes is not None
    assert identify(stage_specs(bare)) == identify(stage_specs(on_cluster))
    ranks = load_recipe(SMALL, [SECTION, "compute.base_ranks=4"])
    assert identify(stage_specs(ranks)) != identify(stage_specs(bare))


def test_the_section_survives_dump_and_load_and_can_be_set_field_by_field() -> None:
    recipe = load_recipe(SMALL, [SECTION])
    assert parse_recipe(dump_recipe(recipe)) == recipe
    fields = ("image=registry/training:1", "control_image=registry/control:1", "runs=/shared/runs")
    volumes = "volumes=[{name: root, mount: /shared, claim: root}]"
    sets = [f"{PLACE}.{field}" for field in (*fields, volumes)]
    assert load_recipe(SMALL, sets) == recipe


@pytest.mark.parametrize("section", [Kubernetes, Toleration, Volume])
def test_every_field_says_what_it_means(section: type[Kubernetes]) -> None:
    assert not [name for name, field in section.model_fields.items() if not field.description]


def test_sizes_are_bytes() -> None:
    assert size_bytes("64Gi") == 64 * 2**30
    assert size_bytes("1.5k") == 1500
    assert size_bytes("7") == 7


def test_cores_may_be_written_as_a_number() -> None:
    for given, read in (("4", "4"), ("0.5", "0.5"), ("'500m'", "500m")):
        recipe = load_recipe(SMALL, [SECTION, f"{PLACE}.cpu={given}"])
        assert recipe.compute.kubernetes is not None
        assert recipe.compute.kubernetes.cpu == read


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["runs=/elsewhere/runs"],
            f"{PLACE}.runs is /elsewhere/runs, which lies in no volume with a claim or a "
            f"host_path. Fix: mount one above it in {PLACE}.volumes.",
        ),
        (
            ["shm=64Gi"],
            f"{PLACE}.shm is 64Gi, but all of the pod has {PLACE}.memory = 64Gi. "
            f"Fix: keep it below, or raise {PLACE}.memory.",
        ),
        (
            ["light_memory=8Gi"],
            f"{PLACE}.shm is 16Gi, but all of the pod has {PLACE}.light_memory = 8Gi. "
            f"Fix: keep it below, or raise {PLACE}.light_memory.",
        ),
        (
            ["gpus_per_node=1", "nodes=1"],
            f"{PLACE}.nodes is 1, but compute.base_ranks = 2 takes 2 nodes "
            f"({PLACE}.gpus_per_node = 1). Fix: lower compute.base_ranks, or use 2 nodes.",
        ),
        (
            ["gpus_per_node=0", "nodes=1"],
            f"{PLACE}.nodes is 1, but {PLACE}.gpus_per_node is 0. Fix: leave it out.",
        ),
        (
            ["queue=hillclimb", "quota=1"],
            f"{PLACE}.quota is 1, but compute.base_ranks = 2 asks for 2 GPUs at once. "
            "Fix: lower compute.base_ranks, or raise the ClusterQueue's quota to 2.",
        ),
        (
            ["quota=8"],
            f"{PLACE}.quota is 8, but no queue grants it. Fix: name it in {PLACE}.queue.",
        ),
        (
            ["gpus_per_node=1", "topology_key=kubernetes.io/hostname"],
            f"{PLACE}.topology_key is kubernetes.io/hostname, but compute.base_ranks = 2 takes "
            "2 nodes in one place. Fix: lower compute.base_ranks, or choose a topology_key that "
            "more nodes share.",
        ),
        (
            ["topology_nodes=2"],
            f"{PLACE}.topology_nodes is 2, but there is no topology_key. "
            f"Fix: name it in {PLACE}.topology_key.",
        ),
        (
            ["rdma={hca: 1}"],
            f"{PLACE}.rdma.hca is 1, but it takes the name and a count of an extended resource. "
            "Fix: write it as nodes advertise it, such as rdma/hca_shared_devices_a: 1.",
        ),
        (
            ["node_selector={pool: gpu nodes}"],
            f"{PLACE}.node_selector.pool is 'gpu nodes', which is no label that a node can have. "
            "Fix: give at most 63 letters, digits, dashes, dots and underscores.",
        ),
        (
            ["env={HF_TOKEN: abc}"],
            f"{PLACE}.env.HF_TOKEN is a secret by its name, and everybody can read manifests. "
            f"Fix: put it into a Secret, and name that in {PLACE}.secrets.",
        ),
        (
            ["volumes=[{name: root, mount: /shared, claim: a, host_path: /b}]"],
            f"{PLACE}.volumes.0 has a claim and a host_path. Fix: keep one of them.",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_scheduled_is_told_with_its_fix(overrides: list[str], sentence: str) -> None:
    assert mistakes(*(f"{PLACE}.{override}" for override in overrides)) == [sentence]


def test_all_mistakes_are_told_at_once_beside_a_misspelt_field() -> None:
    found = mistakes(
        f"{PLACE}.gpus_per_nod=4",
        f"{PLACE}.image='a b'",
        f"{PLACE}.memory=8Gi",
        f"{PLACE}.tolerations=[{{operator: Equal, value: x}}, {{value: y}}]",
        f"{PLACE}.volumes=[{{name: shm, mount: /tmp}}, {{name: a, mount: /tmp}}]",
    )
    starts = [sentence.split(". Fix: ")[0] for sentence in found]
    assert starts == [
        f"{PLACE}.gpus_per_nod is not a known field (did you mean gpus_per_node?)",
        f"{PLACE}.image must match ^\\S+$, but is 'a b'",
        f"{PLACE}.runs is /shared/runs, which lies in no volume with a claim or a host_path",
        f"{PLACE}.shm is 16Gi, but all of the pod has {PLACE}.memory = 8Gi",
        f"{PLACE}.tolerations.0 does not fit together: operator=Equal needs the taint's key",
        f"{PLACE}.tolerations.1 does not fit together: value=y needs operator=Equal",
        f"{PLACE}.volumes.0.mount is /tmp, which pods have already",
        f"{PLACE}.volumes.0.name is shm, which pods have already",
        f"{PLACE}.volumes.1.mount is /tmp, which pods have already",
        f"{PLACE}.volumes.1.mount is /tmp for the second time",
    ]


def test_a_section_without_images_says_what_is_missing() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(SMALL, [f"{PLACE}.runs=/shared/runs"])
    assert [(p.field, p.what) for p in caught.value.problems if p.what == "is missing"] == [
        (f"{PLACE}.control_image", "is missing"),
        (f"{PLACE}.image", "is missing"),
    ]


def test_ranks_fill_nodes() -> None:
    ranks = ("compute.climb_ranks=6", "compute.sft_ranks=3", f"{PLACE}.gpus_per_node=4")
    assert mistakes(*ranks) == [
        "compute.climb_ranks is 6, which does not divide over nodes of 4 GPUs each. "
        f"Fix: choose a multiple of {PLACE}.gpus_per_node = 4, or at most that."
    ]


def test_servers_need_an_image_and_share_nodes_with_the_ranks() -> None:
    servers = ("compute.climb_rollout_accelerators=6", "compute.rollout_server=2")
    assert mistakes(*servers) == [
        f"{PLACE}.rollout_image is empty, but compute.climb_rollout_accelerators is 6. "
        "Fix: name the image of rollout servers."
    ]
    asked = (*servers, f"{PLACE}.rollout_image=registry/rollout:1", f"{PLACE}.gpus_per_node=4")
    # One rank and one server of two on the first node, two servers on the second.
    load_recipe(SMALL, [SECTION, *asked, f"{PLACE}.nodes=2"])
    assert mistakes(*asked, f"{PLACE}.nodes=1") == [
        f"{PLACE}.nodes is 1, but compute.climb_ranks = 1 beside 6 accelerators of servers takes "
        f"2 nodes ({PLACE}.gpus_per_node = 4). Fix: lower compute.climb_ranks, or use 2 nodes."
    ]
    rack = (*asked, f"{PLACE}.topology_key=example.com/rack", f"{PLACE}.topology_nodes=1")
    assert len(mistakes(*rack)) == 1
    assert "compute.climb_ranks = 1 beside 6" in mistakes(*rack)[0]


def test_vllm_splits_the_model_over_the_gpus_of_a_pod() -> None:
    """Four heads of queries, two of keys and values, inner widths of 96 and 64."""
    image = f"{PLACE}.rollout_image=registry/rollout:1"

    def asked(gpus: int) -> tuple[str, ...]:
        servers = f"compute.climb_rollout_accelerators={2 * gpus}", f"compute.rollout_server={gpus}"
        return (*servers, image, f"{PLACE}.gpus_per_node={gpus}")

    load_recipe(SMALL, [SECTION, *asked(4)])
    assert mistakes(*asked(3)) == [
        "compute.rollout_server puts 3 GPUs into a pod, over which vLLM cannot split "
        f"model.{width} evenly. Fix: choose a size that divides it, or set "
        f"{PLACE}.rollout_engine to torch."
        for width in ("query_heads = 4", "kv_heads = 2", "expert_ffn / 2 = 64")
    ]
    load_recipe(SMALL, [SECTION, *asked(3), f"{PLACE}.rollout_engine=torch"])
    assert f"{PLACE}.rollout_engine" in mistakes(f"{PLACE}.rollout_engine=sglang")[0]


def test_whole_servers_take_whole_nodes() -> None:
    asked = (
        "compute.climb_rollout_accelerators=16",
        "compute.rollout_server=8",
        "compute.climb_ranks=4",
        f"{PLACE}.rollout_image=registry/rollout:1",
        f"{PLACE}.gpus_per_node=4",
        f"{PLACE}.queue=hillclimb",
    )
    load_recipe(SMALL, [SECTION, *asked, f"{PLACE}.nodes=5", f"{PLACE}.quota=20"])
    assert len(mistakes(*asked, f"{PLACE}.nodes=4", f"{PLACE}.quota=19")) == 2
    # With a queue the ranks and the servers are each in one place, which may be two places.
    rack = f"{PLACE}.topology_key=example.com/rack"
    load_recipe(SMALL, [SECTION, *asked, rack, f"{PLACE}.topology_nodes=4"])
    assert len(mistakes(*asked, rack, f"{PLACE}.topology_nodes=3")) == 1
