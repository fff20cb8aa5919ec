"""The tokenizer, and the mixtures of tokens that base training reads."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hillclimb.corpus import iter_documents
from hillclimb.corpus.rows import Document
from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer
from hillclimb.stages.context import Context
from hillclimb.stages.dealing import TOKENS, deal
from hillclimb.stages.tables import write_table
from hillclimb.training.mixture import SourceShare, plan_mixture

HELD_OUT_SHARE = 0.02
SPOOL_ROWS = 1024
KNOWN = pa.schema(
    [
        ("unit", pa.float64()),
        ("category", pa.dictionary(pa.int32(), pa.string())),
        ("tokens", pa.int32()),
    ]
)


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
    """Tokenise the corpus into shards, keep held-out documents apart, plan what sources give.

    Two passes, with the tokens on a local disk between them: the first finds which documents are
    held out and how many shards there are; the second deals the others out at random, so that
    each shard is a sample of the whole. In memory are a few numbers for each document.
    """
    tokenizer = TextTokenizer.load(context.input("tokenizer").local("tokenizer"))
    documents = iter_documents(str(context.input("corpus").local()))
    with tempfile.TemporaryDirectory(prefix="hillclimb-") as folder:
        spool = Path(folder) / "tokens.arrow"
        found = _spool(_tokenised(documents, tokenizer), spool)
        held = _held_out(found, context.config["held_out_tokens"])
        held_out, available = deal(context.out, _spooled(spool), held, found["tokens"].to_numpy())
    write_table(context.out, "held_out.parquet", held_out, TOKENS)
    shares = _plan(context, available)
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


def _spool(rows: Iterator[dict[str, Any]], path: Path) -> pa.Table:
    """Write rows to an arrow file; returns each one's `unit` (of its id), `category`, `tokens`."""
    known = []
    with pa.ipc.new_file(path, TOKENS) as sink:
        while batch := list(itertools.islice(rows, SPOOL_ROWS)):
            table = pa.Table.from_pylist(batch, schema=TOKENS)
            sink.write_table(table)
            units = pa.array([_unit(row["id"]) for row in batch], pa.float64())
            columns = [units, table["category"], pc.list_value_length(table["tokens"])]
            known.append(pa.table(columns, names=KNOWN.names).cast(KNOWN))
    return pa.concat_tables([KNOWN.empty_table(), *known]).unify_dictionaries()


def _spooled(path: Path) -> Iterator[pa.Table]:
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            yield pa.Table.from_batches([file.get_batch(number)])


def _held_out(known: pa.Table, limit: int) -> np.ndarray:
    """Hold out 2% of each category's tokens, at most `limit`, by documents in order of a hash."""
    held = np.zeros(len(known), bool)
    categories = known["category"].combine_chunks().indices.to_numpy()
    units, sizes = known["unit"].to_numpy(), known["tokens"].to_numpy()
    for category in np.unique(categories):
        mine = np.flatnonzero(categories == category)
        mine = mine[np.argsort(units[mine], kind="stable")]
        before = np.cumsum(sizes[mine]) - sizes[mine]
        held[mine[before < min(limit, HELD_OUT_SHARE * int(sizes[mine].sum()))]] = True
    return held


def _plan(context: Context, available: dict[str, tuple[str, int]]) -> list[SourceShare]:
    mixture = context.config["mixture"]
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


def _unit(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
