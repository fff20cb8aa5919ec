"""The ladder's L12 on a GPU, ours against the naive form: `python benchmarks/model_speed.py`.

Prints tokens/s, MFU, memory and where the GPU's time goes, in one run on one card; then 200
training steps of a smaller model by the FP32 reference, the fast path and the naive form.
`--out DIR` writes the tables and every number as JSON. Needs torch, transformers and pydantic;
the optimizer is a plain AdamW with FP32 master weights, the same for both.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from naive_mai import naive_losses
from torch import Tensor

from hillclimb.model.attention import AttentionInputs
from hillclimb.model.configuration import MaiConfig
from hillclimb.model.fast import keep_weights_in_bf16
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.model.moe import RouterLoad
from hillclimb.scaling.counts import count_parameters
from hillclimb.scaling.ladder import VOCABULARY, rung

PEAK = 989e12
GIB = 2**30
BALANCE = 1e-2
Batch = tuple[Tensor, Tensor | None, Tensor]
Losses = Callable[[MaiForCausalLM, Tensor, Tensor | None, Tensor], Tensor]
INNER = 3
GROUPS = (
    ("attention", ("flex_attention", "triton_tem_fused", "cudnn", "fmha", "flash")),
    ("experts' products", ("grouped", "GroupProblemShape", "Grouped")),
    ("softmax of the loss", ("_softmax_rows", "SoftMax", "softmax_warp", "nll_loss")),
    ("products", ("gemm", "nvjet", "cutlass", "xmma", "splitK", "cublas")),
    (
        "sort, top-k, gather",
        ("sort", "Sort", "topk", "TopK", "gather", "scatter", "index", "Radix"),
    ),
    ("fused element-wise", ("triton_", "_swiglu_rows")),
    (
        "copies, casts and element-wise",
        ("elementwise", "Memcpy", "Memset", "copy", "CatArray", "fill"),
    ),
)


class MasterAdamW:
    """AdamW over FP32 master weights, gradients clipped to norm 1; one kernel a parameter."""

    def __init__(self, model: MaiForCausalLM) -> None:
        self.parameters = list(model.parameters())
        self.states = [
            (p.detach().float().clone(), torch.zeros_like(p, dtype=torch.float32),
             torch.zeros_like(p, dtype=torch.float32))
            for p in self.parameters
        ]  # fmt: skip
        self.steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update; the gradients are gone afterwards."""
        self.steps += 1
        norms = torch._foreach_norm([p.grad for p in self.parameters], dtype=torch.float32)
        clip = (1.0 / (torch.stack(norms).norm() + 1e-6)).clamp(max=1.0)
        device = self.parameters[0].device
        rate_1 = torch.tensor(rate / (1 - 0.95**self.steps), device=device)
        scale_2 = torch.tensor((1 - 0.925**self.steps) ** -0.5, device=device)
        for parameter, state in zip(self.parameters, self.states, strict=True):
            assert parameter.grad is not None
            flat = [t.view(-1) for t in (parameter, parameter.grad, *state)]
            _adam()(*flat, clip, rate_1, scale_2)
            parameter.grad = None


def _update(
    weight: Tensor, grad: Tensor, master: Tensor, m: Tensor, v: Tensor, clip: Tensor,
    rate: Tensor, scale: Tensor,
) -> None:  # fmt: skip
    grad = grad.float() * clip
    first = 0.95 * m + 0.05 * grad
    second = 0.925 * v + 0.075 * grad * grad
    value = master - rate * first / (second.sqrt() * scale + 1e-8)
    m.copy_(first)
    v.copy_(second)
    master.copy_(value)
    weight.copy_(value)


@cache
def _adam() -> Any:
    return torch.compile(_update, dynamic=True)


def ours(model: MaiForCausalLM, ids: Tensor, segments: Tensor | None, labels: Tensor) -> Tensor:
    """The model as it is."""
    return model.losses(ids, segments, labels)[0]


def reference(
    model: MaiForCausalLM, ids: Tensor, segments: Tensor | None, labels: Tensor
) -> Tensor:
    """The path that a CPU takes: FP32, dense masks, a loop over experts, whole logits."""
    inputs = AttentionInputs.of(model.config, ids, 0, segments, None)
    x = model.embed(ids)
    for layer in model.layers:
        x = layer(x, inputs, None)
    logits = model.logits(model.norm(x)).flatten(0, 1)
    return F.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")


def make_model(layers: int, experts: int, form: str, seed: int | None) -> MaiForCausalLM:
    """Weights on the GPU, held as the form wants them.

    With a seed they start as the report says; without one they are drawn on the GPU, with
    attention's output norm on, so that a model of billions is ready at once and all gradients flow.
    """
    recipe = rung(layers).model_copy(update={"experts": experts})
    config = MaiConfig.from_recipe(recipe.model_dump(), VOCABULARY)
    if seed is not None:
        model = MaiForCausalLM(config).initialise(seed).cuda()
    else:
        with torch.device("cuda"):
            model = MaiForCausalLM(config)
        generator = torch.Generator("cuda").manual_seed(0)
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.data.normal_(0.0, config.initializer_range, generator=generator)
    if form == "naive":
        model.to(torch.bfloat16)
    elif form == "ours":
        keep_weights_in_bf16(model)
    return model.train()


def backward(model: MaiForCausalLM, losses: Losses, load: RouterLoad, batch: Batch) -> Tensor:
    """Forward and backward of mean loss and balance loss; returns the mean loss."""
    moe = model.moe_layers()
    load.reset()
    mean = losses(model, *batch) / batch[2].numel()
    chosen = torch.stack([layer.chosen_E for layer in moe])
    balance = load.balance(torch.stack([layer.mean_E for layer in moe]), chosen)
    (mean + BALANCE * balance).backward()
    return mean.detach()


def random_batch(rows: int, length: int, mean_document: int | None) -> Batch:
    """Uniform tokens; one document a row, or documents of exponential length."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, VOCABULARY, (rows, length + 1))).cuda()
    segments = None
    if mean_document is not None:
        numbers = np.cumsum(rng.random((rows, length)) < 1 / mean_document, axis=1)
        segments = torch.from_numpy(numbers).cuda()
    return ids[:, :-1], segments, ids[:, 1:].contiguous()


def attended_pairs(segments: Tensor, window: int) -> tuple[float, float]:
    """Mean number of tokens that a token sees in a global and in a local layer."""
    lengths = torch.cat([torch.unique(row, return_counts=True)[1] for row in segments]).double()
    near = lengths.clamp(max=window)
    full = (lengths * lengths / 2).sum()
    local = (near * near / 2 + (lengths - near) * window).sum()
    return float(full / lengths.sum()), float(local / lengths.sum())


def flops_per_token(layers: int, segments: Tensor) -> float:
    """6 × active parameters + 3 × forward attention, 4 × width × visible tokens a layer."""
    model = rung(layers)
    full, local = attended_pairs(segments, model.window)
    globals_ = layers // model.global_every
    pairs = globals_ * full + (layers - globals_) * local
    attention = 4 * model.query_heads * model.head_dim * pairs
    return 6 * count_parameters(model, VOCABULARY).active + 3 * attention


def measure(form: str, batch: Batch, steps: int) -> dict[str, Any]:
    """Time, memory and kernels of one form of the L12."""
    losses: Losses = naive_losses if form == "naive" else ours
    model = make_model(12, rung(12).experts, form, None)
    load = RouterLoad(len(model.moe_layers()), model.config.num_experts)
    held = torch.cuda.memory_allocated()

    def work() -> None:
        backward(model, losses, load, batch)

    def clear() -> None:
        for parameter in model.parameters():
            parameter.grad = None

    def work_and_clear() -> None:
        work()
        clear()

    for _ in range(3):
        work_and_clear()
    torch.cuda.reset_peak_memory_stats()
    times = [_timed(work_and_clear) for _ in range(steps)]
    peak = torch.cuda.max_memory_allocated()
    kernels = _profile(work)
    clear()
    whole, whole_peak = _steps(model, work, steps)
    ids, segments, _ = batch
    segments = torch.zeros_like(ids) if segments is None else segments
    tokens, flops = ids.numel(), flops_per_token(12, segments)
    seconds, full = statistics.median(times), statistics.median(whole) if whole else None
    return {
        "backward_ms": 1e3 * seconds, "backward_spread_ms": 1e3 * (max(times) - min(times)),
        "step_ms": full and 1e3 * full, "tokens_per_second": tokens / seconds,
        "step_tokens_per_second": full and tokens / full, "mfu": tokens * flops / seconds / PEAK,
        "step_mfu": full and tokens * flops / full / PEAK, "weights_gib": held / GIB,
        "backward_gib": peak / GIB, "step_gib": whole_peak / GIB,
        "kernels": kernels,
    }  # fmt: skip


def _steps(model: MaiForCausalLM, work: Callable[[], None], steps: int) -> tuple[list[float], int]:
    """Seconds of whole steps with AdamW and the bytes they take; no seconds if they do not fit."""
    torch.cuda.reset_peak_memory_stats()
    try:
        optimizer = MasterAdamW(model)

        def step() -> None:
            work()
            optimizer.step(1e-4)

        for _ in range(2):
            step()
        return [_timed(step) for _ in range(steps)], torch.cuda.max_memory_allocated()
    except torch.OutOfMemoryError:
        return [], torch.cuda.max_memory_allocated()


def attempt(form: str, batch: Batch, steps: int) -> dict[str, Any]:
    """`measure`, or what there is to say when it does not fit."""
    rows, length = batch[0].shape
    said = {"form": form, "rows": rows, "length": length, "packed": batch[1] is not None}
    torch.cuda.reset_peak_memory_stats()
    try:
        return said | measure(form, batch, steps)
    except torch.OutOfMemoryError:
        return said | {"backward_ms": None, "backward_gib": torch.cuda.max_memory_allocated() / GIB}


def _timed(work: Callable[[], Any]) -> float:
    """Seconds of one of a few calls in a row, as in training, where the host runs ahead."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(INNER):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / INNER


def _profile(work: Callable[[], None]) -> list[tuple[str, float, int]]:
    """(kernel, ms, calls) of one run, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as record:
        work()
        torch.cuda.synchronize()
    rows = [(e.key, e.self_device_time_total / 1e3, e.count) for e in record.key_averages()]
    return sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])


def grouped(kernels: list[tuple[str, float, int]]) -> dict[str, float]:
    """Milliseconds by group of kernels."""
    found = dict.fromkeys([name for name, _ in GROUPS], 0.0) | {"other": 0.0}
    for kernel, ms, _ in kernels:
        name = next((n for n, marks in GROUPS if any(m in kernel for m in marks)), "other")
        found[name] += ms
    return found


def text_batches(length: int, steps: int) -> list[Batch]:
    """Bytes of the standard library's modules, packed by document, one row a step."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [np.frombuffer(f.read_bytes()[:8000] + b"\0", np.uint8) for f in files]
    order = np.random.default_rng(0).permutation(len(texts))
    stream = np.concatenate([texts[i] for i in order])
    numbers = np.repeat(np.arange(len(order)), [len(texts[i]) for i in order])
    width = length + 1
    batches: list[Batch] = []
    for step in range(steps):
        start = step % (len(stream) // width) * width
        row = slice(start, start + width)
        tokens = torch.from_numpy(stream[row].astype(np.int64))[None].cuda()
        segments = torch.from_numpy(numbers[row] - numbers[start])[None].cuda()
        labels = tokens[:, 1:].masked_fill(segments[:, 1:] != segments[:, :-1], -100)
        batches.append((tokens[:, :-1], segments[:, :-1].contiguous(), labels))
    return batches


def train(form: str, steps: int, length: int) -> dict[str, list[float]]:
    """Losses of a model with L12's widths, 64 experts and the whole vocabulary."""
    losses: Losses = {"naive": naive_losses, "ours": ours, "reference": reference}[form]
    model = make_model(12, 64, form, 0)
    load = RouterLoad(len(model.moe_layers()), model.config.num_experts)
    optimizer, curve, shares = MasterAdamW(model), [], []
    for step, batch in enumerate(text_batches(length, steps)):
        curve.append(backward(model, losses, load, batch))
        shares.append(load.shares().max())
        optimizer.step(3e-4 * min(1.0, (step + 1) / 20))
    return {"loss": torch.stack(curve).tolist(), "largest_share": torch.stack(shares).tolist()}


def speed_table(rows: list[dict[str, Any]]) -> str:
    """Markdown of `measure`'s rows."""
    lines = [
        "| form | rows × length | forward + backward ms | tokens/s | MFU | GiB | step ms "
        "| step tokens/s | step MFU | step GiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *(_speed_row(row) for row in rows)])


def _speed_row(r: dict[str, Any]) -> str:
    shape = f"{r['rows']} × {r['length']}" + (", documents of 2048" if r["packed"] else "")
    start = f"| {r['form']} | {shape} "
    if not r["backward_ms"]:
        return start + f"| does not fit | | | over {r['backward_gib']:.1f} | | | | |"
    start += (
        f"| {r['backward_ms']:.1f} | {r['tokens_per_second']:,.0f} | {r['mfu']:.1%} "
        f"| {r['backward_gib']:.1f} "
    )
    if not r["step_ms"]:
        return start + f"| does not fit | | | over {r['step_gib']:.1f} |"
    return start + (
        f"| {r['step_ms']:.1f} | {r['step_tokens_per_second']:,.0f} | {r['step_mfu']:.1%} "
        f"| {r['step_gib']:.1f} |"
    )


def kernel_table(naive: dict[str, Any], fast: dict[str, Any]) -> str:
    """Markdown of GPU time by group of kernels."""
    left, right = grouped(naive["kernels"]), grouped(fast["kernels"])
    lines = ["| GPU ms | naive | ours |", "|---|---:|---:|"]
    lines += [f"| {name} | {left[name]:.1f} | {right[name]:.1f} |" for name in left]
    return "\n".join([*lines, f"| all | {sum(left.values()):.1f} | {sum(right.values()):.1f} |"])


def curve_table(curves: dict[str, dict[str, list[float]]]) -> str:
    """Markdown of losses at some steps and the distances from the reference."""
    names = list(curves)
    lines = [
        "| step | " + " | ".join(names) + " |",
        "|---:|" + "---:|" * len(names),
    ]
    steps = len(curves[names[0]]["loss"])
    for step in sorted({0, 1, 4, *range(9, steps, 20), steps - 1}):
        values = " | ".join(f"{curves[name]['loss'][step]:.4f}" for name in names)
        lines.append(f"| {step + 1} | {values} |")
    right = np.array(curves["reference"]["loss"])
    lines += ["", "| mean difference from the reference, steps | " + " | ".join(names[1:]) + " |"]
    lines.append("|---|" + "---:|" * len(names[1:]))
    for first, last in ((1, 10), (11, 50), (51, 100), (101, steps)):
        gaps = [np.array(curves[n]["loss"])[first - 1 : last] - right[first - 1 : last]
                for n in names[1:]]  # fmt: skip
        cells = " | ".join(f"{g.mean():+.4f} (absolute {np.abs(g).mean():.4f})" for g in gaps)
        lines.append(f"| {first} to {last} | {cells} |")
    return "\n".join(lines)


def free() -> None:
    """Give cached memory back between measurements."""
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--length", type=int, default=16_384)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--train-steps", type=int, default=200)
    options.add_argument("--train-length", type=int, default=2048)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    card = torch.cuda.get_device_name()
    print(f"{card}, torch {torch.__version__}", flush=True)
    rows: list[dict[str, Any]] = []
    for count, mean in ((1, None), (1, 2048), (2, 2048), (4, None), (4, 2048)):
        batch = random_batch(count, given.length, mean)
        for form in ("naive", "ours"):
            rows.append(attempt(form, batch, given.steps))
            free()
            print(speed_table(rows[-1:]), flush=True)
    print(speed_table(rows), kernel_table(rows[0], rows[1]), sep="\n\n", flush=True)
    for kernel, ms, calls in rows[1]["kernels"][:40]:
        print(f"{ms:8.2f} ms {calls:4d} {kernel[:110]}")
    curves = {}
    for form in ("reference", "ours", "naive") if given.train_steps else ():
        curves[form] = train(form, given.train_steps, given.train_length)
        free()
    if curves:
        print(curve_table(curves), flush=True)
    if given.out is not None:
        found = {"card": card, "torch": torch.__version__, "speed": rows, "curves": curves}
        (given.out / "model_speed.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
