"""One phase of MAI-Base-1: 16K from nothing, 64K and 256K from the phase before."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.distributed as dist

from hillclimb.artifacts import Artifact
from hillclimb.evaluation.positions import by_position
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer
from hillclimb.stages.account import write_goodput
from hillclimb.stages.context import Context
from hillclimb.stages.dealing import open_shards
from hillclimb.stages.models import load_model, save_model
from hillclimb.stages.tables import jsonl, read_rows
from hillclimb.training import runtime
from hillclimb.training.determinism import be_deterministic
from hillclimb.training.feed import Feed
from hillclimb.training.held_out import token_nll
from hillclimb.training.held_out_loss import HeldOutText
from hillclimb.training.layout import Layout
from hillclimb.training.learner import Learner
from hillclimb.training.mixture import phase_budgets
from hillclimb.training.pretrain import Pretrainer
from hillclimb.training.sampling import BLOCK_SHARDS, Plan
from hillclimb.training.shards import Shards
from hillclimb.training.spikes import in_one_line
from hillclimb.training.writer import LATEST

MEMORISATION_TOKENS = 8_000
HELD_OUT_TOKENS = 50_000


def make_base_phase(context: Context) -> None:
    """Train one phase, then measure it on held-out text and for memorised tokens."""
    if context.config["deterministic"]:
        be_deterministic()
    runtime.start(context.request.threads)
    model, tokenizer = _starting_point(context)
    config, phase = context.config, context.config["phase"]
    layout = layout_of(phase)
    learner = Learner(
        model, config["optimizer"], layout, config["balance_coefficient"], _place(context)
    )
    feed = _feed(context, tokenizer, layout)
    trainer = Pretrainer(
        learner, feed, config | {"micro_batch_tokens": _micro_batch(config)}, context.seed,
        _held_out(context, HELD_OUT_TOKENS) if config["held_out_every"] else None,
        config["held_out_every"],
    )  # fmt: skip
    for row in trainer.run(context.out):
        if context.rank == 0:
            context.reporter.progress(row["step"], trainer.steps, f"loss {row['loss']:.3f}")
            context.reporter.metrics(row, int(row["step"]))
            if row["spike"]:
                context.reporter.log(in_one_line(trainer.watch.spikes[-1]))
    _finish(context, trainer, model, tokenizer)
    runtime.stop()


def _starting_point(context: Context) -> tuple[MaiForCausalLM, TextTokenizer]:
    dropout = context.config["dropout"]
    if "checkpoint" in context.request.inputs:
        model, tokenizer, _ = load_model(context.input("checkpoint"), dropout)
        return model, tokenizer
    tokenizer = TextTokenizer.load(context.input("tokenizer").local("tokenizer"))
    config = MaiConfig.from_recipe(context.config["model"], tokenizer.vocab_size, dropout=dropout)
    network = MaiForCausalLM(config)
    resumed = context.out.exists(LATEST)
    return network if resumed else network.initialise(context.seed), tokenizer


def layout_of(section: dict[str, Any]) -> Layout:
    """The layout that a recipe's section (as a dict) asks for."""
    return Layout(
        zero_stage=section["zero_stage"],
        context_parallel=section["context_parallel"],
        expert_parallel=section["expert_parallel"],
        activation_checkpointing=section["activations"] != "kept",
        offload_activations=section["activations"] == "on_host",
        offload_optimizer=section["offload_optimizer"],
        precision=section["weights"],
    )


def _place(context: Context) -> str:
    """Where the recipe says how this phase is laid out."""
    return f"base.phase_{context.request.name.rpartition('_')[2]}"


def _micro_batch(config: dict[str, Any]) -> int:
    return int(config["phase"]["micro_batch_tokens"] or config["micro_batch_tokens"])


def _held_out(context: Context, category_tokens: int | None = None) -> HeldOutText:
    rows = read_rows(context.streamed("mixture"), "held_out.parquet")
    return HeldOutText(rows, context.config["phase"]["sequence_length"], category_tokens)


def _feed(context: Context, tokenizer: TextTokenizer, layout: Layout) -> Feed:
    """The phase's rows: the mixture's plan and caps, scaled to the phase's part of its tokens.

    Raises:
        ValueError: if they are less than one batch.
    """
    phase, mixture = context.config["phase"], context.streamed("mixture")
    length, batch = phase["sequence_length"], context.config["batch_tokens"]
    sources = mixture.json("mixture.json")["sources"]
    seed = context.seed * 31 + length
    plan = Plan(open_shards(mixture), phase_budgets(sources, phase["tokens"]), seed)
    feed = Feed(
        plan, length, tokenizer.end_of_text, batch // length, phase["tokens"] // length,
        layout.data_rank, layout.data_world,
    )  # fmt: skip
    if feed.steps == 0:
        raise ValueError(
            f"{context.request.name}: the mixture gives {len(plan)} tokens, less than one batch of "
            f"{batch}: raise the corpus's caps or lower batch_tokens"
        )
    if context.rank == 0 and (missing := phase["tokens"] - feed.steps * batch) >= batch:
        given = plan.given(len(plan))[0].tolist()
        short = [
            name
            for name, tokens, budget in zip(feed.names, given, plan.budgets, strict=True)
            if tokens < budget.planned
        ]
        context.reporter.log(
            f"the feed is {missing} tokens short of the phase's {phase['tokens']}: "
            f"{', '.join(short) or 'every source'} can give no more under the epoch cap"
        )
    return feed


def _finish(
    context: Context, trainer: Pretrainer, model: MaiForCausalLM, tokenizer: TextTokenizer
) -> None:
    spans, learner, mixture = trainer.spans, trainer.learner, context.streamed("mixture")
    spans.write()
    with spans.span("held_out"):
        text = _held_out(context)
        nll = text.token_nll(model, learner.layout)
        held_out = text.by_category(nll)
        positions = by_position(nll, text.length)
    with spans.span("finish"):
        memorised = _memorised(context, model, trainer.feed.plan.shards, learner.layout)
        weights = learner.full_weights()
        if context.rank == 0:
            save_model(context.out, model, tokenizer, "zero", weights)
    if context.rank == 0:
        context.out.write_text("metrics.jsonl", jsonl(trainer.metrics))
        context.out.write_json("spikes.json", trainer.watch.spikes)
        context.out.write_json("held_out.json", held_out)
        context.out.write_json("positions.json", positions)
        context.out.write_json("memorisation.json", memorised)
        context.out.write_json("sources.json", _given(mixture, trainer.feed))
        last = trainer.metrics[-1]
        late = trainer.metrics[-max(1, len(trainer.metrics) // 20) :]
        metrics = {
            "loss": sum(row["loss"] for row in late) / len(late),
            "steps": len(trainer.metrics),
            "tokens": last["tokens"],
            "spikes": len(trainer.watch.spikes),
            "router_max_share": last["router_max_share"],
        }
        bpb = {f"bpb_{name}": values["bpb"] for name, values in held_out.items()}
        goodput = write_goodput(context, spans)
        context.commit(metrics | bpb | goodput, {"held_out": held_out, "memorised": memorised})
    if dist.get_world_size() > 1:
        dist.barrier()


def _given(mixture: Artifact, feed: Feed) -> dict[str, dict[str, float]]:
    """What each source was to give in this phase and gave, in tokens, documents and epochs."""
    tokens, documents = feed.given(feed.steps)
    caps = mixture.json("mixture.json")["sources"]
    return {
        name: {
            "planned": feed.plan.budgets[number].planned,
            "given": int(tokens[number]),
            "documents": int(documents[number]),
            "epochs": int(tokens[number]) / max(int(feed.plan.available[number]), 1),
            "cap": feed.plan.budgets[number].cap / max(int(feed.plan.available[number]), 1),
            "mixture_cap": caps[name]["epoch_cap"],
        }
        for number, name in enumerate(feed.names)
    }


def _memorised(
    context: Context, model: MaiForCausalLM, shards: Shards, layout: Layout
) -> dict[str, float]:
    """Share of tokens with an NLL under the threshold, on a sample of every source.

    The sample is of the first block of shards, which are themselves samples of the corpus.
    """
    threshold = context.config["mixture"]["memorised_nll"]
    length = context.config["phase"]["sequence_length"]
    count = int(shards.firsts[: BLOCK_SHARDS + 1][-1])
    chosen = []
    for number in range(len(shards.names)):
        mine = np.flatnonzero(shards.sources[:count] == number)
        order = np.random.default_rng(number).permutation(mine)
        sizes = np.minimum(shards.lengths()[order], length + 1)
        chosen.append(order[: int(np.searchsorted(np.cumsum(sizes), MEMORISATION_TOKENS)) + 1])
    texts = shards.read(np.sort(np.concatenate(chosen)))
    found = {}
    for name, documents in zip(shards.names, chosen, strict=True):
        nll = token_nll(model, [texts.body(int(i)) for i in documents], length, layout)
        values = np.concatenate([np.empty(0), *nll])
        found[name] = float((values < threshold).sum()) / max(len(values), 1)
    return found
