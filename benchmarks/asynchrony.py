"""Asynchronous against synchronous climbs on one budget: `python benchmarks/asynchrony.py`.

The controller is the real one: prompts, early exit, filters, buffer, weight updates, staleness.
Simulated are the engine, whose slots draw one token a `TOKEN` each whatever they cost, and the
learner's step, which sleeps. Both modes have the same slots, the same number of prompts at a time,
the same step and the same number of steps. Response lengths are log-normal, cut at `LONGEST`.
"""

from __future__ import annotations

import argparse
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
from hillclimb.rollout.nuclei import Nuclei

SLOTS, TOKEN, MEAN, LONGEST = 64, 0.01, 60, 240
STEPS_PER_UPDATE, PROMPTS = 2, 16


@dataclass
class Plan:
    """A rollout that the engine draws: what it will say, and how much of that it has said."""

    says: list[int]
    said: float = 0.0
    ended: bool = False


class SlotEngine:
    """Draws one token in `TOKEN` seconds in each of its slots, first come, first served."""

    def __init__(self, tokenizer: TextTokenizer, sigma: float) -> None:
        self.tokenizer, self.sigma, self.version = tokenizer, sigma, 0
        self.right, self.wrong = (
            tokenizer.encode(f"</think><answer>{answer}</answer>") for answer in ("5/7", "1/7")
        )
        self.filler = tokenizer.encode(" a")[:1]
        self.waiting: deque[Plan] = deque()
        self.drawing: list[Plan] = []
        self.begun: dict[tuple[int, ...], list[Plan]] = defaultdict(list)
        self.busy, self.tokens, self.interrupts, self.closed = 0.0, 0, 0, False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._draw)
        self.thread.start()

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        self.version = version

    def interrupt(self) -> None:
        with self.changed:
            self.interrupts += 1
            self.changed.notify_all()

    def close(self) -> None:
        self.closed = True
        self.thread.join()

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        """What was interrupted before goes on as it was planned then."""
        rng = np.random.default_rng(seed)
        with self.changed:
            version, interrupts = self.version, self.interrupts
            plans = [self._plan(tuple(prompt), rng) for prompt in prompts]
            before = [int(plan.said) for plan in plans]
            self.waiting.extend(plans)
            while not all(plan.ended for plan in plans) and interrupts == self.interrupts:
                self.changed.wait()
            done = []
            for prompt, plan, start in zip(prompts, plans, before, strict=True):
                tokens = plan.says[start : int(plan.said)]
                done.append(self._completion(tokens, plan.ended, version))
                if not plan.ended:
                    plan.ended = True  # leaves its slot
                    rest = Plan(plan.says, plan.said)
                    self.begun[(*prompt, *tokens)].append(rest)
            return done

    def _plan(self, prompt: tuple[int, ...], rng: np.random.Generator) -> Plan:
        if self.begun[prompt]:
            return self.begun[prompt].pop()
        mean = math.log(MEAN) - self.sigma**2 / 2
        answer = self.right if rng.random() < 0.45 else self.wrong
        length = int(min(LONGEST, rng.lognormal(mean, self.sigma))) - len(answer)
        return Plan(self.filler * max(1, length) + answer)

    def _completion(self, tokens: list[int], ended: bool, version: int) -> Completion:
        finish = "stop" if ended else "interrupted"
        zeros = np.zeros(len(tokens), np.float32)
        return Completion(tokens, zeros, Nuclei.free(len(tokens)), finish, version)

    def _draw(self) -> None:
        last = time.perf_counter()
        while not self.closed:
            time.sleep(TOKEN)
            now = time.perf_counter()
            with self.changed:
                for plan in self.drawing:
                    plan.said = min(len(plan.says), plan.said + (now - last) / TOKEN)
                    plan.ended |= plan.said == len(plan.says)
                self.busy += len(self.drawing) * (now - last)
                self.drawing = [plan for plan in self.drawing if not plan.ended]
                while self.waiting and len(self.drawing) < SLOTS:
                    if not (plan := self.waiting.popleft()).ended:
                        self.drawing.append(plan)
                self.changed.notify_all()
            last = now


class SleepingLearner:
    """A learner whose step takes a time of its own."""

    def __init__(self, model: MaiForCausalLM, seconds: float) -> None:
        self.model, self.seconds = model, seconds

    def step(self, batches: Any, loss: Any, learning_rate: float) -> dict[str, float]:
        time.sleep(self.seconds)
        loss.seen += [batch.drawn.engine for batch in batches]
        names = ("entropy", "trust_clipped", "outer_clipped", "weight_capped", "mismatch")
        return {**dict.fromkeys(names, 0.0), "grad_norm": 1.0, "balance_loss": 0.0}


def main() -> None:
    """Print a line a mode, and their ratio, for each spread of lengths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--step-seconds", type=float, default=0.13)
    args = parser.parse_args()
    tokenizer = TextTokenizer(train_tokenizer(["what a 0123456789/"], 300))
    print(
        f"{SLOTS} slots, {PROMPTS} prompts at a time, {args.steps} steps of {args.step_seconds} s"
    )
    print("sigma  ahead    wall  engine busy  learner waits  engine waits  gen/learn  stale   age")
    for sigma in args.sigmas:
        walls = [climb(tokenizer, sigma, ahead, args.steps, args.step_seconds) for ahead in (0, 1)]
        print(f"{sigma:5.1f}  asynchronous is {walls[0] / walls[1]:.2f} times as fast")


def climb(
    tokenizer: TextTokenizer, sigma: float, ahead: int, steps: int, step_seconds: float
) -> float:
    """Seconds of a climb."""
    model = MaiForCausalLM(MaiConfig(vocab_size=tokenizer.vocab_size, hidden_size=16))
    engine, learner = SlotEngine(tokenizer, sigma), SleepingLearner(model, step_seconds)
    recipe = ClimbRecipe.model_validate(
        {
            "groups": {"early": 4, "full": 16, "early_window": [0.05, 0.8]},
            "staleness": {"steps_per_update": STEPS_PER_UPDATE, "ahead": ahead},
            "lengths": [{"max_tokens": LONGEST + 20, "steps": steps}],
            "batch_groups": 4, "prompts_per_update": PROMPTS, "micro_batch_tokens": 65536,
            "stop": {"halt": []},
        }
    )  # fmt: skip
    task = {"grader": "answer", "answer": "5/7"}
    problems = [Problem(str(q), "stem", "sum", str(q), f"what {q}", task) for q in range(1000)]
    sampler = Sampler(engine, tokenizer, "zero", BubblewrapProvider())
    with Graders() as graders:
        made = Climb(
            recipe.model_dump(mode="json"), learner, sampler, graders,  # type: ignore[arg-type]
            {"stem": problems}, {"stem": 1.0}, 0,
        )  # fmt: skip
        started = time.perf_counter()
        for _ in made.run():
            continue
        wall = time.perf_counter() - started
    engine.close()
    report(made, engine, wall, sigma, ahead, steps * step_seconds)
    return wall


def report(
    made: Climb, engine: SlotEngine, wall: float, sigma: float, ahead: int, learning: float
) -> None:
    """One line."""
    updates = list({row["update"]: row for row in made.rows}.values())
    seconds = sum(row["seconds"] for row in updates)
    waits = [
        sum(row[key] * row["seconds"] for row in updates) / seconds
        for key in ("learner_waited", "generation_waited")
    ]
    stale = sum(row["groups_stale"] for row in updates)
    age = sum(row["age_mean"] for row in made.rows) / len(made.rows)
    drawing = engine.busy / SLOTS
    print(
        f"{sigma:5.1f}  {ahead:5d}  {wall:5.1f}s  {drawing / wall:11.0%}  {waits[0]:13.0%}"
        f"  {waits[1]:12.0%}  {drawing / learning:9.1f}  {stale:5.0f}  {age:4.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
