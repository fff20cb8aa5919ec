"""Calls of a remote engine in progress, and which of their batches one server draws together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from hillclimb.rollout.engine import Completion, cut, undrawn
from hillclimb.rollout.wire import Ask, Weights


@dataclass
class Call:
    """One `generate` in progress.

    Attributes:
        waiting: batches that nobody draws now.
    """

    asks: list[Ask]
    weights: Weights
    waiting: deque[int] = field(init=False)
    found: dict[int, list[Completion]] = field(default_factory=dict)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.waiting = deque(range(len(self.asks)))

    @property
    def over(self) -> bool:
        """Whether all is drawn, or will never be."""
        return self.error is not None or len(self.found) == len(self.asks)

    def interrupt(self) -> None:
        """What waits is not begun any more."""
        while self.waiting:
            index = self.waiting.popleft()
            one = undrawn(self.weights.version)
            self.found[index] = [one] * len(self.asks[index].prompts)


Batch = tuple[Call, int]


def take_together(calls: Sequence[Call], rows: int) -> list[Batch]:
    """Batches of different calls, the first that wait, that can be drawn as one of `rows` prompts.

    A call that is alone has its batches drawn one by one, so that its seed decides the draws.
    """
    taken: list[Batch] = []
    for call in calls:
        if call.waiting and not call.over and _fits(taken, call, rows):
            taken.append((call, call.waiting.popleft()))
    return taken


def _fits(taken: list[Batch], call: Call, rows: int) -> bool:
    if not taken:
        return True
    (first, index), ask = taken[0], call.asks[call.waiting[0]]
    prompts = sum(len(c.asks[i].prompts) for c, i in taken) + len(ask.prompts)
    own = {"prompts", "seed", "max_tokens"}
    alike = first.asks[index].model_dump(exclude=own) == ask.model_dump(exclude=own)
    return alike and prompts <= rows


def joined(taken: list[Batch]) -> Ask:
    """One batch of all prompts, with the seed of the first."""
    asks = [call.asks[index] for call, index in taken]
    prompts = [prompt for ask in asks for prompt in ask.prompts]
    longest = max(ask.max_tokens for ask in asks)
    return asks[0].model_copy(update={"prompts": prompts, "max_tokens": longest})


def hand_out(taken: list[Batch], done: list[Completion]) -> None:
    """Give each call its completions, none longer than it asked for."""
    start = 0
    for call, index in taken:
        ask = call.asks[index]
        end = start + len(ask.prompts)
        call.found[index] = [cut(completion, ask.max_tokens) for completion in done[start:end]]
        start = end
