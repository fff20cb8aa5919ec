"""One phase of MAI-Base-1: 16K from nothing, 64K and 256K from the phase before."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer
from hillclimb.stages.account import write_goodput
from hillclimb.stages.context import Context
from hillclimb.stages.models import load_model, save_model
from hillclimb.stages.tables import jsonl, read_rows
from hillclimb.stages.tokens import read_tokens
from hillclimb.training import runtime
from hillclimb.training.held_out import token_nll
from hillclimb.training.layout import Layout
from hillclimb.training.learner import Learner
from hillclimb.training.packing import Packed, TokenTable, pack, sample_documents
from hillclimb.training.pretrain import Pretrainer

MEMORISATION_TOKENS = 8_000


def make_base_phase(context: Context) -> None:
    """Train one phase, then measure it on held-out text and for memorised tokens."""
    runtime.start(context.request.threads)
    model, tokenizer = _starting_point(context)
    table = read_tokens(context.input("mixture"))
    packed = _packed(context, table, tokenizer)
    config = context.config
    learner = Learner(
        model, config["optimizer"], config["phase"]["zero_stage"], config["balance_coefficient"]
    )
    trainer = Pretrainer(learner, packed, table.names, config, context.seed)
    if trainer.steps == 0:
        raise ValueError(
            f"{context.request.name}: the mixture gives {packed.tokens.size} tokens, less than one "
            f"batch of {config['batch_tokens']}: raise the corpus's caps or lower batch_tokens"
        )
    for row in trainer.run(context.out):
        if context.rank == 0:
            context.reporter.progress(row["step"], trainer.steps, f"loss {row['loss']:.3f}")
            context.reporter.metrics(row, int(row["step"]))
    _finish(context, trainer, model, tokenizer, table)
    runtime.stop()


def _starting_point(context: Context) -> tuple[MaiForCausalLM, TextTokenizer]:
    dropout = context.config["dropout"]
    if "checkpoint" in context.request.inputs:
        model, tokenizer, _ = load_model(context.input("checkpoint"), dropout)
        return model, tokenizer
    tokenizer = TextTokenizer.load(context.input("tokenizer").local("tokenizer"))
    config = MaiConfig.from_recipe(context.config["model"], tokenizer.vocab_size, dropout=dropout)
    return MaiForCausalLM(config).initialise(context.seed), tokenizer


def _packed(context: Context, table: TokenTable, tokenizer: TextTokenizer) -> Packed:
    """The phase's sequences: the mixture's budget scaled to the phase's tokens."""
    phase = context.config["phase"]
    sources = context.input("mixture").json("mixture.json")["sources"]
    used = sum(source["tokens_used"] for source in sources.values())
    scale = min(1.0, phase["tokens"] / max(1, used)) * 1.02
    budget = {name: math.ceil(s["tokens_used"] * scale) for name, s in sources.items()}
    seed = context.seed * 31 + phase["sequence_length"]
    packed = pack(
        table, sample_documents(table, budget, seed), phase["sequence_length"],
        tokenizer.end_of_text,
    )  # fmt: skip
    rows = phase["tokens"] // phase["sequence_length"]
    return Packed(
        packed.tokens[:rows], packed.segments[:rows], packed.sources[:rows], packed.documents[:rows]
    )


def _finish(
    context: Context,
    trainer: Pretrainer,
    model: MaiForCausalLM,
    tokenizer: TextTokenizer,
    table: TokenTable,
) -> None:
    trainer.spans.write()
    layout, length = trainer.learner.layout, context.config["phase"]["sequence_length"]
    with trainer.spans.span("held_out"):
        held_out = held_out_nll(context, model, length, layout)
    with trainer.spans.span("finish"):
        memorised = _memorised(context, model, table, layout)
        weights = trainer.learner.full_weights()
        if context.rank == 0:
            save_model(context.out, model, tokenizer, "zero", weights)
    if context.rank == 0:
        context.out.write_text("metrics.jsonl", jsonl(trainer.metrics))
        context.out.write_json("spikes.json", trainer.spikes)
        context.out.write_json("held_out.json", held_out)
        context.out.write_json("memorisation.json", memorised)
        last = trainer.metrics[-1]
        late = trainer.metrics[-max(1, len(trainer.metrics) // 20) :]
        metrics = {
            "loss": sum(row["loss"] for row in late) / len(late),
            "steps": len(trainer.metrics),
            "tokens": last["tokens"],
            "spikes": len(trainer.spikes),
            "router_max_share": last["router_max_share"],
        }
        bpb = {f"bpb_{name}": values["bpb"] for name, values in held_out.items()}
        goodput = write_goodput(context, trainer.spans)
        context.commit(metrics | bpb | goodput, {"held_out": held_out, "memorised": memorised})
    if dist.get_world_size() > 1:
        dist.barrier()


def held_out_nll(
    context: Context, model: MaiForCausalLM, length: int, layout: Layout
) -> dict[str, dict[str, float]]:
    """NLL a token and bits a byte of the mixture's held-out documents, by category."""
    rows = read_rows(context.input("mixture"), "held_out.parquet")
    documents = [np.asarray(row["tokens"], np.int32) for row in rows]
    categories = sorted({row["category"] for row in rows})
    sums = torch.zeros(len(categories), 3, dtype=torch.float64)
    for row, nll in zip(rows, token_nll(model, documents, length, layout), strict=True):
        share = (len(nll) + 1) / max(len(row["tokens"]), 1)
        sums[categories.index(row["category"])] += torch.tensor(
            [float(nll.sum()), float(len(nll)), row["bytes"] * share], dtype=torch.float64
        )
    return {
        name: {
            "nll": nll / max(tokens, 1),
            "bpb": nll / max(size, 1) / math.log(2),
            "tokens": tokens,
        }
        for name, (nll, tokens, size) in zip(categories, sums.tolist(), strict=True)
    }


def _memorised(
    context: Context, model: MaiForCausalLM, table: TokenTable, layout: Layout
) -> dict[str, float]:
    """Share of tokens with an NLL under the threshold, on a sample of every source."""
    threshold = context.config["mixture"]["memorised_nll"]
    length = context.config["phase"]["sequence_length"]
    found: dict[str, float] = {}
    for number, name in enumerate(table.names):
        order = np.random.default_rng(number).permutation(np.flatnonzero(table.sources == number))
        sizes = np.minimum(table.lengths()[order], length + 1)
        count = int(np.searchsorted(np.cumsum(sizes), MEMORISATION_TOKENS)) + 1
        sample = [table.document(int(i)) for i in order[:count]]
        nll = token_nll(model, sample, length, layout)
        values = np.concatenate(nll) if nll else np.empty(0)
        found[name] = float((values < threshold).sum()) / max(float(len(values)), 1.0)
    return found
