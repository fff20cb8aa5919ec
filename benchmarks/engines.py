"""Rollout engines against the model: `python benchmarks/engines.py`.

An untrained MAI model with experts (about 140M parameters on a GPU, toy-sized on a CPU) answers
with each engine. A row has the time to start, tokens a second, the seconds of new weights, and the
mean and the largest |log pi - log pi_engine| in nats over drawn tokens with the nucleus replayed:
against the model's forward pass in FP32 and in BF16 (on a GPU the learner's fast path), the same
after new weights, and with the routed experts forced, where the engine tells them.

For vLLM set HILLCLIMB_VLLM_PYTHON to a Python that has it, or run `make vllm`.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from plain_mai import Plain

from hillclimb.environments.tasks import Problem
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.fast import keep_weights_in_bf16
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rl.groups import Sample, no_routes, sample_of
from hillclimb.rl.policy import drawn_logprobs, micro_batches, packs
from hillclimb.rl.rollouts import Rollout
from hillclimb.rollout.engine import Completion, RolloutEngine, SamplingParams
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.rollout.vllm_engine import VllmEngine

TOP_P = 0.97
CHECKED, MICRO_BATCH = 32, 4096
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Row:
    """What was measured of one engine; gaps are (mean, largest)."""

    engine: str
    dtype: str
    start_s: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)
    load_s: float = 0.0
    routed: bool = False
    gaps: dict[str, tuple[float, float]] = field(default_factory=dict)
    failed: str = ""


def configuration(device: torch.device, head_dim: int | None) -> MaiConfig:
    """139M parameters, of which 43M work for a token; on a CPU the toy's shape."""
    if device.type == "cpu":
        return MaiConfig(head_dim=head_dim or 24, zero_init_attention=False, embedding_range=0.25)
    return MaiConfig(
        vocab_size=8192, num_hidden_layers=12, hidden_size=512, dense_ffn_size=2816,
        latent_size=256, expert_ffn_size=768, num_experts=64, num_experts_per_tok=4,
        num_attention_heads=8, num_key_value_heads=2, head_dim=head_dim or 64, sliding_window=512,
        zero_init_attention=False, embedding_range=0.1,
    )  # fmt: skip


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    args = parser().parse_args()
    device = torch.device(args.device)
    config = configuration(device, args.head_dim)
    torch.set_num_threads(args.threads)
    models = [made(config, seed, device) for seed in (0, 1)]
    count = sum(p.numel() for p in models[0].parameters())
    print(f"{count / 1e6:.1f}M parameters on {name_of(device)}, head size {config.head_dim}")
    print(f"{args.rows} prompts x {args.tokens} tokens, top_p {TOP_P}; gaps in nats: mean/largest")
    rows = []
    for name in args.engines.split(","):
        for dtype in args.dtypes.split(","):
            rows.append(measured(name, dtype, models, args))
            print(line(rows[-1]), flush=True)
            if args.out:
                args.out.write_text(json.dumps([vars(row) for row in rows], indent=1))


def made(config: MaiConfig, seed: int, device: torch.device) -> MaiForCausalLM:
    """Random weights of a seed, FP32."""
    model = MaiForCausalLM(config).initialise(seed).eval().requires_grad_(False)
    return model.to(device)  # type: ignore[arg-type]


def measured(
    name: str, dtype: str, models: Sequence[MaiForCausalLM], args: argparse.Namespace
) -> Row:
    """One row; what went wrong instead of numbers where the engine does not run."""
    row = Row(name, dtype)
    try:
        started = time.perf_counter()
        with closing(opened(name, dtype, models[0], args)) as engine:
            row.start_s = time.perf_counter() - started
            measure(row, engine, models, args)
    except Exception as error:
        traceback.print_exc()
        row.failed = f"{type(error).__name__}: {error}"[:300]
    return row


def opened(name: str, dtype: str, model: MaiForCausalLM, args: argparse.Namespace) -> RolloutEngine:
    """An engine over the first weights."""
    if name == "torch":
        return TorchEngine(model, dtype=TYPES[dtype])
    return VllmEngine(model, {"dtype": dtype, "max_model_len": 2048})


def measure(
    row: Row, engine: RolloutEngine, models: Sequence[MaiForCausalLM], args: argparse.Namespace
) -> None:
    """Speed, then gaps to the first weights, then the second ones and theirs."""
    config = models[0].config
    prompts = [[1 + (7 * i + j * j) % (config.vocab_size - 1) for j in range(24)]
               for i in range(args.rows // 8) for _ in range(8)]  # fmt: skip
    few = [[1 + (11 * i + j) % (config.vocab_size - 1) for j in range(8 + 5 * i)]
           for i in range(CHECKED)]  # fmt: skip
    engine.generate(prompts, SamplingParams(16, top_p=TOP_P), 0)
    for kind, params in {
        "top-p": SamplingParams(args.tokens, top_p=TOP_P),
        "top-p and routes": SamplingParams(args.tokens, top_p=TOP_P, routes=True),
        "greedy": SamplingParams(args.tokens, greedy=True),
    }.items():
        started = time.perf_counter()
        done = engine.generate(prompts, params, 1)
        row.rates[kind] = sum(len(c.tokens) for c in done) / (time.perf_counter() - started)
    params = SamplingParams(min(args.tokens, 128), top_p=TOP_P, routes=True)
    compare(row, "", models[0], few, engine.generate(few, params, 2))
    started = time.perf_counter()
    engine.load_weights(dict(models[1].state_dict()), 1)
    row.load_s = time.perf_counter() - started
    compare(row, " after new weights", models[1], few, engine.generate(few, params, 2))


def compare(
    row: Row, when: str, model: MaiForCausalLM, prompts: list[list[int]], done: list[Completion]
) -> None:
    """Gaps to both forward passes, with routes free and forced."""
    samples = [as_sample(p, c) for p, c in zip(prompts, done, strict=True)]
    free = [replace(sample, routes=no_routes()) for sample in samples]
    row.routed = all(completion.routes is not None for completion in done)
    for kind, learner in {"FP32": plain, "BF16": brief}.items():
        other = learner(model)
        row.gaps[kind + when] = gap(other, free)
        if row.routed:
            row.gaps[f"{kind}, routes forced{when}"] = gap(other, samples)


def as_sample(prompt: list[int], completion: Completion) -> Sample:
    """The learner's view of an answer."""
    rollout = Rollout(Problem("", "", "", "", "", {}), prompt)
    rollout.take(completion)
    return sample_of(rollout, 1.0)


def plain(model: MaiForCausalLM) -> MaiForCausalLM:
    """The same weights in FP32, computed plainly."""
    return copied(Plain, model)


def brief(model: MaiForCausalLM) -> MaiForCausalLM:
    """The same weights as the learner has them in BF16."""
    if not model.embed.weight.is_cuda:
        return copied(Plain, model).to(torch.bfloat16)  # type: ignore[call-arg]
    fast = copied(MaiForCausalLM, model)
    keep_weights_in_bf16(fast)
    return fast


def copied(kind: Callable[[MaiConfig], MaiForCausalLM], model: MaiForCausalLM) -> MaiForCausalLM:
    """Another network with the same weights."""
    other = kind(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False).to(model.embed.weight.device)  # type: ignore[arg-type]


@torch.no_grad()
def gap(model: MaiForCausalLM, samples: list[Sample]) -> tuple[float, float]:
    """|log pi - log pi_engine|, the mean and the largest."""
    batches = micro_batches(samples, MICRO_BATCH, True, packs(model))
    parts = [drawn_logprobs(model, b, 1.0).float().cpu() - b.drawn.engine for b in batches]
    found = torch.cat(parts).abs()
    return float(found.mean()), float(found.max())


def line(row: Row) -> str:
    """What was measured, over a few lines."""
    head = f"{row.engine} {row.dtype}"
    if row.failed:
        return f"\n{head}: {row.failed}"
    rates = ", ".join(f"{kind} {rate:,.0f}" for kind, rate in row.rates.items())
    told = "told" if row.routed else "not told"
    gaps = "\n".join(f"  {k:40} {a:9.1e} /{b:9.1e}" for k, (a, b) in row.gaps.items())
    return (
        f"\n{head}: start {row.start_s:.1f} s, new weights {row.load_s:.2f} s, routes {told}\n"
        f"  tokens/s: {rates}\n{gaps}"
    )


def name_of(device: torch.device) -> str:
    """What computes."""
    return torch.cuda.get_device_name() if device.type == "cuda" else "a CPU"


def parser() -> argparse.ArgumentParser:
    """The words that the command takes."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default="torch,vllm", help="by commas")
    parser.add_argument("--dtypes", default="bfloat16" if gpu else "float32,bfloat16")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--head-dim", type=int)
    parser.add_argument("--rows", type=int, default=512 if gpu else 64)
    parser.add_argument("--tokens", type=int, default=256 if gpu else 64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="file for the numbers as JSON")
    return parser


if __name__ == "__main__":
    main()
