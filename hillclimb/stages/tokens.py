"""The tokenizer, and the mixtures of tokens that base training reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from hillclimb.artifacts import Artifact
from hillclimb.corpus import iter_documents
from hillclimb.corpus.rows import Document
from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer
from hillclimb.stages.context import Context
from hillclimb.stages.tables import read_table, write_table
from hillclimb.training.mixture import SourceShare, plan_mixture
from hillclimb.training.packing import TokenTable

TOKENS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("category", pa.string()),
        ("bytes", pa.int64()),
        ("tokens", pa.list_(pa.int32())),
    ]
)
HELD_OUT_SHARE = 0.02


def make_tokenizer(context: Context) -> None:
    """Learn merges from documents spread evenly over the corpus."""
    corpus, limit = context.input("corpus"), context.config["sample_characters"]
    total = corpus.manifest.metrics["characters"]
    texts = _sample(iter_documents(str(corpus.local())), min(1.0, limit / max(total, 1)))
    tokenizer = TextTokenizer(train_tokenizer(texts, context.config["vocab_size"]))
    with context.out.local("tokenizer") as folder:
        tokenizer.save(folder)
    context.commit({"vocab_size": tokenizer.vocab_size})


def _sample(documents: Iterator[Document], share: float) -> Iterator[str]:
    for document in documents:
        if _unit(document.id) < share:
            yield document.text


def make_mixture(context: Context) -> None:
    """Tokenise the corpus, keep held-out documents apart, plan what each source gives."""
    tokenizer = TextTokenizer.load(context.input("tokenizer").local("tokenizer"))
    documents = iter_documents(str(context.input("corpus").local()))
    rows = list(_tokenised(documents, tokenizer))
    limit = context.config["held_out_tokens"]
    train, held_out = _split(rows, limit)
    write_table(context.out, "tokens-00000.parquet", train, TOKENS)
    write_table(context.out, "held_out.parquet", held_out, TOKENS)
    shares = _plan(context, train)
    context.out.write_json("mixture.json", _describe(shares))
    context.commit(
        {
            "tokens_available": sum(s.available for s in shares),
            "tokens_planned": sum(s.used for s in shares),
            "held_out_tokens": sum(len(row["tokens"]) for row in held_out),
        },
        _describe(shares),
    )


def _tokenised(documents: Iterator[Document], tokenizer: TextTokenizer) -> Iterator[dict[str, Any]]:
    for document in documents:
        generated = bool(document.provenance.get("generated"))
        encode = tokenizer.encode if generated else tokenizer.encode_text
        yield {
            "id": document.id,
            "source": document.source,
            "category": document.category,
            "bytes": len(document.text.encode()),
            "tokens": encode(document.text),
        }


def _split(
    rows: list[dict[str, Any]], limit: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Hold out 2% of each category's tokens, at most `limit`, by documents in order of a hash."""
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row["category"]] = sizes.get(row["category"], 0) + len(row["tokens"])
    left = {name: min(limit, HELD_OUT_SHARE * size) for name, size in sizes.items()}
    held: set[str] = set()
    for row in sorted(rows, key=lambda row: _unit(row["id"])):
        if left[row["category"]] > 0:
            left[row["category"]] -= len(row["tokens"])
            held.add(row["id"])
    train = [row for row in rows if row["id"] not in held]
    return train, [row for row in rows if row["id"] in held]


def _plan(context: Context, train: list[dict[str, Any]]) -> list[SourceShare]:
    mixture = context.config["mixture"]
    available: dict[str, tuple[str, int]] = {}
    for row in train:
        category, size = available.get(row["source"], (row["category"], 0))
        available[row["source"]] = (category, size + len(row["tokens"]))
    memorised = None
    if "checkpoint" in context.request.inputs:
        memorised = context.input("checkpoint").json("memorisation.json")
    shares = plan_mixture(
        available,
        mixture["weights"],
        context.config["tokens"],
        mixture["epoch_cap"],
        mixture["strict_epoch_cap"],
        mixture["memorised_share"],
        memorised,
    )
    short = context.config["tokens"] - sum(s.used for s in shares)
    if short > 0.01 * context.config["tokens"]:
        context.reporter.log(
            f"the mixture is {short} tokens short: every source is at its epoch cap"
        )
    return shares


def _describe(shares: list[SourceShare]) -> dict[str, Any]:
    total = max(1, sum(s.used for s in shares))
    sources = {
        s.source: {
            "category": s.category,
            "tokens_available": s.available,
            "tokens_used": s.used,
            "weight": s.used / total,
            "epochs": s.epochs,
            "epoch_cap": s.cap,
            "memorised_share": s.memorised,
        }
        for s in shares
    }
    categories: dict[str, dict[str, float]] = {}
    for s in shares:
        entry = categories.setdefault(s.category, {"tokens_used": 0, "weight": 0.0})
        entry["tokens_used"] += s.used
        entry["weight"] += s.used / total
    return {"sources": sources, "categories": dict(sorted(categories.items()))}


def read_tokens(mixture: Artifact, pattern: str = "tokens-*.parquet") -> TokenTable:
    """The mixture's documents as one token table, sources numbered by name."""
    table = read_table(mixture, pattern, ["source", "tokens"])
    source = table["source"].combine_chunks()
    names = tuple(sorted(set(source.to_pylist())))
    number = {name: index for index, name in enumerate(names)}
    tokens = table["tokens"].combine_chunks()
    offsets = tokens.offsets.to_numpy().astype(np.int64)
    return TokenTable(
        tokens.values.to_numpy(zero_copy_only=False)[: offsets[-1]],
        offsets,
        np.array([number[name] for name in source.to_pylist()], np.int32),
        names,
    )


def _unit(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
