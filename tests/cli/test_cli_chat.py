"""Talking to a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import SMALL, Cli

from hillclimb.artifacts.store import ArtifactWriter
from hillclimb.recipe.load import load_recipe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small untrained model and its tokenizer."""
    from hillclimb.model.configuration import MaiConfig
    from hillclimb.model.modeling import MaiForCausalLM
    from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer
    from hillclimb.stages.models import save_model

    folder = tmp_path_factory.mktemp("chat")
    tokenizer = TextTokenizer(train_tokenizer(["three plus four is seven"] * 3, 300))
    shape = load_recipe(SMALL).model.model_dump()
    config = MaiConfig.from_recipe(shape, tokenizer.vocab_size)
    save_model(ArtifactWriter(str(folder)), MaiForCausalLM(config).initialise(0), tokenizer, "zero")
    return folder


def test_one_question_has_one_answer_for_a_seed(cli: Cli, checkpoint: Path) -> None:
    ask = ("chat", checkpoint, "--recipe", SMALL, "--prompt", "3+4=?")
    first, again, other = cli(*ask), cli(*ask), cli(*ask, "--seed", "5")
    assert first.exit_code == 0, first.output
    assert first.stdout == again.stdout != other.stdout
    assert len(first.stdout) > 1


def test_a_conversation_ends_with_an_empty_line(cli: Cli, checkpoint: Path) -> None:
    done = cli("chat", checkpoint / "model", "--recipe", SMALL, input="3+4=?\n5+1=?\n\n")
    assert done.exit_code == 0
    assert sum(line.startswith("> ") for line in done.stdout.splitlines()) == 3


def test_a_folder_without_a_model_is_refused(cli: Cli, tmp_path: Path) -> None:
    done = cli("chat", tmp_path, "--recipe", SMALL, "--prompt", "hello")
    assert done.exit_code == 2
    assert "has no config.json" in done.stderr
