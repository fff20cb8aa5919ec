"""The course of one climb against the clock, whoever climbs: what `against_trl.py` compares."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import held_out
import psutil
import torch
from torch import Tensor

from hillclimb.artifacts import Artifact
from hillclimb.environments.tasks import Problem
from hillclimb.environments.templates import Template
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.tokenizer import TextTokenizer
from hillclimb.rl.grading import Graders
from hillclimb.rl.rollouts import Rollout
from hillclimb.stages.models import load_model

SPECIALIST, SAMPLES = "stem", 2


@dataclass
class Point:
    """Where a climb was; `pass_at_1` is of sampled answers.

    Attributes:
        cpu: seconds of processor time of the side's processes, which depend less on what else the
            machine does.
    """

    step: int
    seconds: float
    cpu: float
    pass_at_1: float
    greedy: float


@dataclass
class Course:
    """What a climb did, and how long it took over it.

    Attributes:
        sampling, learning, grading: seconds of them.
        sampled: tokens drawn. learned: tokens of prompts and answers in gradient steps, without
            padding; `idle` of them in groups without an advantage.
    """

    side: str
    seed: int
    settings: dict[str, Any]
    points: list[Point] = field(default_factory=list)
    seconds: float = 0.0
    sampling: float = 0.0
    learning: float = 0.0
    grading: float = 0.0
    sampled: int = 0
    learned: int = 0
    idle: int = 0
    gap: float = 0.0
    load: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Course:
        """What `write` wrote."""
        values = json.loads(path.read_text())
        return cls(**{**values, "points": [Point(**point) for point in values["points"]]})


class TimedGraders(Graders):
    """Graders that know how long they took."""

    seconds = 0.0

    def grade(self, rollouts: Sequence[Rollout]) -> None:
        """Set `graded` of every rollout."""
        started = time.perf_counter()
        super().grade(rollouts)
        self.seconds += time.perf_counter() - started


class Start:
    """What both sides begin with: a model with its tokenizer, problems, graders, a clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)
        base = (
            held_out.artifact(args.root, "mai_base_256k")
            if args.base is None
            else Artifact(args.base)
        )
        self.base = base
        self.model: MaiForCausalLM
        self.tokenizer: TextTokenizer
        self.template: Template
        self.model, self.tokenizer, self.template = load_model(base)
        self.model.to(args.device)  # type: ignore[arg-type]
        self.train: list[Problem] = held_out.problems(args.root, SPECIALIST, "train")
        self.asked = held_out.problems(args.root, SPECIALIST, "held_out")
        self.graders = TimedGraders()
        self.args, self.course = args, Course(args.side, args.seed, args.settings)
        self._began = self._aside = (0.0, 0.0)
        self._taken: list[tuple[int, tuple[float, float], dict[str, Tensor]]] = []

    def warm(self, rows: int, columns: int, routed: bool = False) -> None:
        """Have what learns from such a batch compiled before the clocks go, on a GPU."""
        if self.args.device != "cuda":
            return
        ids = torch.zeros(rows, columns, dtype=torch.long, device="cuda")
        config, routes = self.model.config, None
        if routed:
            shape = (rows, columns, len(self.model.moe_layers()), config.num_experts_per_tok)
            routes = torch.full(shape, -1, dtype=torch.int16, device="cuda")
        self.model.train()
        self.model.hidden(ids, torch.zeros_like(ids), routes=routes).sum().backward()
        self.model.zero_grad()

    def go(self) -> None:
        """Set the clocks going."""
        self._began = _clocks()
        self.point(0)

    def point(self, step: int) -> None:
        """Keep the weights of now, to be scored at the end; the copy does not count."""
        if self.args.device == "cuda":
            torch.cuda.synchronize()
        now = _clocks()
        passed = (
            now[0] - self._began[0] - self._aside[0],
            now[1] - self._began[1] - self._aside[1],
        )
        weights = {n: t.detach().cpu().clone() for n, t in self.model.state_dict().items()}
        self._taken.append((step, passed, weights))
        self.course.seconds, self.course.grading = passed[0], self.graders.seconds
        after = _clocks()
        self._aside = (self._aside[0] + after[0] - now[0], self._aside[1] + after[1] - now[1])

    def finish(self) -> None:
        """Score what was kept, and write the course down."""
        self.course.load = os.getloadavg()
        for step, (seconds, cpu), weights in self._taken:
            self.model.load_state_dict(weights)
            found = held_out.score(
                self.model, self.tokenizer, self.template, self.graders, self.asked,
                self.args.max_tokens, SAMPLES,
            )  # fmt: skip
            self.course.points.append(Point(step, seconds, cpu, found.pass_at_1, found.greedy))
            scores = f"{found.pass_at_1:.3f} sampled, {found.greedy:.3f} greedy"
            print(f"{self.args.side} {self.args.seed}: step {step}, {seconds:.1f} s, {scores}")
        self.course.write(self.args.out)
        self.graders.stop()


def _clocks() -> tuple[float, float]:
    """Seconds of the wall, and of processors in this process and those below it."""
    me = psutil.Process()
    times = [one.cpu_times() for one in (me, *me.children(recursive=True))]
    return time.perf_counter(), sum(t.user + t.system for t in times)


def arguments() -> argparse.Namespace:
    """What `against_trl.py` tells a side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--base", help="URI of another start")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    return parser.parse_args()
