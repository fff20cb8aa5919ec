"""Stages as pods of a Kubernetes cluster. Nothing here is identity."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from hillclimb.recipe.base import Section

_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DOTTED = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_KEY = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_NUMBER = r"([1-9][0-9]*(\.[0-9]+)?|0\.[0-9]*[1-9])"
_PATH = r"^/[^:]*[^/:]$"
_SIZES = {
    "": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4,
    "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4,
}  # fmt: skip


def _as_text(value: object) -> object:
    """`cpu: 4` is what people write, and what Kubernetes takes."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else value


Cores = Annotated[str, BeforeValidator(_as_text), Field(pattern=rf"^{_NUMBER}m?$")]
Size = Annotated[str, Field(pattern=rf"^{_NUMBER}(k|M|G|T|Ki|Mi|Gi|Ti)?$")]


class Volume(Section):
    """Storage that every pod of a stage sees; without `claim` and `host_path` an empty folder."""

    name: str = Field(pattern=rf"^{_NAME}$", description="of the volume in the pods")
    mount: str = Field(pattern=_PATH, description="absolute path in the pods")
    claim: str = Field(
        "",
        pattern=rf"^({_DOTTED})?$",
        description="name of a PersistentVolumeClaim that many pods may write",
    )
    host_path: str = Field(
        "", description="folder of the node; a namespace with pod security restricted refuses it"
    )


class Toleration(Section):
    """A taint of nodes that stages may run on."""

    key: str = Field("", pattern=rf"^({_KEY})?$", description="the taint's key; empty is every one")
    operator: Literal["Exists", "Equal"] = Field(
        "Exists", description="whether the taint's value has to be `value`"
    )
    value: str = Field("", description="the taint's value, for the operator Equal")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        "", description="the taint's effect; empty is every effect"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Toleration:
        if self.operator == "Equal" and not self.key:
            raise ValueError("operator=Equal needs the taint's key")
        if self.operator == "Exists" and self.value:
            raise ValueError(f"value={self.value} needs operator=Equal")
        return self


class Sandboxes(Section):
    """The pods in which stages run model-written code: docs/security.md says what they ask for."""

    image: str = Field(
        pattern=r"^\S+$", description="an image with sh and python3, and nothing to hide"
    )
    namespace: str = Field(
        "hillclimb-sandboxes", pattern=rf"^{_NAME}$", description="for sandboxes and nothing else"
    )
    runtime_class: str = Field(
        "gvisor", pattern=rf"^{_DOTTED}$", description="the RuntimeClass that isolates"
    )
    warm_pool: str = Field(
        "",
        pattern=rf"^({_NAME})?$",
        description="SandboxWarmPool of agent-sandbox in the namespace; empty is a new pod each",
    )


class Kubernetes(Section):
    """Where and as what the pods of stages run."""

    namespace: str = Field(
        "hillclimb", pattern=rf"^{_NAME}$", description="of Jobs, JobSets and pods"
    )
    image: str = Field(
        pattern=r"^\S+$", description="container image of stages that train, sample or tokenize"
    )
    control_image: str = Field(
        pattern=r"^\S+$",
        description="container image of stages that make problems and read documents",
    )
    rollout_image: str = Field(
        "", pattern=r"^\S*$", description="container image of rollout servers beside a climb"
    )
    rollout_engine: Literal["torch", "vllm"] | None = Field(
        None,
        description="what rollout servers draw with: vllm, or torch, which computes on CPUs; "
        "empty is vllm where their pods have GPUs and torch where they have none",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="when nodes ask the registry"
    )
    runs: str = Field(
        pattern=_PATH,
        description="absolute folder of requests and messages, the same in pods and orchestrator",
    )
    volumes: tuple[Volume, ...] = Field((), description="mounted in every pod")
    nodes: int | None = Field(
        None,
        gt=0,
        description="nodes of `gpus_per_node` GPUs that stages may use; empty is not known",
    )
    gpus_per_node: int = Field(
        8, ge=0, description="GPUs of one node that stages use; 0 puts all ranks on CPUs"
    )
    cpu: Cores = Field("8", description="CPU cores of one pod")
    memory: Size = Field("64Gi", description="memory of one pod")
    shm: Size = Field("16Gi", description="/dev/shm of one pod, part of memory")
    light_cpu: Cores | None = Field(
        None, description="`cpu` of stages that neither train nor sample; empty is the same"
    )
    light_memory: Size | None = Field(
        None, description="`memory` of stages that neither train nor sample; empty is the same"
    )
    rdma: dict[str, int] = Field(
        {}, description="extended resources of each pod of a stage that has several, by name"
    )
    node_selector: dict[str, str] = Field({}, description="labels of the nodes that pods need")
    tolerations: tuple[Toleration, ...] = Field((), description="taints that pods tolerate")
    topology_key: str = Field(
        "",
        pattern=rf"^({_KEY})?$",
        description="node label that all pods of one stage share, such as a rack's",
    )
    topology_nodes: int | None = Field(
        None, gt=0, description="nodes that share one value of `topology_key`; empty is not known"
    )
    priority_class: str = Field(
        "", pattern=rf"^({_DOTTED})?$", description="PriorityClass of the pods"
    )
    queue: str = Field(
        "",
        pattern=rf"^({_NAME})?$",
        description="Kueue LocalQueue in the namespace; empty is no quota",
    )
    quota: int | None = Field(
        None, gt=0, description="GPUs that the queue grants at a time; empty is not known"
    )
    max_restarts: int = Field(3, ge=0, description="failures of pods that one launch survives")
    max_preemptions: int = Field(
        20, ge=0, description="preemptions and lost nodes that one launch survives besides"
    )
    service_account: str = Field(
        "hillclimb-stage", pattern=rf"^{_DOTTED}$", description="of the pods"
    )
    secrets: tuple[Annotated[str, Field(pattern=rf"^{_DOTTED}$")], ...] = Field(
        (), description="Secrets of the namespace whose keys become environment"
    )
    env: dict[str, str] = Field({}, description="plain environment; never a secret's value")
    sandboxes: Sandboxes | None = Field(
        None, description="pods for model-written code; stages that run it refuse to begin without"
    )
    ttl_seconds: int = Field(
        86400, ge=0, description="an ended object stays so long, for whoever asks how it ended"
    )

    @property
    def draws_with(self) -> Literal["torch", "vllm"]:
        """The engine of rollout servers."""
        return self.rollout_engine or ("vllm" if self.gpus_per_node else "torch")

    def pods(self, accelerators: int) -> int:
        """The fewest pods that hold so many ranks; one where nodes have no GPUs."""
        return -(-accelerators // self.gpus_per_node) if self.gpus_per_node else 1

    def shares(self, path: str) -> bool:
        """Whether pods and orchestrator both see the absolute `path`, through a shared volume."""
        shared = [volume for volume in self.volumes if volume.claim or volume.host_path]
        return any(f"{path}/".startswith(f"{volume.mount}/") for volume in shared)


def size_bytes(size: str) -> int:
    """Bytes of a quantity such as `64Gi`, rounded up."""
    number = size.rstrip("kMGTi")
    return int(-(-Decimal(number) * _SIZES[size[len(number) :]] // 1))
