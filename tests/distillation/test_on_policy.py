"""A student that learns from what its teachers say of its own rollouts comes near them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hillclimb.artifacts import ArtifactWriter
from hillclimb.distillation.on_policy import OnPolicyDistiller, Teacher
from hillclimb.environments.sandbox import BubblewrapProvider
from hillclimb.environments.tasks import Problem
from hillclimb.environments.templates import Template, render
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer, train_tokenizer
from hillclimb.recipe.climb import OnPolicyDistillation
from hillclimb.rl.rollouts import Sampler
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.torch_engine import TorchEngine
from hillclimb.training import runtime
from hillclimb.training.learner import Learner

SHARES = {"stem": 0.4, "helpfulness": 0.6}
ASKS = {"stem": "what", "helpfulness": "abc abc abc"}
CONFIG = OnPolicyDistillation(
    learning_rate=5e-3, steps=30, batch_prompts=32, max_tokens=12, micro_batch_tokens=2048,
    checkpoint_every=3,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def ranks() -> Iterator[None]:
    runtime.start()
    yield
    runtime.stop()


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(train_tokenizer(["what 0123456789 abc"], 300))


def network(tokenizer: TextTokenizer) -> MaiForCausalLM:
    config = MaiConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, dense_ffn_size=64, latent_size=16,
        expert_ffn_size=32, num_experts=4, head_dim=8, zero_init_attention=False,
        initializer_range=0.1, embedding_range=0.2,
    )  # fmt: skip
    return MaiForCausalLM(config).initialise(0)


def teacher(tokenizer: TextTokenizer, template: Template) -> Teacher:
    """A student that was pushed about: it likes other tokens, and is surer of them."""
    model, generator = network(tokenizer), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * parameter.std() * torch.randn(parameter.shape, generator=generator)
        model.norm.weight *= 2.0
    return Teacher(model, template)


def distiller(
    tokenizer: TextTokenizer, config: OnPolicyDistillation, templates: tuple[Template, Template]
) -> OnPolicyDistiller:
    model = network(tokenizer)
    problems = {
        name: [Problem(f"{name}{i}", name, "k", "k", f"{ASKS[name]} {i}", {}) for i in range(9)]
        for name in SHARES
    }
    teachers = {
        name: teacher(tokenizer, template) for name, template in zip(SHARES, templates, strict=True)
    }
    learner = Learner(model, config.optimizer.model_dump(), 2, 1e-5)
    sampler = Sampler(TorchEngine(model), tokenizer, "zero", BubblewrapProvider())
    plain = config.model_dump(mode="json")
    return OnPolicyDistiller(learner, sampler, teachers, problems, SHARES, plain, seed=1)


def reverse_kl(made: OnPolicyDistiller, name: str) -> float:
    """Exact, token by token along fresh answers of the student, in nats a token."""
    student, told = made.learner.model.eval(), made.teachers[name]
    tokenizer, found = made.sampler.tokenizer, []
    for problem in made.problems[name]:
        prompt, other = (
            tokenizer.encode(render(problem.question, t)) for t in ("zero", told.template)
        )
        (done,) = TorchEngine(student).generate([prompt], SamplingParams(12, top_p=1.0), 3)
        with torch.no_grad():
            p, q = (
                m(torch.tensor([start + done.tokens]))
                .logits[0, len(start) - 1 : -1]
                .log_softmax(-1)
                for m, start in ((student, prompt), (told.model.eval(), other))
            )
        found.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(found).mean())


@pytest.mark.slow("thirty steps on fresh rollouts")
def test_the_reverse_kl_to_every_teacher_falls_to_a_half(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    made = distiller(tokenizer, CONFIG, ("zero", "chat"))
    before = {name: reverse_kl(made, name) for name in SHARES}
    rows = list(made.run(ArtifactWriter(str(tmp_path))))
    after = {name: reverse_kl(made, name) for name in SHARES}
    print({name: (round(before[name], 3), round(after[name], 3)) for name in SHARES})
    for name in SHARES:
        assert after[name] < before[name] / 2
    assert np.mean([row["loss"] for row in rows[-5:]]) < rows[0]["loss"] / 2
    assert max(row["mismatch"] for row in rows) < 1e-4
    assert made.queue.taken == {"stem": 384, "helpfulness": 576}


def test_a_student_has_nothing_to_learn_from_itself(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    made = distiller(tokenizer, CONFIG.model_copy(update={"steps": 1}), ("zero", "zero"))
    itself = Teacher(copy.deepcopy(made.learner.model), "zero")
    made.teachers = dict.fromkeys(SHARES, itself)
    (row,) = made.run(ArtifactWriter(str(tmp_path)))
    assert abs(row["loss"]) < 1e-5
    assert row["grad_norm"] < 1e-3


def test_a_distillation_that_is_cut_off_goes_on_to_the_same_weights(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"steps": 6, "batch_prompts": 8})
    whole = distiller(tokenizer, config, ("zero", "zero"))
    list(whole.run(ArtifactWriter(str(tmp_path / "whole"))))
    cut, out = distiller(tokenizer, config, ("zero", "zero")), tmp_path / "cut"
    steps = cut.run(ArtifactWriter(str(out)))
    for _ in range(5):
        next(steps)
    steps.close()
    again = distiller(tokenizer, config, ("zero", "zero"))
    rows = list(again.run(ArtifactWriter(str(out))))
    assert [row["step"] for row in rows] == [4, 5, 6]
    assert again.rows == whole.rows
    for left, right in zip(
        again.learner.model.parameters(), whole.learner.model.parameters(), strict=True
    ):
        assert torch.equal(left, right)
