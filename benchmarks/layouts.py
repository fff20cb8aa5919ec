"""What a layout changes: errors against plain PyTorch on one rank, speed and memory.

    torchrun --nproc-per-node 2 benchmarks/layouts.py [--medium]

On GPUs where there are some, on CPUs otherwise. Every rank also trains a copy by itself, without
DeepSpeed or collectives: the reference. Errors are |ours - reference| / |reference| over all
numbers of a kind. On a GPU products are in BF16, and so are the errors.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.fast import keep_weights_in_bf16
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.training import runtime
from hillclimb.training.held_out import token_nll
from hillclimb.training.layout import Layout
from hillclimb.training.learner import Learner, parameter_groups

OPTIMIZER = {
    "beta1": 0.9, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1, "attention_weight_decay": 0.01,
    "embedding_weight_decay": 0.005, "grad_clip": 0.5,
}  # fmt: skip
BALANCE, RATE, STEPS = 1e-2, 1e-3, 3
TINY = MaiConfig(
    vocab_size=61, hidden_size=32, dense_ffn_size=64, latent_size=16, expert_ffn_size=32,
    num_experts=8, num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=20,
    zero_init_attention=False, initializer_range=0.1, embedding_range=0.1,
)  # fmt: skip
MEDIUM = MaiConfig(
    vocab_size=32_768, num_hidden_layers=6, hidden_size=1024, dense_ffn_size=4096, latent_size=512,
    expert_ffn_size=1024, num_experts=64, num_experts_per_tok=8, num_attention_heads=16,
    num_key_value_heads=4, head_dim=64, sliding_window=512, zero_init_attention=False,
)  # fmt: skip
KINDS = ("loss", "norm", "balance", "load", "gradient", "worst_gradient", "weights", "held_out")
HEADER = "| layout | " + " | ".join(KINDS) + " | tokens/s | GiB |\n" + "|---" * 11 + "|"


@dataclass(frozen=True)
class Batch:
    """Whole rows: inputs, document numbers, labels, each (B, T)."""

    inputs: Tensor
    segments: Tensor
    labels: Tensor

    def rows(self, which: Any) -> Batch:
        """Some of the rows."""
        return Batch(self.inputs[which], self.segments[which], self.labels[which])


@dataclass
class Outcome:
    """What training leaves: per step, and at the end."""

    losses: list[float]
    norms: list[float]
    balances: list[float]
    load_LE: Tensor
    gradient: dict[str, Tensor]
    weights: dict[str, Tensor]
    held_out: np.ndarray


def layouts(config: MaiConfig, ranks: int) -> dict[str, tuple[MaiConfig, Layout]]:
    """What is compared, as far as the ranks allow it."""
    few = MaiConfig(**{**config.to_diff_dict(), "num_key_value_heads": 1})
    named = {f"ZeRO-{stage}": Layout(stage) for stage in (1, 2, 3)}
    named["ZeRO-2, layers recomputed"] = Layout(2, activation_checkpointing=True)
    named["ZeRO-3, layers recomputed"] = Layout(3, activation_checkpointing=True)
    named["ZeRO-2, optimizer on host"] = Layout(2, offload_optimizer=True)
    named["ZeRO-3, optimizer on host"] = Layout(3, offload_optimizer=True)
    named["ZeRO-2, activations on host"] = Layout(2, offload_activations=True)
    named["ZeRO-2, BF16 weights"] = Layout(2, precision="bf16")
    found = {name: (config, layout) for name, layout in named.items()}
    for degree in (d for d in (2, 4, 8) if ranks % d == 0):
        for stage in (1, 2, 3):
            found[f"EP {degree}, ZeRO-{stage}"] = config, Layout(stage, expert_parallel=degree)
        narrow = Layout(2, expert_parallel=degree, precision="bf16")
        found[f"EP {degree}, BF16 weights"] = config, narrow
        for stage in (2, 3):
            found[f"CP {degree}, ZeRO-{stage}"] = config, Layout(stage, context_parallel=degree)
        both = Layout(2, context_parallel=degree, expert_parallel=degree)
        found[f"CP {degree}, one key head"] = few, Layout(2, context_parallel=degree)
        found[f"EP {degree} x CP {degree}"] = config, both
        everything = replace(
            both, zero_stage=3, activation_checkpointing=True, offload_optimizer=True,
            offload_activations=True,
        )  # fmt: skip
        found[f"EP {degree} x CP {degree}, ZeRO-3, all on host"] = config, everything
    return {name: pair for name, pair in found.items() if fits(*pair, ranks)}


def fits(config: MaiConfig, layout: Layout, ranks: int) -> bool:
    """Whether these ranks can have it."""
    try:
        layout.check(config, ranks, "layout")
    except ValueError:
        return False
    return True


def batches(config: MaiConfig, rows: int, length: int) -> list[Batch]:
    """One packed batch a step; documents lie across the borders of every shard."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(STEPS):
        tokens = torch.randint(0, config.vocab_size, (rows, length + 1), generator=generator)
        starts = torch.rand(rows, length + 1, generator=generator) < 4 / length
        starts[:, :: length // 8] = False
        segments = starts.cumsum(1)
        labels = tokens[:, 1:].masked_fill(segments[:, 1:] != segments[:, :-1], -100)
        batch = tokens[:, :-1], segments[:, :-1], labels
        found.append(Batch(*(tensor.to(runtime.device()) for tensor in batch)))
    return found


def beginning(config: MaiConfig, rounded: bool) -> MaiForCausalLM:
    """The network before the first step; `rounded` takes matrices that are exact in BF16."""
    model = MaiForCausalLM(config).initialise(0)
    if rounded:
        keep_weights_in_bf16(model)
    return model.float()


def documents(config: MaiConfig, length: int) -> list[np.ndarray]:
    """Held-out text of uneven lengths."""
    rng = np.random.default_rng(2)
    sizes = [1, length + 5, *rng.integers(2, length, 9).tolist()]
    return [rng.integers(0, config.vocab_size, size).astype(np.int32) for size in sizes]


def reference(model: MaiForCausalLM, data: list[Batch], micro: int, length: int) -> Outcome:
    """Plain PyTorch, all rows on this rank."""
    config = model.config
    model = model.to(runtime.device()).train()  # type: ignore[arg-type]
    betas = OPTIMIZER["beta1"], OPTIMIZER["beta2"]
    adam = torch.optim.AdamW(
        parameter_groups(model, OPTIMIZER), lr=RATE, betas=betas, eps=OPTIMIZER["eps"]
    )
    moe, outcome = model.moe_layers(), Outcome([], [], [], torch.empty(0), {}, {}, np.empty(0))
    for batch in data:
        counts_LE, loss, balance = torch.zeros(1, device=runtime.device()), 0.0, 0.0
        for part in parts(batch, micro):
            total, _ = model.losses(part.inputs, part.segments, part.labels)
            counts_LE = counts_LE + torch.stack([layer.chosen_E for layer in moe])
            share_LE = counts_LE / counts_LE.sum(1, keepdim=True)
            mean_LE = torch.stack([layer.mean_E for layer in moe])
            term = config.num_experts * (share_LE * mean_LE).sum(1).mean() / micro
            (total / batch.labels.numel() + BALANCE * term).backward()
            loss += float(total.detach()) / batch.labels.numel()
            balance += float(term.detach())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER["grad_clip"])
        if not outcome.losses:
            outcome.gradient = {n: p.grad.cpu().clone() for n, p in model.named_parameters()}  # type: ignore[union-attr]
        adam.step()
        adam.zero_grad()
        outcome.losses.append(loss)
        outcome.norms.append(float(norm))
        outcome.balances.append(balance)
        outcome.load_LE = share_LE
    outcome.weights = {name: p.detach().cpu() for name, p in model.named_parameters()}
    held_out = token_nll(model, documents(config, length), length, Alone())
    outcome.held_out = np.concatenate(held_out) / (dist.get_world_size())
    return outcome


class Alone(Layout):
    """A rank that reads all rows; the sum over ranks counts each as often as there are ranks."""

    @property
    def data_world(self) -> int:
        """One."""
        return 1

    @property
    def data_rank(self) -> int:
        """The first."""
        return 0


def parts(batch: Batch, micro: int) -> list[Batch]:
    """The micro-batches of all ranks together."""
    size = len(batch.inputs) // micro
    return [batch.rows(slice(i * size, (i + 1) * size)) for i in range(micro)]


def train(
    model: MaiForCausalLM, layout: Layout, data: list[Batch], micro: int, length: int
) -> tuple[Outcome, dict[str, float]]:
    """The same through the learner; also tokens a second and GPU memory at most in a step."""
    clean()
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    learner = Learner(model, OPTIMIZER, layout, BALANCE)
    outcome = Outcome([], [], [], torch.empty(0), {}, {}, np.empty(0))

    def loss(network: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        total, _ = network.losses(batch.inputs, batch.segments, batch.labels)
        return total / data[0].labels.numel(), {"nll": total}

    seconds = 0.0
    for batch in data:
        mine = slice(layout.data_rank, None, layout.data_world)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        sums = learner.step([part.rows(mine) for part in parts(batch, micro)], loss, RATE)
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() - before if torch.cuda.is_available() else 0
        if not outcome.losses:
            outcome.gradient = first_gradient(learner)
        outcome.losses.append(sums["nll"] / batch.labels.numel())
        outcome.norms.append(sums["grad_norm"])
        outcome.balances.append(sums["balance_loss"])
    outcome.load_LE = learner.load.shares()
    outcome.weights = learner.full_weights()
    outcome.held_out = np.concatenate(
        token_nll(model, documents(model.config, length), length, layout)
    )
    learner.engine.destroy()
    speed = data[0].labels.numel() / seconds
    return outcome, {"tokens_per_second": speed, "memory_gib": peak / 2**30}


def clean() -> None:
    """Forget former models and what was compiled for them."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def first_gradient(learner: Learner) -> dict[str, Tensor]:
    """What AdamW's first moments say after one step, gathered from all ranks."""
    shapes = {name: p.shape for name, p in MaiForCausalLM(learner.model.config).named_parameters()}
    whole = {
        name: torch.zeros(shape.numel(), device=runtime.device()) for name, shape in shapes.items()
    }
    for fragment in learner.fragments():
        moment = fragment.tensors["exp_avg"].to(runtime.device()) / (1 - OPTIMIZER["beta1"])
        whole[fragment.name][fragment.start : fragment.start + fragment.length] += moment
    for values in whole.values():
        dist.all_reduce(values)
    return {name: values.view(shapes[name]) for name, values in whole.items()}


def compare(ours: Outcome, theirs: Outcome) -> dict[str, float]:
    """Relative errors by kind."""
    return {
        "loss": off(torch.tensor(ours.losses), torch.tensor(theirs.losses)),
        "norm": off(torch.tensor(ours.norms), torch.tensor(theirs.norms)),
        "balance": off(torch.tensor(ours.balances), torch.tensor(theirs.balances)),
        "load": off(ours.load_LE, theirs.load_LE),
        "gradient": off(flat(ours.gradient), flat(theirs.gradient)),
        "worst_gradient": max(off(ours.gradient[n], g) for n, g in theirs.gradient.items()),
        "weights": off(flat(ours.weights), flat(theirs.weights)),
        "held_out": off(torch.from_numpy(ours.held_out), torch.from_numpy(theirs.held_out)),
    }


def off(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|."""
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return float((ours - theirs).norm() / theirs.norm())


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """All numbers, by name."""
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def main() -> None:
    """Print the table on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--medium", action="store_true", help="a model for GPUs, 16 rows of 4096")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="layouts whose name has one of these"
    )
    parser.add_argument("--json", action="store_true", help="lines of JSON instead of the table")
    options = parser.parse_args()
    rank, ranks = runtime.start()
    config, rows, length = (MEDIUM, 16, 4096) if options.medium else (TINY, 8, 64)
    data, micro = batches(config, rows, length), 2
    references: dict[tuple[int, bool], Outcome] = {}
    if rank == 0:
        print(HEADER, flush=True)
    for name, (shape, layout) in layouts(config, ranks).items():
        if not any(part in name for part in options.only):
            continue
        key = shape.num_key_value_heads, layout.precision == "bf16"
        if key not in references:
            references[key] = reference(beginning(shape, key[1]), data, micro, length)
        ours, speed = train(beginning(shape, key[1]), layout, data, micro, length)
        if rank == 0:
            report(name, compare(ours, references[key]) | speed, options.json)
    runtime.stop()


def report(name: str, row: dict[str, float], as_json: bool) -> None:
    """One line of the table, or of JSON."""
    if as_json:
        print("RESULT", json.dumps({"layout": name, **row}), flush=True)
        return
    errors = [f"{row[kind]:.0e}" for kind in KINDS]
    cells = [name, *errors, f"{row['tokens_per_second']:,.0f}", f"{row['memory_gib']:.1f}"]
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
