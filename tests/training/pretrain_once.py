"""A process of its own: pre-train a tiny model on made-up tokens, perhaps die on the way."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time

import torch.distributed as dist
from made_feed import budget_of, feed_of, table_of, write_shards

from hillclimb.artifacts import ArtifactWriter
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.training import runtime
from hillclimb.training.learner import Learner
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
    table = table_of([40] * 60, [0, 1] * 30, ("a", "b"))
    shards = write_shards("memory://made", table, 2)
    budgets = {"a": budget_of(1200), "b": budget_of(1200)}
    feed = feed_of(shards, budgets, data=(dist.get_rank(), dist.get_world_size()))
    schedule = {"type": "cosine", "peak": 3e-3, "floor": 3e-4, "warmup_tokens": 64}
    settings = {
        "batch_tokens": 128, "micro_batch_tokens": micro, "phase": {"schedule": schedule},
        "checkpoint_every": 3, "spike_deviations": 8.0,
    }  # fmt: skip
    trainer = Pretrainer(Learner(model, OPTIMIZER, zero_stage, 1e-2), feed, settings, 7)
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
