"""Recipes, requests and patience for tests of the Kubernetes launcher on the fake cluster."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_cluster import FakeCluster

from hillclimb.artifacts.fingerprint import code_version
from hillclimb.launcher import Handle, Outcome, State
from hillclimb.launcher.base import Message, handle_name
from hillclimb.launcher.kubernetes import KubernetesLauncher
from hillclimb.recipe.compute import Compute
from hillclimb.recipe.graph import CODE
from hillclimb.stages.request import Request

ROOT = Path(__file__).resolve().parent.parent.parent
TOYS = Path(__file__).parent / "toy_stages"
GATE, LAST_GATE = "gate", "last_gate"


def compute_for(folder: Path, **cluster: Any) -> Compute:
    """A recipe's compute section whose volume is `folder`."""
    path = os.pathsep.join([str(TOYS), str(ROOT)])
    section = {
        "image": "train:1", "control_image": "control:1", "runs": f"{folder}/runs",
        "volumes": [{"name": "data", "mount": str(folder), "host_path": str(folder)}],
        "gpus_per_node": 1, "env": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, **cluster,
    }  # fmt: skip
    return Compute.model_validate({"kubernetes": section})


def request_for(folder: Path, ranks: int = 1, name: str = "toy", **config: Any) -> Request:
    """A request for a toy stage; with ranks it is one that runs on GPUs."""
    fingerprint = hashlib.sha256(f"{name} {ranks} {sorted(config.items())}".encode()).hexdigest()
    kind = "base_phase" if ranks > 1 else "mixture"
    return Request(
        name=name,
        kind=kind,
        output=f"{folder}/artifacts/{name}/{fingerprint[:16]}",
        fingerprint=fingerprint,
        code_version=code_version(CODE[kind]),
        seed=0,
        inputs={},
        config={"steps": 6, **config},
        ranks=ranks,
        tracking={"experiment": "toy-seed0", "run_id": "5f0e"},
    )


def gated(folder: Path, **config: Any) -> dict[str, Any]:
    """A config whose stage waits at step 3 until `folder/gate` is there."""
    return {"at": 3, "gate": f"{folder}/{GATE}", **config}


def name_of(request: Request) -> str:
    """The name of the request's Job or JobSet."""
    return handle_name(request.name, request.fingerprint)


def open_gate(folder: Path, name: str = GATE) -> None:
    """Let the stage go on."""
    (folder / name).touch()


class Followed:
    """A stage that is followed as an orchestrator would, beat by beat."""

    def __init__(self, launcher: KubernetesLauncher, handle: Handle) -> None:
        self.launcher, self.handle = launcher, handle
        self.outcome = Outcome(State.QUEUED)
        self.told: list[Message] = []
        self._offset = 0

    def beat(self) -> Outcome:
        """One look, and the messages that came since the last."""
        self.outcome = self.launcher.poll(self.handle)
        found, self._offset = self.launcher.messages(self.handle, self._offset)
        self.told += found
        return self.outcome

    def until(self, holds: Callable[[Outcome], object], seconds: float = 60.0) -> Outcome:
        """Follow until the outcome is as wanted.

        Raises:
            AssertionError: if it is not in time.
        """
        end = time.monotonic() + seconds
        while not holds(self.beat()):
            assert time.monotonic() < end, f"it stayed {self.outcome}; told {self.told}"
            time.sleep(0.02)
        return self.outcome

    def until_ended(self) -> Outcome:
        """Follow to the end, and hear the rest."""
        outcome = self.until(lambda seen: seen.ended)
        self.beat()
        return outcome

    def until_step(self, step: int) -> None:
        """Follow until the stage has told of a step."""
        self.until(lambda _: step in self.steps)

    @property
    def steps(self) -> list[int]:
        """The steps that the stage has told of."""
        return steps_of(self.told)

    def count(self, method: str) -> int:
        """How many messages of a kind were told."""
        return sum(message["method"] == method for message in self.told)


def steps_of(told: list[Message]) -> list[int]:
    """The steps in a list of messages."""
    payloads = [(message.get("params") or {}).get("payload") or {} for message in told]
    return [payload["step"] for payload in payloads if payload.get("type") == "metrics"]


def pod_of(cluster: FakeCluster, phase: str = "Running", labels: str = "") -> str:
    """The only pod of a phase, once there is one."""

    def found() -> list[str]:
        pods = cluster.objects("Pod", labels)
        return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == phase]

    names = cluster.wait_for(found)
    assert len(names) == 1, names
    return names[0]
