"""What checkpoints cost a step: `python benchmarks/checkpoints.py`.

One run, in rounds: an interval of steps without a checkpoint, one with a checkpoint that the step
writes itself (it waits until the files are on disk), one with a checkpoint in the background.
Prints seconds a step of each, what a save keeps the step waiting for, sizes and GB/s. Figures of a
machine that others use too are noisy: `held` is measured directly and is the one to trust there.
`--deterministic` does all of it in the deterministic mode, to compare its seconds a step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hillclimb.artifacts import ArtifactWriter
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.training import runtime
from hillclimb.training.checkpoint import Checkpointer
from hillclimb.training.determinism import be_deterministic
from hillclimb.training.learner import Learner

OPTIMIZER = {
    "beta1": 0.95, "beta2": 0.925, "eps": 1e-8, "weight_decay": 0.1, "attention_weight_decay": 0.01,
    "embedding_weight_decay": 0.005, "grad_clip": 1.0,
}  # fmt: skip
KINDS = ("none", "synchronous", "asynchronous")
GB = 1e9


class Bench:
    """A learner that trains on random tokens, and a checkpointer."""

    def __init__(self, args: argparse.Namespace, out: str) -> None:
        config = MaiConfig(
            vocab_size=args.vocabulary, hidden_size=args.hidden, num_hidden_layers=args.layers,
            dense_ffn_size=8 * args.hidden, latent_size=args.hidden // 2,
            expert_ffn_size=2 * args.hidden, num_experts=args.experts, head_dim=64,
            num_attention_heads=args.hidden // 64, num_key_value_heads=max(1, args.hidden // 256),
        )  # fmt: skip
        model = MaiForCausalLM(config).initialise(0)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.learner = Learner(model, OPTIMIZER, args.zero, 1e-2)
        self.device = next(model.parameters()).device
        self.args, self.steps = args, 0
        self.checkpoints = Checkpointer(ArtifactWriter(out), self.learner)

    def step(self) -> None:
        """One optimiser step."""
        torch.manual_seed(self.steps)
        shape = (self.args.rows, self.args.length + 1)
        tokens = torch.randint(1, self.args.vocabulary, shape).to(self.device)
        count = tokens[:, 1:].numel() * self.learner.world

        def loss(model: Any, rows: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            total, _ = model.losses(rows[:, :-1], None, rows[:, 1:])
            return total / count, {"nll": total}

        self.learner.step([tokens], loss, 1e-4)
        self.steps += 1

    def interval(self, kind: str) -> dict[str, float]:
        """Some steps with one save after the first; seconds a step and of the save."""
        self._settle()
        started, held = time.perf_counter(), 0.0
        for index in range(self.args.interval):
            self.step()
            if index == 0 and kind != "none":
                begun = time.perf_counter()
                self.checkpoints.save(self.steps, {})
                if kind == "synchronous":
                    self.checkpoints.drain()
                held = time.perf_counter() - begun
        self._finish_gpu()
        seconds = time.perf_counter() - started
        self.checkpoints.drain()
        return {"step": seconds / self.args.interval, "held": held, "share": held / seconds}

    def _settle(self) -> None:
        self.checkpoints.drain()
        os.sync()
        self._finish_gpu()

    def _finish_gpu(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Measure and print."""
    args = _arguments()
    if args.deterministic:
        be_deterministic()
    runtime.start(args.threads)
    with tempfile.TemporaryDirectory(dir=args.scratch) as out:
        bench = Bench(args, out)
        with bench.checkpoints:
            bench.step()
            first = bench.checkpoints.save(bench.steps, {})
            rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
            speeds = []
            for _ in range(args.rounds):
                for kind in KINDS:
                    rows[kind].append(bench.interval(kind))
                speeds.append(bench.checkpoints.writer.written / bench.checkpoints.writer.seconds)
            size = bench.checkpoints.writer.written
    found = {
        "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu",
        "parameters": bench.parameters, "bytes": size, "interval": args.interval,
        "ranks": bench.learner.world, "deterministic": args.deterministic,
        "first_save": first.copied, "gb_per_second_written": statistics.median(speeds) / GB,
        "median": {kind: _medians(rows[kind]) for kind in KINDS}, "rounds": rows,
    }  # fmt: skip
    if torch.distributed.get_rank() == 0:
        _print(found)
        if args.out:
            Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    runtime.stop()


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def _print(found: dict[str, Any]) -> None:
    print(
        f"{found['device']}, {found['parameters'] / 1e6:.1f}M parameters, {found['ranks']} ranks, "
        f"{found['bytes'] / GB:.3f} GB a checkpoint and rank, one every {found['interval']} steps, "
        f"deterministic: {found['deterministic']}"
    )
    plain = found["median"]["none"]["step"]
    print(f"{'checkpoints':14}{'s/step':>9}{'against none':>14}{'held s':>9}{'of the time':>13}")
    for kind, row in found["median"].items():
        more, share = 100 * (row["step"] / plain - 1), 100 * row["share"]
        print(f"{kind:14}{row['step']:9.3f}{more:+13.2f}%{row['held']:9.3f}{share:12.2f}%")
    copied = found["median"]["asynchronous"]["held"]
    print(
        f"copied at {found['bytes'] / copied / GB:.2f} GB/s (the first time in "
        f"{found['first_save']:.2f} s), written at {found['gb_per_second_written']:.2f} GB/s"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (
        ("hidden", 256), ("layers", 6), ("experts", 32), ("vocabulary", 16384), ("rows", 4),
        ("length", 256), ("interval", 25), ("rounds", 3), ("zero", 2), ("threads", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--scratch", help="where checkpoints are written (default: TMPDIR)")
    parser.add_argument("--out", help="a JSON file for every number")
    return parser.parse_args()


if __name__ == "__main__":
    main()
