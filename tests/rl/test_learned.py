"""The table of tokens: what engine and learner say of each, rollout by rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import climb_process
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from climb_support import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.artifacts import Artifact
from hillclimb.rl.groups import Buffer, Group, Sample
from hillclimb.rl.learned import learned_from
from hillclimb.rl.policy import micro_batches
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.stages.climb import make_climb
from hillclimb.stages.context import Context
from hillclimb.stages.models import load_model
from hillclimb.stages.request import Request
from hillclimb.stages.token_tables import Pieces

TEMPERATURE, TOKENIZER = 1.0, make_tokenizer()
CHOICES = {
    "staleness": {"steps_per_update": 2, "ahead": 0},
    "sampling": {"temperature": TEMPERATURE, "top_p": 1.0},
    "lengths": [{"max_tokens": 24, "steps": 8}],
}


class Quiet:
    """A voice that breaks off after so many steps."""

    def __init__(self, steps: int = 10**9) -> None:
        self.left = steps

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Say nothing."""

    def log(self, message: str) -> None:
        """Say nothing."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    folder.mkdir()
    monkeypatch.setattr(climb_process, "RECIPE", {**climb_process.RECIPE, **CHOICES})
    return Request.read(str(climb_process.write_request(folder)))


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    parts = sorted((folder / "out" / table).glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def place(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["update"], row["group"], row["sample"]


@torch.no_grad()
def by_hand(model: Any, prompt: list[int], tokens: list[int]) -> np.ndarray:
    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    logprobs = (logits / TEMPERATURE).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy()


def test_tokens_have_the_log_probabilities_of_both_sides_and_outlive_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    asked = request(whole, monkeypatch)
    make_climb(Context(asked, Quiet()))
    tokens = rows(whole, "tokens")
    rollouts = {place(row): row for row in rows(whole, "rollouts")}

    trained = {at for at, row in rollouts.items() if row["status"] == "trained" and row["graded"]}
    assert {place(row) for row in tokens} <= trained
    model, tokenizer, _ = load_model(Artifact(asked.inputs["checkpoint"].uri))
    first = [r for r in tokens if r["learner_version"] == r["learner_steps"] == 0]
    assert first
    for row in first:
        prompt = tokenizer.encode(rollouts[place(row)]["prompt"])
        expected = by_hand(model, prompt, row["tokens"])
        np.testing.assert_allclose(row["learner_logprob"], expected, atol=1e-5)
        np.testing.assert_allclose(row["logprob"], expected, atol=1e-5)
    for row in tokens:
        assert "".join(row["pieces"]) == rollouts[place(row)]["response"]
        assert set(row["version"]) == {rollouts[place(row)]["version"]}
        assert len(row["tokens"]) == len(row["drawn"]) == len(row["learner_logprob"])
    gap = [np.abs(np.subtract(r["learner_logprob"], r["logprob"])).max() for r in tokens]
    ahead = [bool(r["learner_steps"]) for r in tokens]
    assert max(g for g, a in zip(gap, ahead, strict=True) if not a) < 1e-5
    assert max(g for g, a in zip(gap, ahead, strict=True) if a) > 1e-4

    again = request(cut, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make_climb(Context(again, Quiet(steps=5)))
    assert (cut / "out" / "tokens" / "part-00002.parquet").exists()
    make_climb(Context(again, Quiet()))
    assert rows(cut, "tokens") == tokens


def sample(number: int, drawn: list[bool]) -> Sample:
    count = len(drawn)
    return Sample(
        np.zeros(3, np.int32), np.arange(count, dtype=np.int32), np.asarray(drawn),
        np.zeros(count, np.float32), Nuclei.free(count), 0.5,
        np.zeros(count, np.int32), number=number,
    )  # fmt: skip


drawn_masks = st.lists(st.booleans(), min_size=1, max_size=9).map(lambda mask: [True, *mask])


@given(st.lists(drawn_masks, min_size=1, max_size=12), st.integers(1, 60), st.booleans())
def test_each_rollout_gets_its_own_tokens_and_the_bound_holds(
    masks: list[list[bool]], most: int, packed: bool
) -> None:
    samples = tuple(sample(i, mask) for i, mask in enumerate(masks))
    group = Group(samples, 0, 0.5, update=4, number=2)
    batches = micro_batches(samples, 30, False, packed)
    seen = [batch.targets.float() for batch in batches]
    found = learned_from([group], seen, batches, 5, 1, most)
    for each in found:
        expected = each.sample.tokens[each.sample.drawn]
        assert each.logprobs.tolist() == expected.tolist()
        assert (each.update, each.group, each.learner_version) == (4, 2, 5)
    assert found == [] or len(found) == 1 or sum(len(f.sample.tokens) for f in found) <= most
    assert found
    if sum(map(len, masks)) <= most:
        assert [f.sample.number for f in found] == list(range(len(masks)))


def test_groups_that_wait_keep_the_names_of_their_rollouts() -> None:
    group = Group((sample(1, [True]), sample(5, [True])), 3, 0.5, update=7, number=2)
    arrays, meta = Buffer(4, [group]).state()
    again = Buffer.restore(4, arrays, meta).groups[0]
    assert (again.update, again.number) == (7, 2)
    assert [s.number for s in again.samples] == [1, 5]


@given(st.text(alphabet="aé日🙂 <|>\n", max_size=30))
def test_pieces_make_the_text(text: str) -> None:
    tokenizer = TOKENIZER
    tokens = tokenizer.encode_text(text)
    pieces = Pieces(tokenizer).of(tokens)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)
