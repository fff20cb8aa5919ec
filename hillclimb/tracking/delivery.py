"""Records into MLflow: runs, metrics, datasets, models and the edges between them.

Everything here can be done twice with the result of once: runs and models are found by their
tags before they are made, metrics carry the time at which they were measured, edges are looked
up first. So a sender that dies between a delivery and its ledger does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_MODEL_IS_EXTERNAL,
    MLFLOW_PARENT_RUN_ID,
)

from hillclimb.tracking.outbox import Outbox, Record, RunKey
from hillclimb.tracking.sending import redact

EXPERIMENT = "hillclimb"
_REFUSALS = {
    ErrorCode.Name(c) for c in (INVALID_PARAMETER_VALUE, INVALID_STATE, RESOURCE_DOES_NOT_EXIST)
}
_BATCH = 1000
_PARAMS = 100


def deliver(outbox: Outbox, uri: str) -> tuple[str, int]:
    """Send what the server at `uri` lacks, in order.

    Returns:
        The sentence of the error that stopped it ("" when all went), and how many records the
        server refused for good; those are kept in `rejected.jsonl` with the reason.
    """
    ledger, rejected = outbox.ledger(uri), 0
    try:
        target = MlflowTarget(uri, outbox.root)
        for batch in _batches(outbox, uri):
            try:
                target.apply([record for _, _, record in batch])
            except MlflowException as error:
                if error.error_code not in _REFUSALS:
                    raise
                rejected += len(batch)
                _reject(outbox, batch, error)
            ledger |= {name: offset for name, offset, _ in batch}
            outbox.settle(uri, ledger)
    except Exception as error:  # whatever keeps the server away must not end the sender
        return redact(f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"), rejected
    return "", rejected


Item = tuple[str, int, Record]


def _batches(outbox: Outbox, uri: str) -> Iterator[list[Item]]:
    """Neighbouring metrics of one run together, everything else one by one."""

    def together(item: Item) -> Any:
        name, offset, record = item
        return name if record["type"] == "metrics" else (name, offset)

    for _, group in groupby(outbox.undelivered(uri), key=together):
        yield list(group)


def _reject(outbox: Outbox, batch: list[Item], error: Exception) -> None:
    with open(outbox.folder / "rejected.jsonl", "a") as stream:
        for name, _, record in batch:
            row = {"file": name, "reason": redact(str(error)), "record": record}
            stream.write(json.dumps(row) + "\n")


class MlflowTarget:
    """One tracking server as records see it."""

    def __init__(self, uri: str, root: Path) -> None:
        self._client = MlflowClient(tracking_uri=uri)
        self._experiment = self._find_experiment(root if uri.startswith("sqlite") else None)
        self._runs: dict[str, str] = {}
        self._models: dict[str, str] = {}

    def apply(self, records: list[Record]) -> None:
        """Bring one record, or many `metrics` of one run, into MLflow."""
        key = RunKey(**records[0]["run"])
        if records[0]["type"] == "metrics":
            self._metrics(key, records)
        elif records[0]["type"] == "start":
            self._start(key, records[0])
        else:
            self._end(key, records[0])

    def _find_experiment(self, root: Path | None) -> str:
        if found := self._client.get_experiment_by_name(EXPERIMENT):
            return str(found.experiment_id)
        location = f"file://{root}/mlartifacts" if root else None
        try:
            return str(self._client.create_experiment(EXPERIMENT, artifact_location=location))
        except MlflowException as error:
            found = self._client.get_experiment_by_name(EXPERIMENT)
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS) or found is None:
                raise
            return str(found.experiment_id)

    def _run(self, tag: str, name: str, at: float, tags: dict[str, str]) -> str:
        if tag not in self._runs:
            quoted = tag.replace("'", "")
            found = self._client.search_runs(
                [self._experiment], f"tags.`hillclimb.run` = '{quoted}'", max_results=1
            )
            self._runs[tag] = (
                found[0].info.run_id
                if found
                else self._client.create_run(
                    self._experiment, int(at * 1000), {"hillclimb.run": quoted, **tags}, name
                ).info.run_id
            )
        return self._runs[tag]

    def _child(self, key: RunKey, at: float) -> str:
        tags = {"hillclimb.experiment": key.experiment}
        parent = self._run(f"experiment:{key.experiment}", key.experiment, at, tags)
        tags |= {
            MLFLOW_PARENT_RUN_ID: parent,
            "hillclimb.asset": key.asset,
            "hillclimb.fingerprint": key.fingerprint,
        }
        return self._run(key.id, key.asset, at, tags)

    def _start(self, key: RunKey, record: Record) -> None:
        run = self._child(key, record["at"])
        self._client.update_run(run, status="RUNNING")
        params = [Param(k, str(v)[:5000]) for k, v in sorted(record["params"].items())]
        for i in range(0, len(params), _PARAMS):
            self._client.log_batch(run, params=params[i : i + _PARAMS])
        tags = [RunTag(k, str(v)) for k, v in record["tags"].items()]
        self._client.log_batch(run, tags=tags)
        parent = self._runs[f"experiment:{key.experiment}"]
        shared = [t for t in tags if t.key in ("hillclimb.recipe", "hillclimb.seed")]
        self._client.log_batch(parent, tags=shared)
        self._client.update_run(parent, status="RUNNING")

    def _metrics(self, key: RunKey, records: list[Record]) -> None:
        run = self._child(key, records[0]["at"])
        values = [
            Metric(name, value, int(record["at"] * 1000), record["step"])
            for record in records
            for name, value in sorted(record["values"].items())
        ]
        for i in range(0, len(values), _BATCH):
            self._client.log_batch(run, metrics=values[i : i + _BATCH])

    def _end(self, key: RunKey, record: Record) -> None:
        run, at = self._child(key, record["at"]), int(record["at"] * 1000)
        model = self._produce(run, key, record) if record.get("is_model") else None
        self._consume(run, record.get("inputs", []))
        values = [
            Metric(f"final/{name}", value, at, 0, model_id=model)
            for name, value in sorted(record.get("metrics", {}).items())
        ]
        for i in range(0, len(values), _BATCH):
            self._client.log_batch(run, metrics=values[i : i + _BATCH])
        if record.get("uri"):
            self._client.set_tag(run, "hillclimb.uri", record["uri"])
        if record.get("reason"):
            self._client.set_tag(run, "hillclimb.reason", record["reason"])
        self._client.set_terminated(run, record["status"], at)
        parent = self._runs[f"experiment:{key.experiment}"]
        self._client.set_terminated(parent, record["status"], at)

    def _produce(self, run: str, key: RunKey, record: Record) -> str:
        model = self._model(key.asset, key.fingerprint, record["uri"], run)
        known = self._client.get_run(run).outputs
        if model not in {m.model_id for m in (known.model_outputs if known else [])}:
            self._client.log_outputs(run, [LoggedModelOutput(model, 0)])
        return model

    def _consume(self, run: str, inputs: list[dict[str, Any]]) -> None:
        datasets, models = [], []
        for item in inputs:
            if item["is_model"]:
                model = self._model(item["name"], item["fingerprint"], item["uri"], None)
                models.append(model)
            else:
                datasets.append(_dataset(item))
        known = self._client.get_run(run).inputs
        seen = {m.model_id for m in (known.model_inputs if known else [])}
        fresh = [LoggedModelInput(m) for m in models if m not in seen]
        self._client.log_inputs(run, datasets=datasets, models=fresh)
        if models:
            self._client.set_tag(run, "hillclimb.parent_model_id", models[0])

    def _model(self, name: str, fingerprint: str, uri: str, run: str | None) -> str:
        if fingerprint not in self._models:
            found = self._client.search_logged_models(
                [self._experiment], f"tags.`hillclimb.fingerprint` = '{fingerprint}'", max_results=1
            )
            self._models[fingerprint] = (
                found[0].model_id if found else self._make_model(name, fingerprint, uri, run)
            )
        return self._models[fingerprint]

    def _make_model(self, name: str, fingerprint: str, uri: str, run: str | None) -> str:
        tags = {
            "hillclimb.asset": name,
            "hillclimb.fingerprint": fingerprint,
            "hillclimb.uri": uri,
            MLFLOW_MODEL_IS_EXTERNAL: "true",
        }
        made = self._client.create_logged_model(
            self._experiment, name.replace("/", "-"), run, tags, {"uri": uri}, "causal-lm"
        )
        self._client.finalize_logged_model(made.model_id, "READY")
        return str(made.model_id)


def _dataset(item: dict[str, Any]) -> DatasetInput:
    source = json.dumps({"uri": item["uri"], "fingerprint": item["fingerprint"]})
    dataset = Dataset(item["name"], item["fingerprint"][:32], "hillclimb", source)
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, item["role"])])
