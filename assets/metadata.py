"""What the Dagster UI shows of an artifact: numbers, sizes, links and small curves."""

from __future__ import annotations

import base64
import math
from typing import Any
from xml.sax.saxutils import escape

import dagster as dg

from hillclimb.artifacts import Artifact
from hillclimb.assets.checks import jsonl
from hillclimb.assets.tracked import git_commit
from hillclimb.experiments import Plan

Value = dg.MetadataValue[Any]

CURVES = {
    "base_phase": ("loss", "learning_rate", "grad_norm", "router_max_share"),
    "student": ("loss", "grad_norm"),
    "consolidation": ("loss", "grad_norm"),
    "climb": ("pass_rate", "entropy", "k", "response_tokens", "mismatch", "trust_clip_share"),
}
_WIDTH, _HEIGHT = 260, 90


def describe(artifact: Artifact, plan: Plan, made_before: bool, link: str) -> dict[str, Value]:
    """Metadata of a materialisation."""
    manifest = artifact.manifest
    shown: dict[str, Value] = {
        "already made": dg.MetadataValue.bool(made_before),
        "artifact": dg.MetadataValue.path(artifact.uri),
        "files": dg.MetadataValue.int(len(manifest.files)),
        "bytes": dg.MetadataValue.int(sum(entry.bytes for entry in manifest.files)),
        "seconds": dg.MetadataValue.float(float(manifest.run.get("seconds", 0.0))),
        "fingerprint": dg.MetadataValue.text(manifest.fingerprint),
        "stage code": dg.MetadataValue.text(manifest.code_version),
        "recipe": dg.MetadataValue.text(plan.recipe.name),
        "MLflow": dg.MetadataValue.url(link),
    }
    if commit := git_commit():
        shown["git commit"] = dg.MetadataValue.text(commit)
    if manifest.seed is not None:
        shown["seed"] = dg.MetadataValue.int(manifest.seed)
    for name, value in sorted(manifest.metrics.items()):
        shown[name] = dg.MetadataValue.float(value)
    return shown | _documents(artifact)


def _documents(artifact: Artifact) -> dict[str, Value]:
    kind = artifact.manifest.kind
    if kind in CURVES:
        return {"curves": dg.MetadataValue.md(_curves(artifact, CURVES[kind]))}
    if kind == "filtered_corpus":
        return {"funnel": dg.MetadataValue.md(_funnel(artifact.json("funnel.json")))}
    if kind == "mixture":
        return {"mixture": dg.MetadataValue.md(_mixture(artifact.json("mixture.json")))}
    if kind == "scorecard":
        return {"scores": dg.MetadataValue.md(_scores(artifact.json("scorecard.json")))}
    if kind == "model_card":
        return {"card": dg.MetadataValue.md(artifact.read_text("MODEL_CARD.md"))}
    return {}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _funnel(steps: Any) -> str:
    rows = steps["steps"] if isinstance(steps, dict) else steps
    return table(
        ["step", "kept", "dropped"], [[s["name"], str(s["kept"]), str(s["dropped"])] for s in rows]
    )


def _mixture(mixture: dict[str, Any]) -> str:
    return table(
        ["source", "category", "tokens", "epochs", "cap"],
        [
            [
                name,
                s["category"],
                str(s["tokens_used"]),
                f"{s['epochs']:.2f}",
                f"{s['epoch_cap']:g}",
            ]
            for name, s in sorted(mixture["sources"].items())
        ],
    )


def _scores(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    domains = sorted({domain for row in scores.values() for domain in row})
    rows = [
        [
            model,
            *(f"{row[d]['pass_at_1']:.3f} / {row[d]['greedy']:.3f}" for d in domains if d in row),
        ]
        for model, row in scores.items()
    ]
    return table(["sampled / greedy", *domains], rows)


def _curves(artifact: Artifact, keys: tuple[str, ...]) -> str:
    rows = jsonl(artifact, "metrics.jsonl")
    pictures = [
        picture(key, [float(row[key]) for row in rows if isinstance(row.get(key), int | float)])
        for key in keys
    ]
    return "\n".join(text for text in pictures if text)


def picture(name: str, values: list[float]) -> str:
    """A small line chart as a Markdown image that carries its own data; nothing for no values."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    span, across = (high - low) or 1.0, max(1, len(values) - 1)
    places = [
        (6 + i / across * (_WIDTH - 12), _HEIGHT - 8 - (v - low) / span * (_HEIGHT - 34))
        for i, v in enumerate(values)
        if math.isfinite(v)
    ]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    label = f"{name}: {values[0]:.4g} to {values[-1]:.4g}"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}">'
        f'<rect width="100%" height="100%" fill="#fff" stroke="#ccc"/>'
        f'<text x="8" y="16" font-family="sans-serif" font-size="12">{escape(label)}</text>'
        f'<polyline points="{points}" fill="none" stroke="#1a56b0" stroke-width="1.5"/></svg>'
    )
    return f"![{label}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
