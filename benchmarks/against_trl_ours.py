"""hillclimb's side of `against_trl.py`: the toy's climb, with the task's reward alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from climb_course import SPECIALIST, Start, arguments

from hillclimb.environments.sandbox import provider_for
from hillclimb.environments.tasks import Problem
from hillclimb.recipe.load import load_recipe
from hillclimb.rl.climb import Climb
from hillclimb.rl.policy import ROW
from hillclimb.rl.rollouts import Rollout, Sampler
from hillclimb.rollout.engine import SamplingParams
from hillclimb.rollout.opening import open_engine
from hillclimb.training import runtime
from hillclimb.training.learner import Learner

ALWAYS = {"rewards.language": 0, "rewards.length": 0, "stop.plateau_floor": 1}


class TimedSampler(Sampler):
    """A sampler that knows how long it took."""

    seconds = 0.0

    def run(self, problems: Sequence[Problem], params: SamplingParams, seed: int) -> list[Rollout]:
        """One rollout a problem."""
        started = time.perf_counter()
        rollouts = super().run(problems, params, seed)
        self.seconds += time.perf_counter() - started
        return rollouts


def main() -> None:
    """Climb until the steps are done, scoring on the way."""
    args = arguments()
    start = Start(args)
    routes = {"replay.routes": args.device == "cuda"}
    changes = {**routes, **args.settings}
    config = climb_config(changes, args.steps, args.max_tokens, args.learning_rate)
    start.warm(config["micro_batch_tokens"] // ROW, ROW, config["replay"]["routes"])
    beside = args.threads // 2 if config["staleness"]["ahead"] else 0
    runtime.start(args.threads - beside)
    learner = Learner(start.model, config["optimizer"], 2, config["balance_coefficient"])
    engine = open_engine(start.base, start.model, beside > 0, beside)
    sampler = TimedSampler(engine, start.tokenizer, start.template, provider_for())
    climb = Climb(
        config, learner, sampler, start.graders, {SPECIALIST: start.train}, {SPECIALIST: 1.0},
        args.seed,
    )  # fmt: skip
    course, due = start.course, args.every
    start.go()
    with closing(climb.run()) as updates:
        for rows, kept in updates:
            course.sampled += sum(one.rollout.drawn_tokens for one in kept)
            course.learned += int(sum(row["learned_tokens"] for row in rows))
            course.learning += sum(row["seconds_learning"] for row in rows)
            if len(climb.rows) >= due or climb.stop is not None:
                start.point(len(climb.rows))
                due = len(climb.rows) + args.every
    course.sampling = sampler.seconds or course.seconds
    course.gap = max(row["mismatch"] for row in climb.rows)
    engine.close()
    start.finish()
    runtime.stop()


def climb_config(
    changes: dict[str, Any], steps: int, max_tokens: int, learning_rate: float
) -> dict[str, Any]:
    """The climb's section of the toy's recipe; `changes` are of its fields."""
    place = f"specialists.{SPECIALIST}.climbs.0"
    fields = {**ALWAYS, "learning_rate": learning_rate, **changes}
    lengths = f"[{{max_tokens: {max_tokens}, steps: {steps}}}]"
    overrides = [f"{place}.{key}={value}" for key, value in fields.items()]
    recipe = load_recipe("toy", (*overrides, f"{place}.lengths={lengths}"))
    return dict(recipe.specialists[SPECIALIST].climbs[0].model_dump(mode="json"))


if __name__ == "__main__":
    main()
