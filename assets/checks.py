"""Checks: what must hold of an artifact before anything is made from it, and what only warns.

They read the artifact alone, so they can be repeated at any time, on any machine, without torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import pstdev
from typing import Any

from hillclimb.artifacts import Artifact
from hillclimb.self_distillation import PERSON

BALANCE_LIMIT = 0.5
PASS_TOLERANCE = 0.02
SCANNED_CHARACTERS = 20_000_000
SHORTEST_ITEM = 8


@dataclass(frozen=True)
class Check:
    """One check's outcome and what was seen, in a sentence; one that is not `blocking` warns."""

    name: str
    passed: bool
    sentence: str
    blocking: bool


Examiner = Callable[[Artifact], tuple[bool, str]]


def declared(kind: str) -> dict[str, str]:
    """The checks of a kind, with what each is for."""
    return {name: str(examiner.__doc__) for name, examiner in _examiners(kind).items()}


def examine(artifact: Artifact) -> Iterator[Check]:
    """Run every check of the artifact's kind."""
    for name, examiner in _examiners(artifact.manifest.kind).items():
        passed, sentence = examiner(artifact)
        yield Check(name, passed, sentence, blocks(name))


def blocks(name: str) -> bool:
    """Whether nothing is made from an artifact that fails this check."""
    return name not in _WARNINGS


def digests_ok(artifact: Artifact) -> tuple[bool, str]:
    """Every file is what the manifest says."""
    report = artifact.verify()
    return not report.problems, "; ".join(report.problems) or (
        f"{report.checked} files, {report.bytes:,} bytes re-hashed"
    )


def finite_loss(artifact: Artifact) -> tuple[bool, str]:
    """Every recorded loss and gradient norm is finite."""
    rows = jsonl(artifact, "metrics.jsonl")
    keys = [key for key in ("loss", "grad_norm", "balance_loss") if rows and key in rows[0]]
    bad = [(row["step"], k) for row in rows for k in keys if not _finite(row.get(k))]
    if bad:
        return False, f"{bad[0][1]} is not finite at step {bad[0][0]} ({len(bad)} such numbers)"
    if not rows:
        return artifact.manifest.kind == "climb", "no gradient step was taken"
    return True, f"{len(rows)} steps, {', '.join(keys)} finite"


def caps_kept(artifact: Artifact) -> tuple[bool, str]:
    """No source was read more often than its cap."""
    sources = artifact.json("sources.json")
    over = [name for name, s in sources.items() if s["epochs"] > s["mixture_cap"] + 1e-9]
    most = max(sources, key=lambda name: sources[name]["epochs"] / sources[name]["mixture_cap"])
    sentence = f"{most} is nearest to its cap: {sources[most]['epochs']:.2f} epochs"
    return not over, f"over their caps: {', '.join(over)}" if over else sentence


def router_balance(artifact: Artifact) -> tuple[bool, str]:
    """In the last tenth of the steps no expert takes more than half of the tokens."""
    rows = jsonl(artifact, "metrics.jsonl")
    late = [row["router_max_share"] for row in rows[-max(1, len(rows) // 10) :]]
    share = sum(late) / len(late) if late else math.nan
    return share <= BALANCE_LIMIT, f"the busiest expert of a layer takes {share:.3f} of the tokens"


def pass_rate_not_below_start(artifact: Artifact) -> tuple[bool, str]:
    """The pass rate of the last fifth of the steps is not below the first's by more than noise."""
    rates = [float(row["pass_rate"]) for row in jsonl(artifact, "metrics.jsonl")]
    fifth = max(1, len(rates) // 5)
    if not rates:
        return True, "no gradient step was taken"
    first, last = sum(rates[:fifth]) / fifth, sum(rates[-fifth:]) / fifth
    noise = PASS_TOLERANCE + 2 * pstdev(rates) * math.sqrt(2 / fifth)
    told = f"pass rate went from {first:.3f} to {last:.3f} (noise up to {noise:.3f})"
    return last >= first - noise, told


def rollouts_graded(artifact: Artifact) -> tuple[bool, str]:
    """Graders could judge at least nine rollouts of ten."""
    rows = jsonl(artifact, "metrics.jsonl")
    share = sum(row["ungraded"] for row in rows) / len(rows) if rows else 0.0
    return share <= 0.1, f"{share:.1%} of the rollouts could not be graded"


def grades_trusted(artifact: Artifact) -> tuple[bool, str]:
    """The climb did not halt because its grades are in doubt, which waits for a person."""
    stop = artifact.manifest.summary.get("stop", {})
    told = f"{stop.get('reason', 'unknown')}: {stop.get('sentence', 'no stop is recorded')}"
    return stop.get("reason") not in PERSON, told


def _signal(signal: str, name: str, meaning: str) -> Examiner:
    """A check of one of the signals that a climb records in its summary."""

    def examiner(artifact: Artifact) -> tuple[bool, str]:
        for alarm in artifact.manifest.summary.get("alarms", []):
            if alarm["signal"] == signal and alarm["steps"]:
                steps = f"at {alarm['steps']} steps, first at {alarm['first']}"
                return False, f"{alarm['sentence']}; {steps}"
            if alarm["signal"] == signal:
                return True, str(alarm["sentence"])
        return True, "the climb recorded no such signal"

    examiner.__name__, examiner.__doc__ = name, meaning
    return examiner


_SIGNALS = (
    _signal("mismatch", "engine_matches_learner", "Engine and learner agree at every step."),
    _signal("entropy", "entropy_in_band", "The entropy stays in its band at every step."),
    _signal("truncation", "answers_fit", "Most rollouts end before their length limit."),
    _signal("reward_hack", "canaries_silent", "Hardly any rollout sets off a reward-hack canary."),
    _signal("disagreement", "judge_agrees", "Judge and verifier agree where both look."),
    _signal("gradient", "gradients_steady", "No gradient is far above the running median."),
)
_WARNINGS = {examiner.__name__ for examiner in _SIGNALS}


def disjoint_splits(artifact: Artifact) -> tuple[bool, str]:
    """No deciding feature is on both sides of the split."""
    sides = {
        side: set(_column(artifact, f"{side}.parquet", "key")) for side in ("train", "held_out")
    }
    shared = sides["train"] & sides["held_out"]
    counts = f"{len(sides['train'])} deciding features train, {len(sides['held_out'])} are held out"
    return not shared, f"{len(shared)} shared, such as {min(shared)!r}" if shared else counts


def epochs_under_cap(artifact: Artifact) -> tuple[bool, str]:
    """No source is repeated more often than its cap allows."""
    sources = artifact.json("mixture.json")["sources"]
    over = [n for n, s in sorted(sources.items()) if s["epochs"] > s["epoch_cap"] * 1.001]
    most = max((s["epochs"] for s in sources.values()), default=0.0)
    return not over, f"over the cap: {', '.join(over)}" if over else f"at most {most:.2f} epochs"


def no_contamination_left(artifact: Artifact) -> tuple[bool, str]:
    """No document holds the words of a held-out problem, in the first 20 M characters."""
    items = _held_out_words(artifact)
    scanned = documents = 0
    for path in _parts(artifact, "documents-"):
        for text in _column(artifact, path, "text"):
            if hit := _contains(str(text).lower().split(), items):
                return False, f"a document of {path} holds the held-out problem {hit!r}"
            documents, scanned = documents + 1, scanned + len(str(text))
            if scanned > SCANNED_CHARACTERS:
                break
    known = sum(map(len, items.values()))
    return True, f"{documents} documents scanned for {known} held-out problems"


def some_traces(artifact: Artifact) -> tuple[bool, str]:
    """There is something to learn from."""
    count = len(list(_column(artifact, "traces.parquet", "problem_id")))
    return count > 0, f"{count} traces"


def every_model_scored(artifact: Artifact) -> tuple[bool, str]:
    """Every checkpoint has a score between 0 and 1 on every domain."""
    scores = artifact.json("scorecard.json")
    domains = sorted({domain for row in scores.values() for domain in row})
    bad = [
        f"{model} on {domain}"
        for model, row in sorted(scores.items())
        for domain in domains
        if not _scored(row.get(domain, {}))
    ]
    told = f"{len(scores)} models on {', '.join(domains)}"
    return not bad and bool(scores), f"no score for {', '.join(bad)}" if bad else told


_BY_KIND: dict[str, tuple[Examiner, ...]] = {
    "problems": (disjoint_splits,),
    "filtered_corpus": (no_contamination_left,),
    "mixture": (epochs_under_cap,),
    "base_phase": (finite_loss, router_balance, caps_kept),
    "climb": (
        finite_loss,
        pass_rate_not_below_start,
        rollouts_graded,
        grades_trusted,
        *_SIGNALS,
    ),
    "traces": (some_traces,),
    "student": (finite_loss,),
    "consolidation": (finite_loss,),
    "scorecard": (every_model_scored,),
}


def _examiners(kind: str) -> dict[str, Examiner]:
    return {f.__name__: f for f in (digests_ok, *_BY_KIND.get(kind, ()))}


def jsonl(artifact: Artifact, path: str) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in artifact.read_text(path).splitlines() if line.strip()]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _scored(score: dict[str, Any]) -> bool:
    return score.get("n", 0) > 0 and all(0 <= score[key] <= 1 for key in ("pass_at_1", "greedy"))


def _parts(artifact: Artifact, prefix: str) -> list[str]:
    return sorted(e.path for e in artifact.manifest.files if e.path.startswith(prefix))


def _column(artifact: Artifact, path: str, column: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with artifact.fs.open(artifact.path(path), "rb") as stream:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=4096, columns=[column]):
            yield from batch.column(0).to_pylist()


def _held_out_words(artifact: Artifact) -> dict[tuple[str, ...], list[list[str]]]:
    """Held-out questions as words, by their first eight; shorter ones say nothing."""
    items: dict[tuple[str, ...], list[list[str]]] = {}
    for _, source in sorted(artifact.manifest.inputs.items()):
        problems = Artifact(source.uri)
        if problems.manifest.kind != "problems":
            continue
        for question in _column(problems, "held_out.parquet", "question"):
            words = str(question).lower().split()
            if len(words) >= SHORTEST_ITEM:
                items.setdefault(tuple(words[:SHORTEST_ITEM]), []).append(words)
    return items


def _contains(words: list[str], items: dict[tuple[str, ...], list[list[str]]]) -> str | None:
    firsts = {head[0] for head in items}
    for start, word in enumerate(words):
        if word not in firsts:
            continue
        for item in items.get(tuple(words[start : start + SHORTEST_ITEM]), []):
            if words[start : start + len(item)] == item:
                return " ".join(item)
    return None
