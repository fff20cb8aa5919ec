"""Climbs over an engine that says what it is told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

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
from hillclimb.rl.metrics import Kept
from hillclimb.rl.rollouts import Sampler
from hillclimb.rollout.engine import Completion, SamplingParams
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.training.learner import Learner

RIGHT, WRONG, HANGS = "<answer>5/7</answer>", "<answer>1/7</answer>", "<answer>999999999!</answer>"
BOXED = r"\boxed{5/7}"
MIXED, EASY, HARD = [RIGHT, WRONG], [RIGHT], [WRONG]
RECIPE = {
    "groups": {"early": 4, "full": 8},
    "lengths": [{"max_tokens": 64, "steps": 1}],
    "batch_groups": 1,
    "prompts_per_update": 1,
    "staleness": {"steps_per_update": 1},
    "micro_batch_tokens": 4096,
    "stop": {"max_mismatch": 1e-4},
}


class Parrot:
    """Says the texts that a question asks for in turn, with the model's log-probabilities."""

    def __init__(
        self, model: MaiForCausalLM, tokenizer: TextTokenizer, says: dict[str, list[str]]
    ) -> None:
        self.model, self.tokenizer, self.says, self.version = model, tokenizer, says, 0

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        self.version = version

    def interrupt(self) -> None:
        """An answer is never under way for long."""

    def close(self) -> None:
        """Nothing is held."""

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        asked: Counter[str] = Counter()
        done = []
        for prompt in prompts:
            text = self.tokenizer.decode(prompt)
            question = next(q for q in self.says if f"what {q}\n" in text)
            done.append(self._say(prompt, self.says[question], asked[question]))
            asked[question] += 1
        return done

    @torch.no_grad()
    def _say(self, prompt: list[int], texts: list[str], turn: int) -> Completion:
        said = self.tokenizer.encode(f"</think>{texts[turn % len(texts)]}")
        logits = self.model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        chances = logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])[:, 0]
        return Completion(said, chances.numpy(), Nuclei.free(len(said)), "stop", self.version)


def make_tokenizer() -> TextTokenizer:
    return TextTokenizer(train_tokenizer(["what f(x) 0123456789/! boxed{}\\"], 300))


def make_learner(tokenizer: TextTokenizer) -> Learner:
    """Always the same untrained model."""
    config = MaiConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, dense_ffn_size=64, latent_size=16,
        expert_ffn_size=32, num_experts=4, head_dim=8,
    )  # fmt: skip
    optimizer = ClimbRecipe.model_validate(RECIPE).optimizer.model_dump()
    return Learner(MaiForCausalLM(config).initialise(0), optimizer, 2, 0.0)


def pool(*mixed: int, size: int = 12) -> dict[str, list[str]]:
    """Problems, of which these can be learnt from."""
    return {f"{q}x": MIXED if q in mixed else EASY for q in range(size)}


def own_network(learner: Learner) -> MaiForCausalLM:
    """A copy of the learner's network, as an engine in another process has one."""
    network = MaiForCausalLM(learner.model.config)
    network.load_state_dict(learner.model.state_dict())
    return network


def climbed(
    learner: Learner, tokenizer: TextTokenizer, says: dict[str, list[str]],
    task: dict[str, Any] | None = None, **choices: Any,
) -> tuple[Climb, list[list[Kept]]]:  # fmt: skip
    """A climb that has ended, and the rollouts of its updates."""
    parrot = Parrot(learner.model, tokenizer, says)
    with Graders() as graders:
        climb = make_climb(learner, parrot, graders, task or {}, **choices)
        return climb, [kept for _, kept in climb.run()]


def make_climb(
    learner: Learner, parrot: Parrot, graders: Graders, task: dict[str, Any], **choices: Any
) -> Climb:
    """A climb on the parrot's questions, over the smallest recipe but for some choices."""
    config = ClimbRecipe.model_validate({**RECIPE, **choices}).model_dump(mode="json")
    problems = [
        Problem(q, "stem", "fraction", q, f"what {q}",
                {"grader": "math", "answer": "5/7", **task})
        for q in parrot.says
    ]  # fmt: skip
    sampler = Sampler(parrot, parrot.tokenizer, "zero", BubblewrapProvider())
    return Climb(config, learner, sampler, graders, {"stem": problems}, {"stem": 1.0}, 0)
