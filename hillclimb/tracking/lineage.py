"""From an artifact back to the documents, through MLflow's API alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any


class LineageError(LookupError):
    """MLflow does not know the artifact; the message says what it does know."""


@dataclass
class Node:
    """One artifact and what it was made from. `seen` nodes are spelt out elsewhere in the tree."""

    asset: str
    fingerprint: str
    run_id: str | None
    model_id: str | None = None
    uri: str = ""
    roles: list[str] = field(default_factory=list)
    inputs: list[Node] = field(default_factory=list)
    seen: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values, recursively."""
        plain = {key: value for key, value in vars(self).items() if key != "inputs"}
        return {**plain, "inputs": [node.to_json() for node in self.inputs]}


def lineage(asset: str, tracking_uri: str, experiment: str | None = None) -> Node:
    """The tree of everything that `asset` was made from.

    Args:
        asset: an asset's name, such as `mai_thinking`.
        tracking_uri: the MLflow server or store.
        experiment: which experiment's; by default that of the asset's latest finished run.

    Raises:
        LineageError: if MLflow has no finished run of the asset.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    walk = _Walk(tracking_uri)
    return walk.from_run(walk.latest(asset, experiment))


class _Walk:
    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name("hillclimb")
        if found is None:
            raise LineageError(f"MLflow at {uri} has no experiment hillclimb: make something first")
        self._experiment = found.experiment_id
        self._nodes: dict[str, Node] = {}

    def latest(self, asset: str, experiment: str | None) -> Any:
        """The latest finished run of an asset."""
        wanted = f"tags.`hillclimb.asset` = '{asset}' and attributes.status = 'FINISHED'"
        if experiment:
            wanted += f" and tags.`hillclimb.experiment` = '{experiment}'"
        runs = self._search(wanted, "attributes.end_time DESC")
        if not runs:
            where = f" in {experiment}" if experiment else ""
            raise LineageError(f"MLflow has no finished run of {asset}{where}")
        return runs[0]

    def from_run(self, run: Any) -> Node:
        """The node of the artifact that a run made, and everything below it."""
        tags = run.data.tags
        fingerprint = tags["hillclimb.fingerprint"]
        if fingerprint in self._nodes:
            known = self._nodes[fingerprint]
            return Node(
                known.asset, fingerprint, known.run_id, known.model_id, known.uri, seen=True
            )
        made = [m.model_id for m in (run.outputs.model_outputs if run.outputs else [])]
        node = Node(
            tags["hillclimb.asset"],
            fingerprint,
            run.info.run_id,
            made[0] if made else None,
            tags.get("hillclimb.uri", ""),
        )
        self._nodes[fingerprint] = node
        node.inputs = self._inputs(run)
        return node

    def _inputs(self, run: Any) -> list[Node]:
        inputs = []
        for model in run.inputs.model_inputs if run.inputs else []:
            tags = self._client.get_logged_model(model.model_id).tags
            inputs.append(self._node(tags["hillclimb.asset"], tags["hillclimb.fingerprint"], []))
        for item in run.inputs.dataset_inputs if run.inputs else []:
            roles = [tag.value for tag in item.tags]
            inputs.append(self._node(item.dataset.name, item.dataset.digest, roles))
        return sorted(inputs, key=lambda node: node.asset)

    def _node(self, asset: str, fingerprint: str, roles: list[str]) -> Node:
        wanted = f"tags.`hillclimb.asset` = '{asset}' and attributes.status = 'FINISHED'"
        wanted += f" and tags.`hillclimb.fingerprint` LIKE '{fingerprint}%'"
        runs = self._search(wanted, "attributes.start_time ASC")
        node = self.from_run(runs[0]) if runs else Node(asset, fingerprint, None)
        node.roles = roles
        return node

    def _search(self, wanted: str, order: str) -> list[Any]:
        """At most one run, whole: a search leaves models out."""
        found = self._client.search_runs(
            [self._experiment], wanted, order_by=[order], max_results=1
        )
        return [self._client.get_run(run.info.run_id) for run in found]
