"""Agentic episodes side by side against one after the other: `python benchmarks/environments.py`.

An untrained model answers problems with files, so that the sandboxes are what takes the time: each
episode starts one, lays out files, runs the hidden check, and stops it.
"""

from __future__ import annotations

import time

import torch

from hillclimb.environments.sandbox import BubblewrapProvider
from hillclimb.environments.tasks import FAMILIES, make_problems
from hillclimb.environments.templates import STOP_TOKENS
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer
from hillclimb.rl import rollouts
from hillclimb.rl.rollouts import Sampler
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.torch_engine import TorchEngine

EPISODES, REPEATS = 192, 3


def main() -> None:
    """Print seconds and the ratio."""
    torch.set_num_threads(1)
    problems = make_problems(FAMILIES, {"replace": 0.5, "find": 0.5}, EPISODES, "train", 0)
    texts = [f"{p.question} {' '.join(STOP_TOKENS)}" for p in problems]
    tokenizer = TextTokenizer(train_tokenizer(texts, 320))
    model = MaiForCausalLM(MaiConfig(vocab_size=tokenizer.vocab_size)).initialise(0)
    sampler = Sampler(TorchEngine(model), tokenizer, "zero", BubblewrapProvider())
    best: dict[int, float] = {}
    for threads in (1, rollouts.ENVIRONMENT_THREADS) * REPEATS:
        rollouts.ENVIRONMENT_THREADS = threads
        started = time.perf_counter()
        sampler.run(problems, SamplingParams(8), 0)
        best[threads] = min(best.get(threads, float("inf")), time.perf_counter() - started)
    (one, alone), (many, together) = sorted(best.items())
    print(f"{EPISODES} episodes, best of {REPEATS}")
    for threads, seconds in ((one, alone), (many, together)):
        print(
            f"{threads} thread(s): {seconds:.2f} s, {1000 * seconds / EPISODES:.1f} ms an episode"
        )
    print(f"ratio: {alone / together:.2f}x")


if __name__ == "__main__":
    main()
