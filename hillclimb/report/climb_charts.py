"""The figures of a climb: pass rate first, then everything that can go wrong beside it."""

from __future__ import annotations

from collections.abc import Callable

from hillclimb.recipe.climb import AdaptiveClips, ClimbRecipe
from hillclimb.report.experiment import column
from hillclimb.report.figure import Chart, Mark, Panel, Series
from hillclimb.report.scale import smooth
from hillclimb.report.timeline import TONES, Timeline

AXIS = "gradient steps, all rounds"


def climb_charts(
    line: Timeline, recipe: ClimbRecipe, raised: Callable[..., list[Mark]]
) -> list[Chart]:
    """All of them.

    Args:
        raised: the marks of some signals' alarms.
    """
    tone, weights = TONES[line.group], recipe.rewards
    reward = f"R = task + {weights.language:g}·language − {weights.length:g}·length"
    wide = "k widens the upper trust bound 1/(1−ε)+k while entropy is under its target."
    wide = wide if recipe.entropy else "No controller: the trust clip stays as it is."
    gap = (
        "Mean |log-probability gap| a token between sampler and learner; the climb "
        f"{'stops' if 'mismatch' in recipe.stop.halt else 'warns'} "
        f"over {recipe.stop.max_mismatch:g}."
    )
    doubt = (
        "Canaries: rewards sought by cheating. Judge against verifier: the share that they see "
        "differently, of the rollouts that both look at."
    )

    idle = (
        "Shares of an update's time: the learner without groups to learn from; generation at a "
        "standstill, because the buffer is full or because the learner has its turn."
    )

    beside = "Seconds of work: samplers ahead of the learner are many, and theirs are added up."

    def chart(title: str, panels: list[Panel], caption: str = "", *signals: str) -> Chart:
        marks = [*line.marks(), *raised(*signals)]
        return Chart(title, panels, AXIS, marks, caption=caption)

    return [
        chart("Pass rate", _pass_panels(line, tone)),
        chart("Entropy and its controller", _entropy(line, recipe), wide, "entropy"),
        chart("Reward parts", [Panel("reward", _rewards(line))], reward),
        chart("Response length", _lengths(line), "", "truncation"),
        chart("Clipped tokens", _clips(line, recipe)),
        chart("Learner against sampler", _mismatch(line), gap, "mismatch"),
        chart("Groups", _groups(line, tone)),
        chart("Age, and rollouts without a grade", _ungraded(line, tone)),
        chart("Canaries, and judge against verifier", _doubts(line, recipe), doubt,
              "reward_hack", "disagreement"),
        chart("Gradient norm and router balance", _health(line, tone), "", "gradient"),
        chart("Time an update", _seconds(line, tone), beside if recipe.staleness.ahead else ""),
        chart("Waiting, and tokens a second", _waiting(line, tone), idle),
    ]  # fmt: skip


def _pass_panels(line: Timeline, tone: int) -> list[Panel]:
    return [Panel("pass rate", pass_rate(line, "pass rate", tone), "share", 0, 1)]


def _groups(line: Timeline, tone: int) -> list[Panel]:
    keys = (("groups_kept", "kept", tone), ("groups_early_exit", "early exit", 5),
            ("groups_filtered", "filtered", 7), ("groups_stale", "stale", 8))  # fmt: skip
    return [Panel("groups an update", line.stack(keys, total=False), "count", stacked=True)]


def _seconds(line: Timeline, tone: int) -> list[Panel]:
    keys = (("seconds_sampling", "sampling", tone), ("seconds_learning", "learning", 5),
            ("seconds_grading", "grading", 7))  # fmt: skip
    return [Panel("seconds", line.stack(keys, total=True), "seconds", stacked=True)]


def _waiting(line: Timeline, tone: int) -> list[Panel]:
    waits = [line.line("learner_waited", "learner", tone),
             line.line("generation_waited", "generation", 5)]  # fmt: skip
    rates = [line.line("sampled_per_second", "sampled", tone),
             line.line("learned_per_second", "learnt", 5)]  # fmt: skip
    return [
        Panel("of time", waits, "share", 0, 1),
        Panel("tokens a second", rates, "count", low=0, short=True),
    ]


def _entropy(line: Timeline, recipe: ClimbRecipe) -> list[Panel]:
    series = [line.line("entropy", "entropy", TONES[line.group])]
    if recipe.entropy is None:
        return [Panel("nats a token", series, low=0)]
    target, most = recipe.entropy.target, recipe.entropy.k_max or 1
    return [
        Panel("nats a token", series, low=0, levels=[(target, f"target {target:g}")]),
        Panel("k", [line.line("k", "k", 5, "step")], low=0, high=most, short=True),
    ]


def _rewards(line: Timeline) -> list[Series]:
    parts = (("reward", "reward", TONES[line.group]), ("reward_task", "task", 5),
             ("reward_language", "language", 6), ("reward_length", "length", 7))  # fmt: skip
    return [line.line(key, name, tone) for key, name, tone in parts]


def _lengths(line: Timeline) -> list[Panel]:
    tone = TONES[line.group]
    return [
        Panel("tokens", [line.line("response_tokens", "mean response", tone),
                         line.line("max_tokens", "limit", 5, "step")], "count", low=0),
        Panel("truncated", [line.line("truncated_share", "truncated", 6)], "share", low=0,
              short=True),
    ]  # fmt: skip


def _clips(line: Timeline, recipe: ClimbRecipe) -> list[Panel]:
    clips, tone = recipe.clips, TONES[line.group]
    if isinstance(clips, AdaptiveClips):
        bounds = f"trust [{1 - clips.epsilon:.3g}, {1 / (1 - clips.epsilon):.3g}+k]"
    else:
        bounds = f"trust [{1 - clips.low:.3g}, {1 + clips.high:.3g}]"
    panels = [Panel("of tokens", [line.line("trust_clip_share", bounds, tone)], "share", low=0)]
    if clips.outer is not None:
        outer = line.line("outer_clip_share", f"outer {clips.outer:g}", 6)
        panels.append(Panel("of tokens", [outer], "share", low=0, short=True))
    return panels


def _doubts(line: Timeline, recipe: ClimbRecipe) -> list[Panel]:
    rule = recipe.stop
    hacked = line.line("hacked_share", "set off a canary", TONES[line.group])
    differ = line.line("disagreement", "seen differently", 6)
    return [
        Panel("of rollouts", [hacked], "share", low=0,
              levels=[(rule.max_hacked_share, f"limit {rule.max_hacked_share:g}")]),
        Panel("of judged", [differ], "share", low=0, short=True,
              levels=[(rule.max_disagreement, f"limit {rule.max_disagreement:g}")]),
    ]  # fmt: skip


def _mismatch(line: Timeline) -> list[Panel]:
    return [Panel("nats a token", [line.line("mismatch", "mismatch", TONES[line.group])], low=0)]


def _ungraded(line: Timeline, tone: int) -> list[Panel]:
    return [
        Panel(
            "updates",
            [
                line.line("age", "oldest token learnt from", tone),
                line.line("age_mean", "mean of all", 5),
            ],
            low=0,
        ),
        Panel("rollouts", [line.line("ungraded", "ungraded", 6)], "count", low=0, short=True),
    ]


def _health(line: Timeline, tone: int) -> list[Panel]:
    return [
        Panel("norm", [line.line("grad_norm", "gradient norm", tone)], low=0),
        Panel("loss", [line.line("balance_loss", "balance loss", 6)], short=True),
    ]


def pass_rate(line: Timeline, name: str, tone: int, shift: float = 0) -> list[Series]:
    """Single steps, and a trailing mean over each round."""
    raw = line.line("pass_rate", name, tone, "faint", shift)
    xs: list[float] = []
    ys: list[float | None] = []
    for round_ in line.rounds:
        window = max(3, len(round_.rows) // 12)
        xs += [round_.offset + shift, *(x + shift for x in round_.xs)]
        ys += [None, *smooth(column(round_.rows, "pass_rate"), window)]
    return [raw, Series(name, xs, ys, tone)]
