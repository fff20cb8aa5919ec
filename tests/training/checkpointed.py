"""Processes of their own that train a tiny model with checkpoints, to be killed or to change ranks.

`train OUT STEPS ZERO` prints what training ends with, `deterministic` does so in that mode;
`layouts ONE TWO STEPS`, on two ranks, goes on from one rank's checkpoint and writes one for others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pretrain_once import OPTIMIZER

from hillclimb.artifacts import ArtifactWriter
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.training import runtime
from hillclimb.training.checkpoint import Checkpointer
from hillclimb.training.determinism import be_deterministic
from hillclimb.training.learner import Learner

EVERY, ROWS, LENGTH = 3, 4, 16
BALLAST = 64 << 20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def tiny_learner(zero: int = 2, vocabulary: int = 48, hidden: int = 32) -> Learner:
    config = MaiConfig(
        vocab_size=vocabulary, hidden_size=hidden, dense_ffn_size=64, latent_size=16,
        expert_ffn_size=32, num_experts=4, head_dim=8, dropout=0.0, num_hidden_layers=2,
    )  # fmt: skip
    return Learner(MaiForCausalLM(config).initialise(0), OPTIMIZER, zero, 1e-2)


def one_step(learner: Learner, step: int) -> float:
    """A step on rows that its number decides; the loss over all ranks."""
    rng = np.random.default_rng(step)
    tokens = torch.from_numpy(rng.integers(1, 48, (ROWS, LENGTH + 1)))
    mine = tokens[dist.get_rank() :: dist.get_world_size()]

    def loss(model: Any, rows: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total, _ = model.losses(rows[:, :-1], None, rows[:, 1:])
        return total / (ROWS * LENGTH), {"nll": total / (ROWS * LENGTH)}

    return learner.step([mine], loss, 3e-3)["nll"]


def state_hash(learner: Learner) -> str:
    """SHA-256 of the whole FP32 state, put together from all ranks' fragments."""
    mine = [
        (f.name, kind, f.start, f.tensors[kind].numpy().tobytes())
        for f in learner.fragments()
        for kind in sorted(f.tensors)
    ]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    whole: dict[str, bytes] = {}
    for name, kind, _, data in sorted(run for part in everyone for run in part):
        whole[f"{name} {kind}"] = whole.get(f"{name} {kind}", b"") + data
    digest = hashlib.sha256()
    for key, data in sorted(whole.items()):
        digest.update(key.encode() + data)
    return digest.hexdigest()


def weights_hash(learner: Learner) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(learner.model.named_parameters()):
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def train(out: str, learner: Learner, steps: int, ballast: int = 0) -> dict[str, Any]:
    """Train to `steps` from the newest checkpoint, with one every `EVERY` steps."""
    with Checkpointer(ArtifactWriter(out), learner) as checkpoints:
        losses = (checkpoints.load() or {"losses": []})["losses"]
        hashes = {len(losses): state_hash(learner)}
        for step in range(len(losses), steps):
            losses.append(one_step(learner, step))
            if (step + 1) % EVERY == 0:
                extra = {"ballast": bytes([step]) * ballast} if ballast else {}
                checkpoints.save(step + 1, {"losses": losses}, extra)
                hashes[step + 1] = state_hash(learner)
    return {"losses": losses, "hashes": hashes, "steps": learner.steps}


def _layouts(one: str, two: str, steps: int) -> dict[str, Any]:
    """From one rank to two, and two ranks' checkpoint for one rank and for ZeRO-3."""
    found = {"one to two": train(one, tiny_learner(), steps)}
    found["two"] = train(two, tiny_learner(), steps - EVERY)
    if dist.get_rank() == 0:
        shutil.copytree(two, f"{two}-zero3")
    dist.barrier()
    found["two to zero3"] = train(f"{two}-zero3", tiny_learner(3), steps)
    return found


def main(mode: str, out: str, *rest: str) -> None:
    if mode == "deterministic":
        be_deterministic()
    runtime.start()
    if mode == "layouts":
        found = _layouts(out, rest[0], int(rest[1]))
    else:
        learner = tiny_learner(int(rest[1]))
        found = train(out, learner, int(rest[0]), BALLAST if mode == "train" else 0)
        found["weights"] = weights_hash(learner)
    if dist.get_rank() == 0:
        print("RESULT", json.dumps(found), flush=True)
    runtime.stop()


def command(*arguments: str, ranks: int = 1) -> list[str]:
    """The command line of such a process."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    script = str(Path(__file__).resolve())
    return [sys.executable, *(launcher if ranks > 1 else []), script, *arguments]


def finished(*arguments: str, ranks: int = 1) -> dict[str, Any]:
    """What a process that is left alone ends with."""
    done = subprocess.run(
        command(*arguments, ranks=ranks), capture_output=True, text=True, timeout=300, check=False,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return dict(json.loads(line.removeprefix("RESULT ")))


if __name__ == "__main__":
    main(*sys.argv[1:])
