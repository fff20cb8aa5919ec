"""What a launcher adds to a stage: `python benchmarks/launcher.py`.

The same small stage is made through the local launcher and through that for Kubernetes, in turns;
the cluster is the tests' API on loopback, whose pods are processes of this machine. So the numbers
hold the launchers' own requests, looks and pauses, and not a cluster's network and load.

submit: until the stage is asked for. notice: from the stage's last message until its follower
knows that it has ended, process and all. read: its messages and its manifest. begin is not the
launcher's: from asked for to at work, a fork of a warm interpreter there, here a pod with a fresh
one.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "kubernetes"))

from fake_cluster import FakeCluster

from hillclimb.artifacts import Artifact
from hillclimb.artifacts.fingerprint import code_version
from hillclimb.assets.launching import TailReader, follow
from hillclimb.launcher import Launcher, LocalLauncher, State
from hillclimb.launcher.kubernetes import KubernetesLauncher
from hillclimb.recipe.compute import Compute
from hillclimb.recipe.graph import CODE
from hillclimb.stages.request import Request

STAGES = 10
KIND = "ai_text_detector"
PARTS = ("submit", "notice", "read")


class Silent:
    """A run's log that is not kept."""

    def state(self, outcome: object) -> None:
        """Say nothing."""

    attempt = messages = state


def main() -> None:
    """Print the medians and the ratio."""
    with tempfile.TemporaryDirectory() as folder, FakeCluster(Path(folder) / "cluster") as cluster:
        local = LocalLauncher(Path(folder) / "runs")
        launchers: dict[str, Launcher] = {
            "local": local,
            "kubernetes": KubernetesLauncher(section(folder), cluster.configuration()),
        }
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in launchers}
        for index in range(STAGES + 1):
            for name, launcher in launchers.items():
                seen[name].append(measured(launcher, request(folder, f"{name}-{index}")))
        local.close()
    show({name: rows[1:] for name, rows in seen.items()})


def section(folder: str) -> Compute:
    """A cluster whose pods see the folder."""
    volume = {"name": "data", "mount": folder, "host_path": folder}
    cluster = {
        "image": "training:1", "control_image": "control:1", "runs": f"{folder}/messages",
        "volumes": [volume], "gpus_per_node": 0,
    }  # fmt: skip
    return Compute.model_validate({"kubernetes": cluster})


def request(folder: str, name: str) -> Request:
    """A stage that does next to nothing."""
    print_ = hashlib.sha256(name.encode()).hexdigest()
    return Request(
        name=name, kind=KIND, output=f"{folder}/artifacts/{name}", fingerprint=print_,
        code_version=code_version(CODE[KIND]), seed=None, inputs={}, config={},
    )  # fmt: skip


def measured(launcher: Launcher, asked: Request) -> dict[str, float]:
    """Seconds of each part for one stage."""
    began = time.time()
    handle = launcher.submit(asked)
    submitted = time.time()
    outcome = follow(launcher, handle, TailReader(launcher, handle), Silent())
    noticed = time.time()
    assert outcome.state is State.DONE, outcome
    launcher.messages(handle, 0)
    made = Artifact(asked.output)
    read = time.time()
    at_work = (Path(asked.output) / "manifest.json").stat().st_mtime - made.manifest.run["seconds"]
    last_word = (Path(handle.where) / "messages.jsonl").stat().st_mtime
    return {
        "submit": submitted - began,
        "begin": at_work - submitted,
        "notice": noticed - last_word,
        "read": read - noticed,
    }


def show(seen: dict[str, list[dict[str, float]]]) -> None:
    """A row a launcher, in milliseconds."""
    print(f"{STAGES} stages each, one after the other; medians in ms")
    print(f"{'':12}" + "".join(f"{part:>10}" for part in (*PARTS, "together", "(begin)")))
    totals = {}
    for name, rows in seen.items():
        medians = {part: statistics.median(row[part] for row in rows) for part in rows[0]}
        totals[name] = sum(medians[part] for part in PARTS)
        shown = (*(medians[part] for part in PARTS), totals[name], medians["begin"])
        print(f"{name:12}" + "".join(f"{1000 * value:10.1f}" for value in shown))
    print(f"ratio: {totals['kubernetes'] / totals['local']:.2f}x")


if __name__ == "__main__":
    main()
