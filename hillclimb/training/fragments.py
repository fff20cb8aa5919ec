"""Training state as runs of numbers with names, free of how many ranks share it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """A run of one parameter's numbers that this rank keeps.

    Attributes:
        name: the parameter, as the whole model names it.
        start: place of the first number in the whole parameter, flattened.
        tensors: the live FP32 state, flat and of one length: `master`, and from the first step on
            `exp_avg` and `exp_avg_sq`.
    """

    name: str
    start: int
    tensors: dict[str, Tensor]

    @property
    def length(self) -> int:
        """Numbers in the run."""
        return self.tensors["master"].numel()
