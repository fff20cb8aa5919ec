"""Makes the embedded AI-text scorer: weights, calibration and card, from labelled texts.

    python scripts/train_ai_text_scorer.py PAIRS.jsonl.gz [--human docs=FILE.jsonl.gz:KIND ...]

PAIRS rows hold `text`, `label` (human or ai), `model`, `domain`, `pair` (what text and answer
share), `src` and `rights`. `--human` adds human-written documents of a domain of their own: rows
with `text`, `repo`, `path`, `licence` and `kind`, of which those of KIND are taken; markup is
turned into text.

Pairs are split by the digest of `pair` into train (60%), calibration (20%) and test (20%), so that
nothing of one prompt or document is on two sides. No text is kept: only hashed weights, scores of
calibration texts, and counts.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from hillclimb.corpus.ai_text import (
    MAX_WINDOWS,
    TABLE_BITS,
    WINDOW,
    HashedNgramScorer,
    features,
    threshold,
    windows,
)
from hillclimb.corpus.extraction import html_to_text, normalise

DATA = Path(__file__).resolve().parents[1] / "hillclimb" / "corpus" / "data"
ALLOWED_RIGHTS = re.compile(
    r"(MIT|Apache-2\.0|CC-BY(-[34]\.0)?|CC0(-1\.0)?|PD|public[ -]domain(-US)?)(?![\w-])"
)
AI_HALF_ONLY = "AI half MIT"
PROMPT_WORDS = 30
HUMAN_CHARS = (600, 4000)
RATES = (0.005, 0.01, 0.02, 0.05)
Part = Literal["train", "calibration", "test"]


@dataclass(frozen=True)
class Example:
    """One labelled text."""

    text: str
    ai: bool
    domain: str
    pair: str
    source: str
    rights: str
    model: str


def part_of(pair: str) -> Part:
    """Which part of the split a pair is in."""
    tenth = int.from_bytes(hashlib.blake2b(pair.encode(), digest_size=8).digest(), "big") % 10
    return "train" if tenth < 6 else "calibration" if tenth < 8 else "test"


def usable(rights: str, ai: bool) -> bool:
    """Whether the rights of a row allow to fit weights on it.

    Where only the model's half of a set is free, the human half is left out.
    """
    if rights.startswith(AI_HALF_ONLY):
        return ai
    return ALLOWED_RIGHTS.match(rights) is not None


def read_pairs(path: Path) -> Iterator[Example]:
    """Labelled rows whose rights allow it.

    Continuations by language models begin with the human words that they continue: those, about
    30, are cut off.
    """
    for row in _rows(path):
        ai = row["label"] == "ai"
        if not usable(row["rights"], ai):
            continue
        text = row["text"]
        if ai and row["src"] == "fast-detect-gpt" and row["domain"] != "pubmed":
            text = " ".join(text.split()[PROMPT_WORDS:])
        if len(text) >= 120:
            yield Example(
                text, ai, row["domain"], row["pair"], row["src"], row["rights"], row["model"] or ""
            )


def read_human(spec: str) -> Iterator[Example]:
    """Documents of `domain=FILE:KIND`, one stretch each, taken from inside the document."""
    domain, _, rest = spec.partition("=")
    path, _, kind = rest.rpartition(":")
    least, most = HUMAN_CHARS
    for row in _rows(Path(path)):
        english = row.get("lang", "en") == "en"
        if row["kind"] != kind or not english or not usable(row["licence"], False):
            continue
        markup = row["text"].lstrip("\ufeff \n")[:1] == "<"
        text = normalise(html_to_text(row["text"]) if markup else row["text"])
        inside = text[min(len(text) // 4, 2000) :][:most]
        if len(inside) >= least:
            pair = f"{row['repo']}:{row['path']}"
            owner = row["repo"].split("/")[0]
            yield Example(inside, False, domain, pair, owner, row["licence"], "")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def design(texts: Iterable[str]) -> tuple[csr_matrix, NDArray[np.intp]]:
    """Features of every window of every text, and which text each row belongs to."""
    indices, values, starts, owners = [], [], [0], []
    for owner, text in enumerate(texts):
        for window in windows(text):
            buckets, weights = features(window)
            indices.append(buckets)
            values.append(weights)
            starts.append(starts[-1] + len(buckets))
            owners.append(owner)
    matrix = csr_matrix(
        (np.concatenate(values), np.concatenate(indices), starts),
        shape=(len(owners), 1 << TABLE_BITS),
    )
    return matrix, np.array(owners)


def fit(examples: list[Example], strength: float) -> HashedNgramScorer:
    """A logistic model in which every domain counts alike inside its label.

    Domains with both labels count three times: only they tell authorship from subject.
    """
    matrix, owners = design(example.text for example in examples)
    labels = np.array([examples[owner].ai for owner in owners])
    cells = [(examples[owner].ai, examples[owner].domain) for owner in owners]
    sizes = Counter(cells)
    both = {domain for ai, domain in sizes if (not ai, domain) in sizes}
    weights = np.array([(3.0 if cell[1] in both else 1.0) / sizes[cell] for cell in cells])
    for label in (True, False):
        weights[labels == label] *= 0.5 * len(labels) / weights[labels == label].sum()
    model = LogisticRegression(C=strength, solver="liblinear", max_iter=400, random_state=0)
    model.fit(matrix, labels, sample_weight=weights)
    return HashedNgramScorer(model.coef_[0].astype(np.float32), float(model.intercept_[0]), {})


def by_domain(examples: list[Example]) -> dict[str, list[Example]]:
    """Examples by domain, sorted by name."""
    found: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        found[example.domain].append(example)
    return dict(sorted(found.items()))


def auc(examples: list[Example], scorer: HashedNgramScorer) -> float | None:
    """Area under the ROC curve, or None without both labels."""
    labels = [example.ai for example in examples]
    if len(set(labels)) < 2:
        return None
    return round(float(roc_auc_score(labels, scorer.score([e.text for e in examples]))), 4)


def operating_points(
    examples: list[Example], scorer: HashedNgramScorer, calibration: dict[str, list[float]]
) -> dict[str, Any]:
    """Per domain and rate: threshold, and the shares of human and AI test texts above it."""
    points: dict[str, Any] = {}
    for domain, group in by_domain(examples).items():
        scores = scorer.score([example.text for example in group])
        ai = np.array([example.ai for example in group])
        points[domain] = {"human": int((~ai).sum()), "ai": int(ai.sum())}
        for rate in RATES:
            limit = threshold({"calibration": calibration}, domain, rate)
            points[domain][f"at_{rate}"] = {
                "threshold": round(limit, 4),
                "fpr": round(float((scores[~ai] > limit).mean()), 4) if (~ai).any() else None,
                "tpr": round(float((scores[ai] > limit).mean()), 4) if ai.any() else None,
            }
    return points


def unseen_domains(examples: list[Example], strength: float) -> dict[str, float]:
    """AUC on each domain that has both labels, by a model that saw nothing of the domain."""
    results = {}
    for domain, group in by_domain(examples).items():
        if {example.ai for example in group} == {True, False}:
            scorer = fit([e for e in examples if e.domain != domain], strength)
            results[domain] = auc(group, scorer) or 0.0
    return results


def describe(parts: dict[Part, list[Example]]) -> dict[str, Any]:
    """Counts of what was used, by part, domain, label, source, model and rights."""

    def counts(examples: list[Example], key: str) -> dict[str, int]:
        return dict(sorted(Counter(str(getattr(e, key)) or "human" for e in examples).items()))

    everything = [example for part in parts.values() for example in part]
    return {
        "parts": {
            part: {
                domain: {"human": sum(not e.ai for e in group), "ai": sum(e.ai for e in group)}
                for domain, group in by_domain(examples).items()
            }
            for part, examples in parts.items()
        },
        "sources": counts(everything, "source"),
        "models": counts(everything, "model"),
        "rights": counts(everything, "rights"),
    }


def _bare(spec: str) -> str:
    domain, _, rest = spec.partition("=")
    return f"{domain}={Path(rest).name}"


def build(pairs: Path, human: list[str], strength: float) -> HashedNgramScorer:
    """Read, split, fit, calibrate, measure."""
    parts: dict[Part, list[Example]] = {"train": [], "calibration": [], "test": []}
    for example in read_pairs(pairs):
        parts[part_of(example.pair)].append(example)
    for spec in human:
        for example in read_human(spec):
            parts[part_of(example.pair)].append(example)
    fitted = fit(parts["train"], strength)
    fitted.save(DATA)
    scorer = HashedNgramScorer.load(DATA)
    calibration = {
        domain: sorted(
            (round(s, 4) for s in scorer.score([e.text for e in group]).tolist()), reverse=True
        )
        for domain, group in by_domain([e for e in parts["calibration"] if not e.ai]).items()
    }
    test = parts["test"]
    groups = by_domain(test)
    shared = [e for e in test if len({other.ai for other in groups[e.domain]}) > 1]
    fitted.card = {
        "what": "logistic regression over hashed word 1-2-grams and byte 3-5-grams",
        "features": {
            "buckets": 1 << TABLE_BITS, "window_chars": WINDOW, "windows": MAX_WINDOWS,
            "inverse_regularisation": strength,
        },
        "data": describe(parts),
        "calibration": calibration,
        "test": {
            "auc": auc(test, scorer),
            "auc_domains_with_both_labels": auc(shared, scorer),
            "auc_by_domain": {d: auc(group, scorer) for d, group in groups.items()},
            "operating_points": operating_points(test, scorer, calibration),
        },
        "auc_on_unseen_domain": unseen_domains(parts["train"] + test, strength),
        "limits": [
            "English only.",
            "Where a domain has one label alone its AUC is null, and the overall AUC is helped by "
            "the difference between domains: read the AUC of single domains and of unseen ones.",
            "On a domain without training data of both labels it is close to chance (see "
            "auc_on_unseen_domain): what it finds there is mostly subject matter.",
            "The models are those listed; newer ones may read differently.",
            "A rate below one over the number of calibration texts of a domain cannot be "
            "calibrated on it: the threshold is then the larger of the pooled one and the highest "
            "score of the domain.",
        ],
        "licence": "Apache-2.0; the weights are fitted on texts whose rights are listed under data",
        "preparation": f"model continuations lose their first {PROMPT_WORDS} words, which are a "
        "person's; rows whose rights do not allow fitting are left out",
        "rebuild": "python scripts/train_ai_text_scorer.py PAIRS.jsonl.gz "
        + " ".join(f"--human {_bare(spec)}" for spec in human),
    }  # fmt: skip
    fitted.save(DATA)
    return HashedNgramScorer.load(DATA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pairs", type=Path, help="labelled texts, JSON lines in gzip")
    parser.add_argument("--human", action="append", default=[], metavar="DOMAIN=FILE:KIND")
    parser.add_argument("--strength", type=float, default=10.0, help="inverse regularisation")
    options = parser.parse_args()
    card = build(options.pairs, options.human, options.strength).card
    print(json.dumps({key: card[key] for key in ("test", "auc_on_unseen_domain")}, indent=1))


if __name__ == "__main__":
    main()
