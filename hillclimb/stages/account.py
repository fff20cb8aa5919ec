"""A training stage's goodput: `goodput.json`, and figures for the manifest and tracking."""

from __future__ import annotations

from hillclimb.stages.context import Context
from hillclimb.training.goodput import STALLS, summarise
from hillclimb.training.spans import Spans, read_spans, read_sums


def write_goodput(context: Context, spans: Spans, even_steps: bool = True) -> dict[str, float]:
    """Write the account of all attempts, last before the commit, on rank 0.

    Returns:
        `goodput`, and `stall_<name>` in seconds, for the manifest's metrics.
    """
    spans.write()
    account = summarise(read_spans(context.out), even_steps)
    waits = [sums.get("data", 0.0) for sums in read_sums(context.out)]
    context.out.write_json(
        "goodput.json",
        {
            **account.to_json(),
            "even_steps": even_steps,
            "data_seconds_of_other_ranks": waits,
        },
    )
    return {
        "goodput": account.goodput,
        **{f"stall_{name}": account.stalls[name] for name in STALLS},
    }
