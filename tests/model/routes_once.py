"""Two ranks of their own that share rows and experts, against one: the same forced routes."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from test_routes import network, other_routes, tokens
from torch import Tensor

from hillclimb.model.fast import FastInputs
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.saving import SavedActivations

LENGTH = 12


def shared(group: dist.ProcessGroup, ranks: int) -> MaiForCausalLM:
    """The network with this rank's share of the experts."""
    model = network().lay_out(group, group, SavedActivations())
    for moe in model.moe_layers():
        for name in ("gate_up_EFW", "down_EWH"):
            whole = getattr(moe, name).detach()
            setattr(moe, name, torch.nn.Parameter(whole.chunk(ranks)[group.rank()].clone()))
    return model


def fast(model: MaiForCausalLM, x: Tensor, routes: Tensor) -> Tensor:
    """The last layers' states by the GPU's formulas."""
    inputs = FastInputs.of(tokens()[:, :LENGTH], None, model.config)
    forced = iter(routes.unbind(2))
    for layer in model.layers:
        x = layer(x, inputs, None, next(forced) if layer.is_moe else None)
    return x


def off(found: Tensor, expected: Tensor) -> float:
    """Relative distance."""
    return float((found - expected).detach().norm() / expected.detach().norm())


def main() -> None:
    """Print the errors of rank 0."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    alone, part = network(), shared(dist.new_group(list(range(ranks))), ranks)
    ids, routes = tokens()[:, :LENGTH], other_routes()[:, :LENGTH]
    mine = slice(LENGTH // ranks * rank, LENGTH // ranks * (rank + 1))
    whole, found = alone.hidden(ids, routes=routes), part.hidden(ids, routes=routes)
    whole.square().sum().backward()
    found.square().sum().backward()
    router = part.moe_layers()[0].router.weight.grad
    assert router is not None
    dist.all_reduce(router)
    expected = alone.moe_layers()[0].router.weight.grad
    assert expected is not None
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        states = fast(alone, alone.embed(ids).float(), routes)
        own = fast(part, part.embed(ids[:, mine]).float(), routes[:, mine])
        free = alone.hidden(ids)
    errors = {
        "states": off(found, whole[:, mine]), "fast": off(own, states[:, mine]),
        "gradients": off(router, expected), "free": off(free, whole),
    }  # fmt: skip
    if rank == 0:
        print(json.dumps(errors), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
