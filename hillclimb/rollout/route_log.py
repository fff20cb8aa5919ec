"""The routes of a batch's tokens, noted pass by pass while they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.routes import recorded
from hillclimb.rollout.engine import Completion


class RouteLog:
    """Notes which experts the model takes each token through; where it is off, nothing.

    The prompts' pass comes first, then one for each token that is fed.
    """

    def __init__(self, model: MaiForCausalLM, on: bool) -> None:
        self._model, self._on = model, on and bool(model.moe_layers())
        self._stack = ExitStack()
        self._prompts: list[np.ndarray] = []
        self._steps: list[tuple[np.ndarray, np.ndarray]] = []

    def __enter__(self) -> RouteLog:
        """Have the model record, where the log is on."""
        if self._on:
            self._last = self._stack.enter_context(recorded(self._model))
        return self

    def __exit__(self, *error: Any) -> None:
        """The model records no more."""
        self._stack.close()

    def began(self, owner: Tensor, starts: Tensor) -> None:
        """Note the pass over the different prompts, left-padded.

        Args:
            owner: which of them each row of the batch has; starts: their first real columns.
        """
        if self._on:
            passed = self._last()
            passed = passed.reshape(len(starts), -1, *passed.shape[1:])
            real = [row[start:] for row, start in zip(passed, starts.tolist(), strict=True)]
            self._prompts = [real[prompt] for prompt in owner.tolist()]

    def fed(self, rows: Tensor) -> None:
        """Note a pass over one more token of each of these rows of the batch."""
        if self._on:
            self._steps.append((rows.numpy(), self._last()))

    def put(
        self, completions: Sequence[Completion], prompts: Sequence[list[int]]
    ) -> list[Completion]:
        """The batch's completions with their routes; none where there was no pass."""
        if not self._prompts:
            return list(completions)
        width = self._prompts[0].shape[1:]
        steps = np.zeros((len(prompts), len(self._steps), *width), np.uint16)
        for step, (rows, routes) in enumerate(self._steps):
            steps[rows, step] = routes
        found = zip(completions, prompts, self._prompts, steps, strict=True)
        return [
            replace(
                done, routes=np.concatenate((before, drawn))[: len(prompt) + len(done.tokens) - 1]
            )
            for done, prompt, before, drawn in found
        ]
