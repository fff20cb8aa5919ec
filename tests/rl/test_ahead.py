"""Generation ahead of the learner: its bound, its ends; nothing is lost or counted twice."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from climb_support import (
    EASY,
    MIXED,
    Parrot,
    make_climb,
    make_learner,
    make_tokenizer,
    own_network,
    pool,
)
from pydantic import ValidationError
from torch import Tensor

from hillclimb.model.tokenizer import TextTokenizer
from hillclimb.recipe.climb import Staleness
from hillclimb.rl.ahead import Ahead
from hillclimb.rl.climb import Climb
from hillclimb.rl.grading import Graders
from hillclimb.rl.groups import Sample
from hillclimb.rl.learned import Learned
from hillclimb.rl.metrics import Kept
from hillclimb.rollout.engine import Completion, SamplingParams, undrawn
from hillclimb.rollout.nuclei import Nuclei
from hillclimb.training import runtime
from hillclimb.training.learner import Learner

SHAPE: dict[str, Any] = {
    "lengths": [{"max_tokens": 64, "steps": 8}],
    "batch_groups": 2,
    "prompts_per_update": 3,
    "staleness": {"steps_per_update": 2, "ahead": 2, "max_updates": 3},
    "stop": {},
}
SAYS = pool(*range(0, 12, 2))


class Held(Parrot):
    """A parrot that is silent on one question for so many versions of its weights, or for ever."""

    def __init__(self, learner: Learner, tokenizer: TextTokenizer, versions: int | None) -> None:
        super().__init__(own_network(learner), tokenizer, SAYS)
        self.versions = versions
        self.first: int | None = None
        self.interrupts, self.changed = 0, threading.Condition()

    def interrupt(self) -> None:
        with self.changed:
            self.interrupts += 1
            self.changed.notify_all()

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        before = self.interrupts
        done = super().generate(prompts, params, seed)
        if self._is_held(prompts[0]) and self._is_silent():
            with self.changed:
                self.changed.wait_for(lambda: self.interrupts > before)
            return [self._begun(completion) for completion in done]
        return done

    def _is_silent(self) -> bool:
        if self.versions is None:
            return True
        if self.first is None:
            self.first = self.version
        return self.version < self.first + self.versions

    def _is_held(self, prompt: list[int]) -> bool:
        return "what 0x\n" in self.tokenizer.decode(prompt)

    def _begun(self, done: Completion) -> Completion:
        none = undrawn(done.version)
        one = {"tokens": done.tokens[:1], "logprobs": done.logprobs[:1]}
        return Completion(**{**vars(none), **one, "nucleus": done.nucleus[:1]})


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return make_tokenizer()


@pytest.fixture(scope="module", autouse=True)
def ranks() -> Iterator[None]:
    runtime.start()
    yield
    runtime.stop()


@pytest.fixture(scope="module")
def learner(tokenizer: TextTokenizer) -> Learner:
    return make_learner(tokenizer)


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders() as made:
        yield made


def parrot(learner: Learner, tokenizer: TextTokenizer) -> Parrot:
    return Parrot(own_network(learner), tokenizer, SAYS)


def tasks(climb: Climb) -> list[str]:
    """The problems of all prompts taken so far, from a queue of its own."""
    assert isinstance(climb.source, Ahead)
    again = copy.copy(climb.queue)
    again.taken = dict.fromkeys(climb.queue.names, 0)
    order = again.take(sum(climb.queue.taken.values()))
    return [climb.source.problems[name][index].id for name, index in order]


def require_every_prompt_once(climb: Climb, updates: list[list[Kept]]) -> None:
    """What was taken is in flight or ended; what was kept was learnt, or is told of."""
    assert isinstance(climb.source, Ahead)
    groups: dict[tuple[int, int], Kept] = {}
    for update, kept in enumerate(updates):
        groups |= {(update, one.group): one for one in kept}
    ended = [one.rollout.problem.id for one in groups.values()]
    flying = climb.source.in_flight.values()
    ended += [climb.source.problems[name][index].id for name, index in flying]
    assert Counter(ended) == Counter(tasks(climb))
    last = {row["update"]: row for row in climb.rows}
    stale = sum(row["groups_stale"] for row in last.values())
    trained = sum(one.status == "trained" for one in groups.values())
    learned = sum(row["groups_learned"] for row in climb.rows)
    assert trained == learned + stale + len(climb.buffer.groups)


def test_a_climb_ahead_makes_its_steps_and_every_prompt_is_counted_once(
    learner: Learner, tokenizer: TextTokenizer, graders: Graders
) -> None:
    climb = make_climb(learner, parrot(learner, tokenizer), graders, {}, **SHAPE)
    updates = [kept for _, kept in climb.run()]
    assert climb.stop is not None
    assert climb.stop.reason == "steps"
    assert [row["groups_learned"] for row in climb.rows] == [2] * 8
    require_every_prompt_once(climb, updates)
    drawn = sum(one.rollout.drawn_tokens for kept in updates[:-1] for one in kept)
    told = sum(row["sampled_tokens"] for row in climb.rows if row["update"] < len(updates) - 1)
    assert drawn == told
    assert {0.0} < {row["age"] for row in climb.rows}, "some were drawn before the last update"
    for row in climb.rows:
        assert 0 <= row["learner_waited"] <= 1
        assert 0 <= row["generation_waited"] <= 1
        assert row["age_mean"] <= row["age"] <= 3


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_is_learnt_from_is_found_among_the_rollouts_by_its_name(
    ahead: int, learner: Learner, tokenizer: TextTokenizer, graders: Graders
) -> None:
    shape = {**SHAPE, "staleness": {**SHAPE["staleness"], "ahead": ahead}}
    climb = make_climb(learner, parrot(learner, tokenizer), graders, {}, **shape)
    drawn: dict[tuple[int, int, int], Kept] = {}
    learned: list[Learned] = []
    for number, (_, kept) in enumerate(climb.run()):
        drawn |= {(number, one.group, one.sample): one for one in kept}
        learned += climb.learned
    late = {each.learner_version - each.update for each in learned}
    assert late == {0, 1} if not ahead else min(late) >= 0
    for each in learned:
        found = drawn[each.update, each.group, each.sample.number]
        assert found.status == "trained"
        assert found.rollout.tokens == each.sample.tokens.tolist()
    assert len(learned) == 8 * sum(row["groups_learned"] for row in climb.rows)


@pytest.mark.parametrize("updates_before", [1, 3])
def test_after_a_kill_what_was_in_flight_is_drawn_again_and_nothing_else(
    learner: Learner, tokenizer: TextTokenizer, graders: Graders, updates_before: int
) -> None:
    first = make_climb(learner, parrot(learner, tokenizer), graders, {}, **SHAPE)
    with closing(first.run()) as run:
        updates = [list(next(run)[1]) for _ in range(updates_before)]
        time.sleep(0.3)  # workers finish what the learner does not take over any more
        state, arrays = first.state()
        told = json.dumps(state)
    assert json.loads(told)["in_flight"]
    again = make_climb(learner, parrot(learner, tokenizer), graders, {}, **SHAPE)
    again.restore(json.loads(told), {name: np.copy(array) for name, array in arrays.items()})
    assert again.state()[0] == json.loads(told)
    updates += [kept for _, kept in again.run()]
    assert len(again.rows) == 8
    assert [row["step"] for row in again.rows] == list(range(1, 9))
    require_every_prompt_once(again, updates)


def test_the_buffer_never_holds_more_than_its_bound_and_the_workers_wait(
    learner: Learner, tokenizer: TextTokenizer, graders: Graders
) -> None:
    staleness = {"steps_per_update": 1, "ahead": 1}
    climb = make_climb(
        learner, parrot(learner, tokenizer), graders, {}, **{**SHAPE, "staleness": staleness}
    )
    held, most = [], 2 + SHAPE["prompts_per_update"] - 1
    for _ in climb.run():
        time.sleep(0.5)  # a learner that is slower than generation
        assert isinstance(climb.source, Ahead)
        held.append(len(climb.buffer.groups) + sum(len(g) for *_, g in climb.source._done))
    assert max(held) <= most
    assert climb.rows[-1]["generation_waited"] > 0.2
    assert min(row["pass_rate"] for row in climb.rows) > 0, "also where no group came in"
    assert climb.rows[-1]["age"] <= 3


def test_the_learner_does_not_wait_for_the_slowest_rollout(
    learner: Learner, tokenizer: TextTokenizer, graders: Graders
) -> None:
    choices = {**SHAPE, "prompts_per_update": 8}  # each pass over the problems holds a worker
    climb = make_climb(learner, Held(learner, tokenizer, None), graders, {}, **choices)
    updates = [kept for _, kept in climb.run()]
    assert len(climb.rows) == 8
    assert "0x" not in {one.rollout.problem.id for kept in updates for one in kept}
    require_every_prompt_once(climb, updates)


def test_a_group_that_took_too_long_is_dropped_and_one_that_did_not_has_several_versions(
    learner: Learner, tokenizer: TextTokenizer, graders: Graders
) -> None:
    for versions, stale in ((1, False), (3, True)):
        staleness = {"steps_per_update": 1, "ahead": 1, "max_updates": 1}
        choices = {**SHAPE, "staleness": staleness, "prompts_per_update": 2}
        climb = make_climb(learner, Held(learner, tokenizer, versions), graders, {}, **choices)
        updates = [kept for _, kept in climb.run()]
        held = [k for kept in updates for k in kept if k.rollout.problem.id == "0x"]
        assert held
        assert len({int(v) for v in np.concatenate(held[0].rollout.versions)}) > 1
        assert any(row["groups_stale"] for row in climb.rows) >= stale
        assert max(row["age"] for row in climb.rows) <= 1
        if not stale:
            assert max(row["mixed_versions"] for row in climb.rows) > 0
        require_every_prompt_once(climb, updates)


def test_problems_without_a_batch_end_the_climb(
    learner: Learner, tokenizer: TextTokenizer, graders: Graders
) -> None:
    says = Parrot(own_network(learner), tokenizer, {f"{q}x": EASY for q in range(5)})
    for draws, reason in ((None, "5 problems gave"), (2, "last 3 updates")):
        climb = make_climb(learner, says, graders, {}, **SHAPE, draws_per_update=draws)
        assert list(climb.run())
        assert climb.rows == []
        assert climb.stop is not None
        assert climb.stop.reason == "solved"
        assert reason in climb.stop.sentence


def test_limited_draws_learn_from_a_short_batch(
    learner: Learner, tokenizer: TextTokenizer, graders: Graders
) -> None:
    says = {f"{q}x": MIXED if q == 3 else EASY for q in range(12)}
    one = Parrot(own_network(learner), tokenizer, says)
    climb = make_climb(learner, one, graders, {}, **SHAPE, draws_per_update=4)
    assert list(climb.run())
    assert len(climb.rows) == 8, "less than a batch does"
    assert {row["groups_learned"] for row in climb.rows} <= {1, 2}


class Follower(Parrot):
    """A parrot that speaks with the weights that it was given last."""

    def __init__(self, learner: Learner, tokenizer: TextTokenizer) -> None:
        super().__init__(own_network(learner), tokenizer, SAYS)
        self.lock = threading.Lock()

    def load_weights(self, weights: dict[str, Tensor], version: int) -> None:
        with self.lock:
            self.model.load_state_dict(weights)
            self.version = version

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        with self.lock:
            return super().generate(prompts, params, seed)


def test_the_mismatch_is_measured_on_what_the_present_weights_drew(
    learner: Learner, tokenizer: TextTokenizer, graders: Graders
) -> None:
    follower = Follower(learner, tokenizer)
    choices = {**SHAPE, "stop": {"max_mismatch": 1e-4, "halt": ["mismatch"]}, "learning_rate": 1e-2}
    climb = make_climb(learner, follower, graders, {}, **choices)
    assert list(climb.run())
    assert climb.stop is not None
    assert climb.stop.reason == "steps"
    assert max(row["age"] for row in climb.rows) > 0, "some batches were not fresh"
    assert max(row["mismatch"] for row in climb.rows) < 1e-5


def test_the_gap_is_that_of_fresh_tokens_alone(
    learner: Learner, tokenizer: TextTokenizer, graders: Graders
) -> None:
    climb = make_climb(learner, parrot(learner, tokenizer), graders, {}, **SHAPE)
    prompt, tokens = np.arange(4, dtype=np.int32), np.arange(5, 13, dtype=np.int32)
    blank = Sample(prompt, tokens, np.ones(8, bool), np.zeros(8, np.float32), Nuclei.free(8), 1.0)
    (known,) = climb._old([blank])
    assert known.old is not None
    versions = np.array([0, 0, 0, 1, 1, 1, 1, 1], np.int32)
    drawn = versions >= 0
    drawn[-1] = False  # an observation
    told = known.old + np.where(versions == 1, 0.25, 7.0)
    sample = replace(blank, logprobs=told.astype(np.float32), versions=versions, drawn=drawn)
    climb.update = 1
    assert climb._gap([sample, sample]) == pytest.approx(0.25, abs=1e-4)
    climb.update = 2
    assert climb._gap([sample]) is None, "no token is of the present weights"


class Broken(Parrot):
    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seed: int
    ) -> list[Completion]:
        raise RuntimeError("no rollout server has drawn anything")


def test_a_worker_that_fails_ends_the_climb_with_its_error(
    learner: Learner, tokenizer: TextTokenizer, graders: Graders
) -> None:
    climb = make_climb(learner, Broken(learner.model, tokenizer, SAYS), graders, {}, **SHAPE)
    with pytest.raises(RuntimeError, match="no rollout server"):
        list(climb.run())
    assert isinstance(climb.source, Ahead)
    assert not any(thread.is_alive() for thread in climb.source._threads)


def test_the_bound_must_not_exceed_the_age_at_which_rollouts_are_dropped() -> None:
    with pytest.raises(ValidationError, match="ahead=3 must not exceed max_updates=2"):
        Staleness(ahead=3, max_updates=2)
