"""Spikes and losses that are not finite: what they name, and what stays intact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from made_feed import budget_of, feed_of, write_shards
from pretrain_once import OPTIMIZER
from reference_packing import TokenTable

from hillclimb.artifacts import ArtifactWriter
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.training import runtime, spikes
from hillclimb.training.checkpoint import Checkpointer
from hillclimb.training.held_out_loss import HeldOutText
from hillclimb.training.learner import Learner
from hillclimb.training.pretrain import Pretrainer
from hillclimb.training.spikes import (
    DocumentLosses,
    SpikeWatch,
    in_one_line,
    router_state,
    worst_documents,
)

CONFIG = {
    "batch_tokens": 64, "micro_batch_tokens": 32, "checkpoint_every": 5, "spike_deviations": 1.5,
    "phase": {"schedule": {"type": "constant", "peak": 3e-3, "warmup_tokens": 64}},
}  # fmt: skip
STRANGE = 90


def settle(watch: SpikeWatch, steps: int) -> None:
    """Quiet steps, around 2.0."""
    for step in range(steps):
        loss = 2.0 + 0.01 * (step % 2)
        sums = torch.tensor([loss * 10, loss * 5, 0.0])
        assert not watch.look(step, loss, sums, torch.tensor([10.0, 5.0, 0.0]), lambda mean: {})


def test_a_spike_is_far_above_the_running_mean_and_names_the_sources_that_rose():
    watch = SpikeWatch(("calm", "wild", "absent"), 8.0)
    settle(watch, 60)
    again = SpikeWatch(watch.names, 8.0)
    again.restore(json.loads(json.dumps(watch.state())))
    for one in (watch, again):
        sums, counts = torch.tensor([20.0, 30.0, 0.0]), torch.tensor([10.0, 5.0, 0.0])
        assert one.look(60, 3.3, sums, counts, lambda mean: {"documents": [round(mean, 1)]})
    (spike,) = watch.spikes
    assert spike == again.spikes[0]
    assert (spike["step"], spike["loss"], spike["documents"]) == (61, 3.3, [2.0])
    assert spike["mean"] == pytest.approx(2.005, abs=0.01)
    assert list(spike["sources"]) == ["wild", "calm"]
    assert spike["sources"]["wild"] == pytest.approx(4.0, abs=0.02)


def test_nothing_is_a_spike_before_the_loss_has_settled():
    watch = SpikeWatch(("a", "b", "c"), 8.0)
    settle(watch, 30)
    assert not watch.look(30, 9.0, torch.ones(3), torch.ones(3), lambda mean: {})


def test_documents_are_named_by_the_loss_above_the_mean_and_not_finite_ones_first():
    parts = [
        DocumentLosses(np.array([3, 5]), np.array([10, 2]), torch.tensor([21.0, 9.0])),
        DocumentLosses(np.array([4, 5, 7]), np.array([3, 8, 1]), torch.tensor([9.0, 31.0, 2.5])),
    ]
    worst = worst_documents(parts, 2.0)
    assert [number for number, _, _ in worst] == [5, 4, 3, 7]
    assert worst[0] == (5, 4.0, 10)
    parts[1].nll[2] = float("nan")
    assert worst_documents(parts, 2.0)[0][0] == 7


def one_rank(rank: int, meeting: str, out: str) -> None:
    """Half of the loss of the same documents, as ranks that share each row's tokens have it."""
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    nll = torch.tensor([2.0, 20.0]) * (rank + 1)
    part = DocumentLosses(np.array([4, 9]), np.array([3, 5]), nll)
    Path(f"{out}/{rank}").write_text(json.dumps(worst_documents([part], 2.0, replicas=2)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow("starts two processes")
def test_all_ranks_know_the_worst_documents_of_all(tmp_path):
    torch.multiprocessing.spawn(one_rank, (f"file://{tmp_path}/meet", str(tmp_path)), 2)
    for rank in range(2):
        assert json.loads((tmp_path / str(rank)).read_text()) == [[9, 12.0, 5], [4, 2.0, 3]]


def test_the_router_is_described_layer_by_layer():
    shares = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.0, 0.3, 0.2]])
    even, skew = router_state(shares)
    assert even["max_share"] == 0.25
    assert even["entropy"] == pytest.approx(np.log(4), abs=1e-4)
    assert (skew["max_share"], skew["busiest"]) == (0.5, [0, 2, 3])


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A process group of this process alone."""
    runtime.start()
    yield
    runtime.stop()


@pytest.fixture
def trainer(group: None, tmp_path: Path) -> Pretrainer:
    """Documents of one repeated pattern, but for one of noise whose first token is its own."""
    rng = np.random.default_rng(0)
    bodies = [np.tile(np.arange(1, 9), 4) for _ in range(120)]
    bodies[STRANGE] = np.concatenate(([47], rng.integers(9, 40, 31)))
    sources = np.arange(120, dtype=np.int32) % 2
    table = TokenTable(
        np.concatenate(bodies).astype(np.int32), np.arange(0, 32 * 121, 32), sources, ("p", "q")
    )
    shards = write_shards(str(tmp_path / "shards"), table, 3)
    budgets = {"p": budget_of(32 * 60), "q": budget_of(32 * 60)}
    feed = feed_of(shards, budgets, batch_rows=4)
    config = MaiConfig(
        vocab_size=48, hidden_size=32, dense_ffn_size=64, latent_size=16, expert_ffn_size=32,
        num_experts=4, head_dim=8, dropout=0.0,
    )  # fmt: skip
    learner = Learner(MaiForCausalLM(config).initialise(0), OPTIMIZER, 2, 1e-2)
    held_out = HeldOutText(
        [{"category": c, "bytes": 32, "tokens": bodies[i]} for i, c in enumerate(["x", "y"] * 9)],
        16, 40,
    )  # fmt: skip
    return Pretrainer(learner, feed, CONFIG, 7, held_out, 10)


def step_of(trainer: Pretrainer) -> int:
    """The first step that has the strange document, from one."""
    for step, rows in enumerate(trainer.feed.batches(0)):
        if STRANGE in rows.documents[:, 1:]:
            return step + 1
    raise AssertionError("it is not in the feed")


def test_a_spike_names_the_document_and_the_router(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(spikes, "SETTLED_STEPS", 5)
    at = step_of(trainer)
    assert at > 10
    rows = list(trainer.run(ArtifactWriter(str(tmp_path / "out"))))
    found = {spike["step"]: spike for spike in trainer.watch.spikes}
    assert at in found
    spike = found[at]
    assert rows[at - 1]["spike"] == 1.0
    worst = spike["documents"][0]
    assert (worst["source"], worst["file"], worst["row"]) == ("p", "tokens-00002.parquet", 10)
    assert worst["loss"] > spike["mean"]
    assert len(spike["router"]) == len(trainer.learner.model.moe_layers())
    assert f"step {at}: " in in_one_line(spike)
    assert "p tokens-00002.parquet row 10" in in_one_line(spike)
    assert json.loads(json.dumps(spike)) == spike

    measured = [row["step"] for row in rows if "held_out_x" in row]
    assert measured == list(range(10, trainer.steps + 1, 10))
    assert rows[9]["held_out_y"] > rows[measured[-1] - 1]["held_out_y"]
    assert len(trainer.held_out.rows) == 6


def test_a_loss_that_is_not_finite_names_the_document_and_keeps_the_checkpoint(trainer, tmp_path):
    out, at = ArtifactWriter(str(tmp_path / "out")), step_of(trainer)
    kept = (at - 1) // 5 * 5

    def poison(
        module: torch.nn.Module, ids: tuple[torch.Tensor], out: torch.Tensor
    ) -> torch.Tensor:
        return out.masked_fill((ids[0] == 47)[..., None], float("nan"))

    trainer.learner.model.embed.register_forward_hook(poison)
    with pytest.raises(FloatingPointError) as caught:
        list(trainer.run(out))
    message = str(caught.value)
    assert len(trainer.metrics) == at - 1
    assert f"the loss of step {at} is nan" in message
    named = message.split("worst first: ")[1].split(". Nothing")[0].split("; ")
    assert any(name == "p tokens-00002.parquet row 10 (loss nan)" for name in named[:2])
    assert f"the checkpoint of step {kept} is intact" in message
    weights = trainer.learner.full_weights()
    assert all(bool(value.isfinite().all()) for value in weights.values())
    with Checkpointer(out, trainer.learner) as checkpoints:
        state = checkpoints.load()
    assert state is not None
    assert [row["step"] for row in state["metrics"]] == list(range(1, kept + 1))
