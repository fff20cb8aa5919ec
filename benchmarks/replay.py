"""What replay takes from the gap between engine and learner: `python benchmarks/replay.py`.

A small untrained model with experts draws answers in one arithmetic, and the learner computes the
same tokens in the same or another one. The table has the mean and the largest |log pi - log
pi_engine| over the drawn tokens, with nothing, the nucleus, the routes or both replayed, and the
share of choices of experts that the learner would have made otherwise. On a GPU the learner in BF16
is the fast path.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch
from plain_mai import Plain
from torch import Tensor

from hillclimb.environments.tasks import Problem
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.fast import keep_weights_in_bf16
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.rl.groups import Sample, no_routes, sample_of
from hillclimb.rl.policy import drawn_logprobs, micro_batches, packs, with_routes
from hillclimb.rl.rollouts import Rollout
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.torch_engine import TorchEngine

CONFIG = MaiConfig(
    vocab_size=512, num_hidden_layers=12, hidden_size=256, dense_ffn_size=512, latent_size=128,
    expert_ffn_size=256, num_experts=32, num_experts_per_tok=4, head_dim=64,
    zero_init_attention=False, initializer_range=0.06, embedding_range=0.25,
)  # fmt: skip
PARAMS = SamplingParams(64, 1.0, 0.97, routes=True)
PROMPTS = [[1 + i, 2 + 3 * i, 3 + i * i % 400, 4] for i in range(12) for _ in range(4)]
MICRO_BATCH = 4096
NAMES = {torch.float32: "FP32", torch.bfloat16: "BF16"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    columns = ("nothing", "nucleus", "routes", "both")
    print(f"engine  learner  {'':8}" + "".join(f"{name:>20}" for name in columns))
    for engine_type, learner_type in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ):
        samples = draw(engine_type, device)
        model = learner(learner_type, device)
        free = [replace(sample, routes=no_routes()) for sample in samples]
        found = [
            gap(model, given, nucleus)
            for given in (free, samples)
            for nucleus in (False, True)
        ]  # fmt: skip
        cells = "".join(f"{float(g.mean()):11.2e} {float(g.max()):8.1e}" for g in found)
        differ = f"{100 * otherwise(model, free, samples):.1f}%"
        print(f"{NAMES[engine_type]:7} {NAMES[learner_type]:8} {differ:>8}{cells}", flush=True)


def draw(dtype: torch.dtype, device: torch.device) -> list[Sample]:
    """Answers of an engine in this arithmetic."""
    model = MaiForCausalLM(CONFIG).initialise(0).to(device)  # type: ignore[arg-type]
    done = TorchEngine(model, dtype=dtype).generate(PROMPTS, PARAMS, 0)
    rollouts = [Rollout(Problem("", "", "", "", "", {}), prompt) for prompt in PROMPTS]
    for rollout, completion in zip(rollouts, done, strict=True):
        rollout.take(completion)
    return [sample_of(rollout, 1.0) for rollout in rollouts]


def learner(dtype: torch.dtype, device: torch.device) -> MaiForCausalLM:
    """The same weights on the learner's side."""
    fast = device.type == "cuda" and dtype == torch.bfloat16
    model = (MaiForCausalLM if fast else Plain)(CONFIG).initialise(0).eval()
    if fast:
        keep_weights_in_bf16(model)
    else:
        model.to(dtype)
    return model.to(device)  # type: ignore[arg-type]


@torch.no_grad()
def gap(model: MaiForCausalLM, samples: list[Sample], nucleus: bool) -> Tensor:
    """|log pi - log pi_engine| of every drawn token."""
    batches = micro_batches(samples, MICRO_BATCH, nucleus, packs(model))
    parts = [drawn_logprobs(model, b, PARAMS.temperature).cpu() - b.drawn.engine for b in batches]
    return torch.cat(parts).abs()


def otherwise(model: MaiForCausalLM, free: list[Sample], told: list[Sample]) -> float:
    """The share of chosen experts that the learner would not have chosen."""
    own = np.concatenate([s.routes for s in with_routes(model, free, MICRO_BATCH, 0)])
    theirs = np.concatenate([s.routes for s in told])
    return 1.0 - float((own[..., None] == theirs[..., None, :]).any(-1).mean())


if __name__ == "__main__":
    main()
