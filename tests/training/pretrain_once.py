"""A process of its own: pre-train a tiny model on made-up tokens, perhaps die on the way."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time

import numpy as np
import torch.distributed as dist

from hillclimb.artifacts import ArtifactWriter
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.training import runtime
from hillclimb.training.learner import Learner
from hillclimb.training.packing import TokenTable, pack
from hillclimb.training.pretrain import Pretrainer

OPTIMIZER = {
    "beta1": 0.95, "beta2": 0.925, "eps": 1e-8, "weight_decay": 0.1, "attention_weight_decay": 0.01,
    "embedding_weight_decay": 0.005, "grad_clip": 1.0,
}  # fmt: skip


def main(out: str, die_after: int, zero_stage: int, micro: int, dropout: float) -> None:
    runtime.start()
    config = MaiConfig(
        vocab_size=48, hidden_size=32, dense_ffn_size=64, latent_size=16, expert_ffn_size=32,
        num_experts=4, head_dim=8, dropout=dropout,
    )  # fmt: skip
    model = MaiForCausalLM(config).initialise(0)
    rng = np.random.default_rng(0)
    bodies = [rng.integers(1, 48, 40).astype(np.int32) for _ in range(60)]
    offsets = np.arange(0, 40 * 60 + 1, 40)
    table = TokenTable(
        np.concatenate(bodies), offsets, np.arange(60, dtype=np.int32) % 2, ("a", "b")
    )
    packed = pack(table, np.arange(60), 16, 0)
    schedule = {"type": "cosine", "peak": 3e-3, "floor": 3e-4, "warmup_tokens": 64}
    settings = {
        "batch_tokens": 128, "micro_batch_tokens": micro, "phase": {"schedule": schedule},
        "checkpoint_every": 3, "spike_deviations": 8.0,
    }  # fmt: skip
    trainer = Pretrainer(
        Learner(model, OPTIMIZER, zero_stage, 1e-2), packed, ("a", "b"), settings, 7
    )
    writer = ArtifactWriter(out)
    for row in trainer.run(writer):
        if row["step"] == die_after:
            while row["step"] > settings["checkpoint_every"] and not writer.exists("resume/latest"):
                time.sleep(0.01)
            os.kill(os.getpid(), 9)
    if dist.get_rank() == 0:
        digest = hashlib.sha256()
        for _, parameter in sorted(model.named_parameters()):
            digest.update(parameter.detach().numpy().tobytes())
        losses = [row["loss"] for row in trainer.metrics]
        print("RESULT", json.dumps({"sha256": digest.hexdigest(), "losses": losses}))
    runtime.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
