"""TRL's side of `against_trl.py`, in TRL's own environment: `GRPOTrainer` on the same start."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from climb_course import Start, arguments
from datasets import Dataset
from hf_mai import COLUMNS, HfMai
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hillclimb.environments.episodes import Ending
from hillclimb.environments.templates import STOP_TOKENS, render
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import END_OF_TEXT
from hillclimb.rl.rollouts import Rollout
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.torch_engine import TorchEngine

OPTIMIZER = {"adam_beta1": 0.95, "adam_beta2": 0.95, "adam_epsilon": 1e-15, "weight_decay": 0.0}
SETTINGS: dict[str, Any] = {
    "num_generations": 16,
    "steps_per_generation": 1,
    "temperature": 1.0,
    "top_p": 0.97,
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "max_grad_norm": 1.0,
}
QUIET = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}


class Watched(GRPOTrainer):
    """A trainer that tells the course what it did."""

    start: Start

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        completions, logprobs = super()._generate_single_turn(*args, **kwargs)
        course = self.start.course
        course.sampling += time.perf_counter() - started
        course.sampled += sum(len(ids) for ids in completions)
        return completions, logprobs

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        sizes = inputs["prompt_mask"].sum(1) + inputs["completion_mask"].sum(1)
        course = self.start.course
        course.learned += int(sizes.sum())
        course.idle += int(sizes[inputs["advantages"] == 0].sum())
        return super()._compute_loss(model, inputs)


class Scoring(TrainerCallback):
    """Scores at fixed steps, off the clock."""

    def __init__(self, start: Start, every: int) -> None:
        self.start, self.every = start, every

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts."""
        self.start.go()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every so many steps, and after the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.start.point(state.global_step)


def main() -> None:
    """Train until the steps are done, scoring on the way."""
    args = arguments()
    start = Start(args)
    start.warm(args.settings["per_device_train_batch_size"], COLUMNS)
    model = HfMai(start.model)
    stops = [start.tokenizer.ids[token] for token in STOP_TOKENS]
    model.generation_config.eos_token_id = stops
    start.course.gap = largest_gap(model, start, stops)
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder, seed=args.seed, max_steps=args.steps, learning_rate=args.learning_rate,
            lr_scheduler_type="constant", max_completion_length=args.max_tokens,
            use_cpu=args.device == "cpu", bf16=False, gradient_checkpointing=False,
            **{**OPTIMIZER, **QUIET, **SETTINGS, **args.settings},
        )  # fmt: skip
        rows = [
            {"prompt": render(problem.question, start.template), "index": index}
            for index, problem in enumerate(start.train)
        ]
        trainer = Watched(
            model, reward_of(start), config, Dataset.from_list(rows),
            processing_class=tokenizer_of(start), callbacks=[Scoring(start, args.every)],
        )  # fmt: skip
        trainer.start = start
        trainer.train()
    course = start.course
    course.learning = course.seconds - course.sampling - course.grading
    start.finish()


def tokenizer_of(start: Start) -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer in transformers' clothes."""
    return PreTrainedTokenizerFast(
        tokenizer_object=start.tokenizer.tokenizer, eos_token=STOP_TOKENS[0], pad_token=END_OF_TEXT,
        padding_side="left",
    )  # fmt: skip


def reward_of(start: Start) -> Any:
    """The task's reward: the graders that hillclimb's climb asks."""

    def task(completion_ids: list[list[int]], index: list[int], **_: Any) -> list[float | None]:
        texts = [start.tokenizer.decode(ids) for ids in completion_ids]
        rollouts = [
            Rollout(start.train[i], [], ending=Ending(text, text))
            for i, text in zip(index, texts, strict=True)
        ]
        start.graders.grade(rollouts)
        return [rollout.graded.score if rollout.graded else None for rollout in rollouts]

    return task


@torch.no_grad()
def largest_gap(model: HfMai, start: Start, stops: list[int]) -> float:
    """Largest difference of log-probabilities between `generate` with its cache, and ours.

    The sixteen prompts are of different lengths, and some of the answers run out of the window.
    """
    asked = [start.tokenizer.encode(render(p.question, start.template)) for p in start.train[:16]]
    mai: MaiForCausalLM = start.model.eval()
    done = TorchEngine(mai).generate(asked, SamplingParams(96, greedy=True), 0)
    width, device = max(map(len, asked)), mai.device
    pads = [width - len(prompt) for prompt in asked]
    ids = torch.tensor([[0] * n + prompt for n, prompt in zip(pads, asked, strict=True)])
    mask = torch.tensor([[0] * n + [1] * (width - n) for n in pads])
    found = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), do_sample=False,
        max_new_tokens=96, min_new_tokens=96, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    logprobs = torch.stack(found.logits, 1).log_softmax(-1).cpu()
    gaps = [0.0]
    for row, answer in enumerate(done):
        drawn = found.sequences[row, width:].tolist()
        same = next((i for i, (a, b) in enumerate(zip(drawn, answer.tokens)) if a != b), 96)  # noqa: B905
        mine = torch.tensor(answer.logprobs[:same])
        theirs = logprobs[row, torch.arange(same), torch.tensor(drawn[:same], dtype=torch.long)]
        gaps.append(float((mine - theirs).abs().max()) if same else 0.0)
    return max(gaps)


if __name__ == "__main__":
    main()
