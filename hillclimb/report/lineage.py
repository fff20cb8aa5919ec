"""Every stage with its identity: what it was made from, with which config, into which files."""

from __future__ import annotations

import json
from typing import Any

from hillclimb.report.experiment import Experiment
from hillclimb.report.markup import (
    Markup,
    anchor,
    count,
    duration,
    join,
    size,
    stage_link,
    table,
)


def section(experiment: Experiment) -> Markup:
    """One folding row a stage, inputs first."""
    return Markup('<div class="lineage">{}</div>').format(
        join(_stage(experiment, name) for name in experiment.specs)
    )


def _stage(experiment: Experiment, name: str) -> Markup:
    artifact = experiment.made.get(name)
    state = "made" if artifact else "not made yet"
    spec = experiment.specs[name]
    head = Markup(
        '<span class="state {}" title="{}"></span><code>{}</code>'
        '<span class="kind">{}</span><code class="print">{}</code><span class="sr">{}</span>'
    ).format(
        "made" if artifact else "todo",
        state,
        name,
        spec.kind.replace("_", " "),
        experiment.fingerprints[name][:16],
        state,
    )
    body = _inputs(experiment, name)
    body += (
        _made(experiment, name)
        if artifact
        else Markup("<p class=pending>{}</p>").format(
            "Not made yet; this is the fingerprint that it will have."
        )
    )
    body += _json("Config", spec.config)
    return Markup('<details id="{}"><summary>{}</summary><div>{}</div></details>').format(
        anchor(name), head, body
    )


def _inputs(experiment: Experiment, name: str) -> Markup:
    spec = experiment.specs[name]
    rows = [
        [role, stage_link(source), Markup("<code>{}</code>").format(
            experiment.fingerprints[source][:16])]
        for role, source in spec.inputs.items()
    ]  # fmt: skip
    facts = Markup("<p>Fingerprint <code class=whole>{}</code>{}</p>").format(
        experiment.fingerprints[name], "" if spec.seed is None else f", seed {spec.seed}"
    )
    return facts + (table(["role", "made from", "fingerprint"], rows, f"Inputs of {name}", 3)
                    if rows else Markup("<p>Made from nothing but its config.</p>"))  # fmt: skip


def _made(experiment: Experiment, name: str) -> Markup:
    manifest = experiment.made[name].manifest
    files = [[f.path, size(f.bytes), Markup("<code>{}</code>").format(f.sha256[:16])]
             for f in manifest.files]  # fmt: skip
    metrics = [[key, f"{value:.6g}"] for key, value in sorted(manifest.metrics.items())]
    body = Markup("<p>{} in {} files, {}, code <code>{}</code></p>").format(
        size(sum(f.bytes for f in manifest.files)), count(len(files)),
        duration(manifest.run.get("seconds")), manifest.code_version,
    )  # fmt: skip
    if metrics:
        body += table(["metric", "value"], metrics, f"Metrics of {name}")
    if files:
        body += table(["file", "size", "sha256"], files[:200], f"Files of {name}")
    return body + (_json("Summary", manifest.summary) if manifest.summary else Markup(""))


def _json(title: str, value: Any) -> Markup:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    return Markup("<details><summary>{}</summary><pre>{}</pre></details>").format(title, text)
