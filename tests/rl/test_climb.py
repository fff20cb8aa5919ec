"""A climb over an engine that says what it is told to: what becomes of answers nobody can grade."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from hillclimb.environments.sandbox import BubblewrapProvider
from hillclimb.environments.tasks import Problem
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer
from hillclimb.recipe.climb import ClimbRecipe
from hillclimb.rl.climb import Climb
from hillclimb.rl.grading import Graders
from hillclimb.rl.rollouts import Sampler
from hillclimb.rollout.engine import Completion, SamplingParams
from hillclimb.training import runtime
from hillclimb.training.learner import Learner

RIGHT, WRONG, HANGS = "5/7", "1/7", "999999999!"
RECIPE = ClimbRecipe.model_validate(
    {
        "groups": {"early": 4, "full": 8},
        "lengths": [{"max_tokens": 64, "steps": 1}],
        "batch_groups": 1,
        "prompts_per_update": 1,
        "staleness": {"steps_per_update": 1},
        "micro_batch_tokens": 4096,
        "stop": {"max_mismatch": 1e-4},
    }
)


class Parrot:
    """Gives the same texts in turn, with the log-probabilities that the model gives them."""

    def __init__(self, model: MaiForCausalLM, tokenizer: TextTokenizer, says: list[str]) -> None:
        self.model, self.tokenizer, self.says, self.version = model, tokenizer, says, 0

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        self.version = version

    def close(self) -> None:
        """Nothing is held."""

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        return [
            self._say(prompt, self.says[i % len(self.says)]) for i, prompt in enumerate(prompts)
        ]

    @torch.no_grad()
    def _say(self, prompt: list[int], answer: str) -> Completion:
        said = self.tokenizer.encode(f"</think><answer>{answer}</answer>")
        logits = self.model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        chances = logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])[:, 0]
        every = np.packbits(np.ones((len(said), logits.shape[1]), bool), axis=-1)
        return Completion(said, chances.numpy(), every, "stop", self.version)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(train_tokenizer(["what f(x) 0123456789/!"], 300))


@pytest.fixture
def learner(tokenizer: TextTokenizer) -> Iterator[Learner]:
    config = MaiConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, dense_ffn_size=64, latent_size=16,
        expert_ffn_size=32, num_experts=4, head_dim=8,
    )  # fmt: skip
    runtime.start()
    yield Learner(MaiForCausalLM(config).initialise(0), RECIPE.optimizer.model_dump(), 2, 0.0)
    runtime.stop()


def test_an_answer_that_hangs_its_grader_is_ungraded_and_the_climb_goes_on(
    learner: Learner, tokenizer: TextTokenizer
) -> None:
    problem = Problem("p", "stem", "fraction", "k", "what", {"grader": "math", "answer": RIGHT})
    engine = Parrot(learner.model, tokenizer, [RIGHT, WRONG, HANGS, WRONG])
    sampler = Sampler(engine, tokenizer, "zero", BubblewrapProvider())
    before = learner.model.embed.weight.detach().clone()
    with Graders() as graders:
        config = RECIPE.model_dump()
        climb = Climb(config, learner, sampler, graders, {"stem": [problem]}, {"stem": 1.0}, 0)
        ((rows, kept), *_) = climb.run()
    assert rows[0]["ungraded"] == 2
    assert [k.parts.task if k.parts else None for k in kept] == [1.0, 0.0, None, 0.0] * 2
    assert rows[0]["pass_rate"] == pytest.approx(1 / 3)
    assert rows[0]["reward_task"] == pytest.approx(2 / 6)
    assert climb.stop is not None
    assert climb.stop.reason == "steps"
    assert not torch.equal(before, learner.model.embed.weight)
