"""The model card: what the final model is, from what, how good, at what cost, and its limits."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow.parquet as pq
from safetensors import safe_open

from hillclimb.artifacts import Artifact, ArtifactError, InputRef
from hillclimb.recipe.model import ModelRecipe
from hillclimb.scaling.counts import count_parameters
from hillclimb.stages.card_text import card_text
from hillclimb.stages.context import Context

SMALL_MODEL = 1_000_000_000
CORPUS_COLUMNS = ["source", "licence", "category", "provenance"]


def make_model_card(context: Context) -> None:
    """Walk from the scorecard, the model and the corpus to every source, and write it down."""
    found = walk([context.input(role) for role in sorted(context.request.inputs)])
    model = context.input("model")
    card = {
        "recipe": context.config["recipe"],
        "seed": context.request.seed,
        "model": describe_model(model, found),
        "lineage": [_lineage(artifact) for artifact in found.values()],
        "data": describe_data(context.input("corpus"), found),
        "training": {
            name: artifact.manifest.config
            for name, artifact in found.items()
            if artifact.manifest.kind in ("base_phase", "climb", "student", "consolidation")
        },
        "scores": context.input("scorecard").json("scorecard.json"),
        "cost": describe_cost(found),
    }
    card["limits"] = limits(card)
    context.out.write_json("card.json", card)
    context.out.write_text("MODEL_CARD.md", card_text(card))
    context.commit(
        {
            "artifacts": len(found),
            "parameters": card["model"]["parameters"]["total"],
            "seconds": card["cost"]["seconds"],
        },
        {"recipe": card["recipe"], "limits": card["limits"]},
    )


def walk(ends: list[Artifact]) -> dict[str, Artifact]:
    """Every artifact that `ends` were made from, and they themselves, inputs first.

    Raises:
        ArtifactError: if an artifact is not the one that its user was made from.
    """
    found: dict[str, Artifact] = {}
    for end in ends:
        _visit(end, found)
    return found


def _visit(artifact: Artifact, found: dict[str, Artifact]) -> None:
    if artifact.manifest.name in found:
        return
    for _, ref in sorted(artifact.manifest.inputs.items()):
        if ref.name not in found:
            _visit(_open(ref, artifact), found)
    found[artifact.manifest.name] = artifact


def _open(ref: InputRef, user: Artifact) -> Artifact:
    artifact = Artifact(ref.uri)
    if artifact.fingerprint != ref.fingerprint:
        raise ArtifactError(
            f"{ref.uri} has the fingerprint {artifact.fingerprint[:12]}, but "
            f"{user.manifest.name} was made from {ref.fingerprint[:12]}: make it again"
        )
    return artifact


def _lineage(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "name": manifest.name,
        "kind": manifest.kind,
        "fingerprint": manifest.fingerprint,
        "code_version": manifest.code_version,
        "seed": manifest.seed,
        "inputs": {role: ref.name for role, ref in sorted(manifest.inputs.items())},
        "metrics": dict(sorted(manifest.metrics.items())),
    }


def describe_model(model: Artifact, found: dict[str, Artifact]) -> dict[str, Any]:
    """Name, identity, shape and size; the total is counted in the weights themselves."""
    phases = _of_kind(found, "base_phase")
    shape = next(p.manifest.config["model"] for p in phases if "model" in p.manifest.config)
    with safe_open(model.local("model/model.safetensors"), framework="np") as weights:
        sizes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    total = sum(_product(size) for size in sizes)
    counted = count_parameters(ModelRecipe.model_validate(shape), 1)
    return {
        "name": model.manifest.name,
        "fingerprint": model.fingerprint,
        "parameters": {
            "total": total,
            "active": total - counted.experts + counted.active_experts,
        },
        "architecture": shape,
        "vocabulary": int(found["tokenizer"].manifest.metrics["vocab_size"]),
        "sequence_lengths": {
            phase.manifest.name: phase.manifest.config["phase"]["sequence_length"]
            for phase in phases
        },
    }


def describe_data(corpus: Artifact, found: dict[str, Artifact]) -> dict[str, Any]:
    """Sources with their licences and counts, the filters' steps, and the mixtures."""
    funnel = corpus.json("funnel.json")
    declared = found["raw_documents"].manifest.config["corpus"]["sources"]
    licences, generated = _corpus_counts(corpus)
    sources = [
        {
            "name": source["name"],
            "category": source["category"],
            "licences": dict(sorted(licences.get(source["name"], {}).items())),
            "generated": generated[source["name"]],
            "read": funnel["read"].get(source["name"], {}).get("documents", 0),
            "kept": funnel["kept"].get(source["name"], {}).get("documents", 0),
        }
        for source in declared
    ]
    return {
        "sources": sources,
        "steps": [
            {key: step[key] for key in ("name", "kept", "dropped", "reasons")}
            for step in funnel["steps"]
        ],
        "quarantined": funnel["quarantined"],
        "mixtures": {
            mixture.manifest.name: mixture.json("mixture.json")["sources"]
            for mixture in _of_kind(found, "mixture")
        },
        "problems": {
            problems.manifest.name: dict(sorted(problems.manifest.metrics.items()))
            for problems in _of_kind(found, "problems")
        },
    }


def _corpus_counts(corpus: Artifact) -> tuple[dict[str, Counter[str]], Counter[str]]:
    """Licences by source, and how many documents of each source a rule made."""
    licences: dict[str, Counter[str]] = {}
    generated: Counter[str] = Counter()
    for entry in corpus.manifest.files:
        if not entry.path.startswith("documents") or not entry.path.endswith(".parquet"):
            continue
        with corpus.fs.open(corpus.path(entry.path), "rb") as stream:
            for batch in pq.ParquetFile(stream).iter_batches(columns=CORPUS_COLUMNS):
                for row in batch.to_pylist():
                    licences.setdefault(row["source"], Counter())[row["licence"]] += 1
                    generated[row["source"]] += bool(json.loads(row["provenance"])["generated"])
    return licences, generated


def describe_cost(found: dict[str, Artifact]) -> dict[str, Any]:
    """Seconds, processes and tokens by stage."""
    stages: list[dict[str, Any]] = []
    for name, artifact in found.items():
        run = artifact.manifest.run
        seconds, ranks = float(run.get("seconds", 0.0)), int(run.get("ranks", 1))
        stages.append({"name": name, "seconds": seconds, "ranks": ranks,
                       "process_hours": round(seconds * ranks / 3600, 4),
                       "tokens": _tokens(artifact)})  # fmt: skip
    return {
        "stages": stages,
        "seconds": round(sum(stage["seconds"] for stage in stages), 3),
        "process_hours": round(sum(stage["process_hours"] for stage in stages), 4),
        "tokens": sum(stage["tokens"] for stage in stages),
    }


def _tokens(artifact: Artifact) -> int:
    """Tokens trained on, or sampled and learned by a climb."""
    kind, metrics = artifact.manifest.kind, artifact.manifest.metrics
    if kind == "climb":
        return int(metrics["sampled_tokens"] + metrics["learned_tokens"])
    return int(metrics["tokens"]) if kind in ("base_phase", "student", "consolidation") else 0


def limits(card: dict[str, Any]) -> list[str]:
    """Sentences on what the model cannot be expected to do, from what it was made of."""
    model, data = card["model"], card["data"]
    kinds = sorted({kind for c in card["training"].values() for kind in c.get("shares", {})})
    out = [
        "The scores are pass rates on held-out problems of the kinds that the climbs trained on "
        f"({', '.join(kinds)}). They say nothing about other tasks.",
        "The problems are made by rule and their graders check answers, files and forms, not "
        "quality; helpfulness and safety are judged by rules, not by people.",
        "Nothing was done about memorised personal data, bias or misuse beyond the corpus filters "
        "listed above.",
    ]
    if model["parameters"]["total"] < SMALL_MODEL:
        lengths = ", ".join(f"{n}: {length}" for n, length in model["sequence_lengths"].items())
        out.append(
            f"This is a toy: {model['parameters']['total']:,} parameters. The algorithm is whole, "
            f"the sizes are not. The phases are named after the full recipe's sequence lengths; "
            f"here they are, in tokens, {lengths}."
        )
    made = sum(int(source["generated"]) for source in data["sources"])
    if made:
        out.append(
            f"{made:,} documents of the corpus are worksheets generated by rule, which show the "
            "formats of the tasks; all others are as their sources gave them."
        )
    return out


def _of_kind(found: dict[str, Artifact], kind: str) -> list[Artifact]:
    return [artifact for artifact in found.values() if artifact.manifest.kind == kind]


def _product(shape: list[int]) -> int:
    out = 1
    for size in shape:
        out *= size
    return out
