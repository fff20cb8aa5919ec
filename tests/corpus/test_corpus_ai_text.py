"""The embedded AI-text scorer: small, free of pickle, as good as its card says."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hillclimb.corpus.ai_text import CARD, WEIGHTS, HashedNgramScorer, threshold, windows

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "hillclimb" / "corpus" / "data"


@pytest.fixture(scope="module")
def scorer() -> HashedNgramScorer:
    return HashedNgramScorer.load()


@pytest.fixture(scope="module")
def trainer() -> ModuleType:
    path = ROOT / "scripts" / "train_ai_text_scorer.py"
    spec = importlib.util.spec_from_file_location("train_ai_text_scorer", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_weights_are_small_and_hold_no_objects() -> None:
    assert (DATA / WEIGHTS).stat().st_size < 1 << 20
    with np.load(DATA / WEIGHTS, allow_pickle=False) as arrays:
        assert arrays["coefficients"].dtype == np.int8


def test_the_card_tells_all_and_quotes_nothing(scorer: HashedNgramScorer) -> None:
    for key in (
        "data",
        "calibration",
        "test",
        "auc_on_unseen_domain",
        "limits",
        "licence",
        "rebuild",
    ):
        assert key in scorer.card
    assert all("human" in part or part for part in scorer.card["data"]["parts"])
    assert (DATA / CARD).stat().st_size < 40_000


def test_a_threshold_bounds_the_rate() -> None:
    card = {"calibration": {"big": [i / 200 for i in range(200)], "small": [0.2, 0.999]}}
    limit = threshold(card, "big", 0.05)
    assert sum(score > limit for score in card["calibration"]["big"]) <= 0.05 * 200
    assert threshold(card, "big", 0.01) > limit
    assert threshold(card, "small", 0.05) == 0.999
    assert threshold(card, "unknown", 0.05) == 0.999


def test_windows_read_the_beginning() -> None:
    assert windows("") == []
    assert windows("short  text") == ["short text"]
    assert [len(piece) for piece in windows("word " * 4000)] == [1200] * 3


def test_scoring_is_fast(scorer: HashedNgramScorer) -> None:
    text = " ".join(f"word{i % 377} of {i}" for i in range(800))[:4000]
    start = time.process_time()
    scores = scorer.score([text] * 400)
    assert time.process_time() - start < 4
    assert scores.shape == (400,)
    assert np.ptp(scores) == 0


def test_saved_and_loaded_scores_agree(tmp_path: Path, scorer: HashedNgramScorer) -> None:
    scorer.save(tmp_path)
    text = ["The harbour was quiet that morning, and the boats lay along the wall."]
    again = HashedNgramScorer.load(tmp_path)
    assert again.score(text) == pytest.approx(scorer.score(text), abs=1e-9)
    assert (tmp_path / WEIGHTS).read_bytes() == (DATA / WEIGHTS).read_bytes()


def test_the_card_is_right_about_the_test_part(
    shared_data: Path, trainer: ModuleType, scorer: HashedNgramScorer
) -> None:
    pairs = shared_data / "aitext" / "ai_vs_human_dev.jsonl.gz"
    test = [e for e in trainer.read_pairs(pairs) if trainer.part_of(e.pair) == "test"]
    for domain, group in trainer.by_domain(test).items():
        stated = scorer.card["test"]["auc_by_domain"][domain]
        measured = trainer.auc(group, scorer)
        assert measured == pytest.approx(stated, abs=0.002) if stated else measured is None
    assert scorer.card["test"]["auc_by_domain"]["qa-essay"] > 0.9
    assert scorer.card["test"]["auc_domains_with_both_labels"] > 0.85
    human = [example.text for example in test if not example.ai]
    domains = [example.domain for example in test if not example.ai]
    limits = [threshold(scorer.card, domain, 0.01) for domain in domains]
    assert len(human) > 100
    assert (scorer.score(human) > np.array(limits)).mean() <= 0.02


def test_only_rows_whose_rights_allow_it_are_fitted(trainer: ModuleType) -> None:
    assert trainer.usable("CC-BY-4.0", False)
    assert trainer.usable("public-domain-US (Project Gutenberg)", False)
    assert not trainer.usable("CC-BY-NC-4.0", False)
    assert not trainer.usable("unknown", False)
    half = "AI half MIT; human half third-party (detector test only)"
    assert trainer.usable(half, True)
    assert not trainer.usable(half, False)
