"""Several ranks of their own: every layout against plain PyTorch, and what goes beside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import layouts

from hillclimb.model.configuration import MaiConfig
from hillclimb.model.experts import mix_experts, mix_shared_experts
from hillclimb.model.fast import FastInputs
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.saving import SavedActivations
from hillclimb.training import runtime
from hillclimb.training.layout import Layout
from hillclimb.training.learner import Learner

RESUMED = {
    "ZeRO-1": Layout(1),
    "ZeRO-2": Layout(2),
    "ZeRO-3": Layout(3),
    "ZeRO-2, BF16": Layout(2, precision="bf16"),
    "EP, ZeRO-2": Layout(2, expert_parallel=2, offload_optimizer=True),
    "ZeRO-3, host": Layout(3, offload_optimizer=True),
    "EP x CP, ZeRO-3": Layout(3, expert_parallel=2, context_parallel=2),
    "EP, BF16": Layout(2, expert_parallel=2, precision="bf16"),
}


def step(learner: Learner, batch: layouts.Batch) -> dict[str, float]:
    def loss(model: Any, part: layouts.Batch) -> tuple[Tensor, dict[str, Tensor]]:
        total, _ = model.losses(part.inputs, part.segments, part.labels)
        return total / batch.labels.numel(), {"nll": total}

    mine = slice(learner.layout.data_rank, None, learner.layout.data_world)
    return learner.step([batch.rows(mine)], loss, 1e-3)


def new_learner(layout: Layout) -> Learner:
    return Learner(layouts.beginning(layouts.TINY, False), layouts.OPTIMIZER, layout, 1e-2)


def resumed(layout: Layout, data: list[layouts.Batch]) -> dict[str, Any]:
    """Two learners: one goes on, one takes what the other had after two steps."""
    first = new_learner(layout)
    sizes = {name: p.numel() for name, p in MaiForCausalLM(layouts.TINY).named_parameters()}
    kept_here = dict.fromkeys(sizes, 0)
    for fragment in first.fragments():
        assert set(fragment.tensors) == {"master"}
        kept_here[fragment.name] += fragment.length
    kept_anywhere = torch.tensor(list(kept_here.values()))
    dist.all_reduce(kept_anywhere)
    for batch in data[:2]:
        step(first, batch)
    kept = [
        (f.name, f.start, {k: v.clone() for k, v in f.tensors.items()}) for f in first.fragments()
    ]
    expected = step(first, data[2])
    second = new_learner(layout)
    for fragment, (name, start, tensors) in zip(second.fragments(moments=True), kept, strict=True):
        assert (fragment.name, fragment.start) == (name, start)
        assert set(fragment.tensors) == set(tensors) == {"master", "exp_avg", "exp_avg_sq"}
        for key, value in tensors.items():
            fragment.tensors[key].copy_(value)
    second.take(2)
    found = step(second, data[2])
    left, right = first.full_weights(), second.full_weights()
    return {
        "once": kept_anywhere.tolist() == list(sizes.values()),
        "same": found == expected and all(torch.equal(left[n], right[n]) for n in left),
        "names": list(left) == (list(sizes) if dist.get_rank() == 0 else []),
        "steps": second.steps,
    }


def shared_experts(ranks: int) -> float:
    """The largest error of outputs and gradients, the experts of one rank against all ranks'."""
    config = layouts.TINY
    generator = torch.Generator().manual_seed(3)
    tokens, width, inner = 41, config.latent_size, config.expert_ffn_size
    latent = torch.randn(ranks, tokens, width, generator=generator)
    chances = torch.randn(ranks, tokens, config.num_experts, generator=generator).softmax(-1)
    chances[:, :, 5] = 0.0
    gates, chosen = chances.topk(3)
    gate_up = torch.randn(config.num_experts, inner, width, generator=generator)
    down = torch.randn(config.num_experts, width, inner // 2, generator=generator)
    slope = torch.randn(ranks, tokens, width, generator=generator)
    rank, group = dist.get_rank(), dist.new_group(list(range(ranks)))
    whole = [t.clone().requires_grad_() for t in (latent, gates, gate_up, down)]
    expected, _ = mix_experts(
        whole[0].flatten(0, 1), whole[1].flatten(0, 1), chosen.flatten(0, 1), *whole[2:]
    )
    expected_grads = torch.autograd.grad((expected * slope.flatten(0, 1)).sum(), whole)
    part = [t.clone().requires_grad_() for t in (latent[rank], gates[rank])]
    part += [t.chunk(ranks)[rank].clone().requires_grad_() for t in (gate_up, down)]
    found, counts = mix_shared_experts(part[0], part[1], chosen[rank], *part[2:], group)
    grads = torch.autograd.grad((found * slope[rank]).sum(), part)
    assert counts.tolist() == torch.bincount(chosen[rank].flatten(), minlength=8).tolist()
    right = [expected.view(ranks, tokens, width)[rank], *(g[rank] for g in expected_grads[:2])]
    right += [g.chunk(ranks)[rank] for g in expected_grads[2:]]
    return max(layouts.off(a, b) for a, b in zip((found, *grads), right, strict=True))


@torch.no_grad()
def fast_path(ranks: int, batch: layouts.Batch) -> float:
    """The GPU's formulas with rows and experts shared, against those of one rank."""
    config = MaiConfig(**{**layouts.TINY.to_diff_dict(), "head_dim": 16})
    alone, shared = (MaiForCausalLM(config).initialise(0) for _ in range(2))
    group = dist.new_group(list(range(ranks)))
    shared.lay_out(group, group, SavedActivations())
    for layer in shared.moe_layers():
        for name in ("gate_up_EFW", "down_EWH"):
            whole = layer._parameters.pop(name)
            setattr(layer, name, whole.detach().chunk(ranks)[group.rank()])
    columns = slice(*(batch.inputs.shape[1] // ranks * i for i in (group.rank(), group.rank() + 1)))
    with torch.compiler.set_stance("force_eager"):
        inputs = FastInputs.of(batch.inputs, batch.segments, config)
        states, mine = alone.embed(batch.inputs), shared.embed(batch.inputs[:, columns])
        for layer, part in zip(alone.layers, shared.layers, strict=True):
            states, mine = layer(states, inputs, None), part(mine, inputs, None)
    return layouts.off(mine, states[:, columns])


def skipped(layout: Layout, batch: layouts.Batch) -> bool:
    """Whether a gradient that is not finite leaves all weights alone, and the next step is one."""
    learner = new_learner(layout)
    before = [f.tensors["master"].clone() for f in learner.fragments()]
    name = "gate_up_EFW" if layout.expert_parallel > 1 else "latent_up"
    broken = getattr(learner.model.moe_layers()[0], name)
    hook = getattr(broken, "weight", broken).register_hook(lambda grad: grad * torch.nan)
    step(learner, batch)
    kept = all(
        torch.equal(f.tensors["master"], old)
        for f, old in zip(learner.fragments(), before, strict=True)
    )
    hook.remove()
    counted = learner.steps
    norm = step(learner, batch)["grad_norm"]
    return kept and (counted, learner.steps) == (0, 1) and 0 < norm < 1e3


def main(these: str, only: str) -> None:
    rank, ranks = runtime.start()
    data = layouts.batches(layouts.TINY, 4, 64)
    for name, layout in RESUMED.items():
        if these in name:
            found = resumed(layout, data) | {"skips": skipped(layout, data[0])}
            if rank == 0:
                print("RESUMED", json.dumps({"layout": name, **found}), flush=True)
    beside = {"experts": shared_experts(ranks), "fast": fast_path(2, data[0]) if ranks == 2 else 0}
    if rank == 0:
        print("BESIDE", json.dumps(beside), flush=True)
    sys.argv[1:] = ["--json", "--only", only]
    layouts.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
