"""Layouts over ranks compute what one rank computes, and refuse what cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.saving import SavedActivations
from hillclimb.training.held_out import token_nll
from hillclimb.training.layout import Layout

KINDS = ("loss", "norm", "balance", "load", "gradient", "worst_gradient", "weights", "held_out")
SCRIPT = Path(__file__).parent / "layouts_once.py"
CONFIG = MaiConfig(
    vocab_size=61, hidden_size=32, dense_ffn_size=64, latent_size=16, expert_ffn_size=32,
    head_dim=8, sliding_window=20, zero_init_attention=False, initializer_range=0.1,
    embedding_range=0.1,
)  # fmt: skip


def run(
    ranks: int, these: str, only: str, capsys: pytest.CaptureFixture[str]
) -> dict[str, list[dict]]:
    """What the ranks print, by kind; the table goes to the terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}",
         "--standalone", str(SCRIPT), these, only],
        capture_output=True, text=True, timeout=500, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.partition(" ") for line in done.stdout.splitlines() if line[:2] in ("RE", "BE")]
    with capsys.disabled():
        print("\n" + "\n".join(rest for _, _, rest in lines))
    return {kind: [json.loads(r) for k, _, r in lines if k == kind] for kind, _, _ in lines}


def check(rows: dict[str, list[dict]]) -> None:
    for row in rows["RESUMED"]:
        assert [row[key] for key in ("once", "same", "names", "skips", "steps")] == [True] * 4 + [3]
    assert rows["BESIDE"][0]["experts"] < 1e-5
    assert rows["BESIDE"][0]["fast"] < 1e-2
    for row in rows["RESULT"]:
        errors = {key: value for key, value in row.items() if key in KINDS}
        narrow = "BF16" in row["layout"]
        assert len(errors) == len(KINDS)
        assert max(errors.values()) < (0.05 if narrow else 1e-5), row
        assert row["worst_gradient"] < (0.01 if narrow else 1e-5), row


@pytest.mark.slow("trains every layout on two ranks")
def test_every_layout_computes_what_one_rank_computes(capsys):
    rows = run(2, "", "", capsys)
    check(rows)
    assert (len(rows["RESUMED"]), len(rows["RESULT"])) == (8, 18)


@pytest.mark.slow("trains on four ranks")
def test_experts_that_several_ranks_hold_compute_what_one_rank_computes(capsys):
    rows = run(4, "EP, ZeRO-2", "EP 2, ZeRO-2", capsys)
    check(rows)
    assert (len(rows["RESUMED"]), len(rows["RESULT"])) == (1, 1)


def gradients(saved: SavedActivations, dropout: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    model = MaiForCausalLM(MaiConfig(**{**CONFIG.to_diff_dict(), "dropout": dropout}))
    model.initialise(0).train().lay_out(None, None, saved)
    ids = torch.randint(0, 61, (2, 33), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    total, _ = model.losses(ids[:, :-1], None, ids[:, 1:])
    moe = model.moe_layers()
    before = [layer.mean_E for layer in moe]
    (total + torch.stack(before).square().sum()).backward()
    for layer, mean in zip(moe, before, strict=True):
        assert layer.mean_E is mean, "the layer was counted once more"
    return [p.grad for p in model.parameters()], torch.stack([layer.chosen_E for layer in moe])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_layers_have_the_same_dropout_gradients_and_counts(dropout: float):
    plain, counts = gradients(SavedActivations(), dropout)
    for saved in (SavedActivations(recomputed=True), SavedActivations(True, on_host=True)):
        found, again = gradients(saved, dropout)
        assert torch.equal(again, counts)
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize(
    ("layout", "ranks", "words"),
    [
        (Layout(context_parallel=4), 6, "base.phase_16k.context_parallel is 4, which does not"),
        (Layout(expert_parallel=4), 6, "base.phase_16k.expert_parallel is 4, which does not"),
        (
            Layout(context_parallel=3),
            3,
            "base.phase_16k.context_parallel is 3: it must divide the 4",
        ),
        (Layout(expert_parallel=3), 3, "base.phase_16k.expert_parallel is 3: it must divide the 8"),
        (Layout(3, precision="bf16"), 1, "base.phase_16k.zero_stage is 3: weights stored in BF16"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_by_its_field(layout: Layout, ranks: int, words: str):
    with pytest.raises(ValueError, match=words):
        layout.check(CONFIG, ranks, "base.phase_16k")


def test_one_key_head_serves_any_number_of_ranks_and_three_do_not():
    one = MaiConfig(**{**CONFIG.to_diff_dict(), "num_key_value_heads": 1})
    Layout(context_parallel=4).check(one, 4, "x")
    three = MaiConfig(
        **{**CONFIG.to_diff_dict(), "num_key_value_heads": 3, "num_attention_heads": 6}
    )
    with pytest.raises(ValueError, match="the 3 key heads"):
        Layout(context_parallel=2).check(three, 2, "x")


@torch.no_grad()
def test_held_out_nll_is_that_of_each_document_alone():
    model = MaiForCausalLM(CONFIG).initialise(0)
    rng = np.random.default_rng(0)
    sizes = [0, 1, 2, 50, 21, 21, 7]
    documents = [rng.integers(0, 61, size).astype(np.int32) for size in sizes]
    found = token_nll(model, documents, 20)
    assert [len(nll) for nll in found] == [0, 0, 1, 20, 20, 20, 6]
    for document, nll in zip(documents, found, strict=True):
        if len(nll):
            ids = torch.from_numpy(document[: len(nll) + 1]).long()
            logits = model.logits(model.hidden(ids[None, :-1]))[0]
            right = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            assert np.abs(nll - right.numpy()).max() < 1e-5
    assert token_nll(model, [], 20) == []
