"""Which experts every token went through: recorded in one forward pass, forced in another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from hillclimb.model.modeling import MaiForCausalLM


@contextmanager
def recorded(model: MaiForCausalLM) -> Iterator[Callable[[], np.ndarray]]:
    """While it lasts, gives the routes of the last forward pass.

    They are uint16 (N, MoE layers, top_k), for the N tokens of the pass row by row; layers are in
    the order of `model.moe_layers()`.
    """
    layers = model.moe_layers()

    def last() -> np.ndarray:
        chosen = torch.stack([layer.routes_NK for layer in layers], 1)
        return chosen.to(torch.int16).cpu().numpy().view(np.uint16)

    for layer in layers:
        layer.recording = True
    try:
        yield last
    finally:
        for layer in layers:
            layer.recording, layer.routes_NK = False, torch.empty(0)


def for_model(routes: np.ndarray) -> Tensor:
    """Recorded routes in the form that `MaiForCausalLM.hidden` takes, int16."""
    return torch.from_numpy(routes.view(np.int16))
