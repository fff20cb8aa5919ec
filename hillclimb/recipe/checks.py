"""What no section can judge alone: whether the parts of a recipe fit each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from hillclimb.recipe.climb import SPECIALISTS, ClimbRecipe, SFTRecipe
from hillclimb.recipe.cluster_checks import CLUSTER_CHECKS
from hillclimb.recipe.compute import Layout
from hillclimb.recipe.errors import Problem
from hillclimb.recipe.graph import PHASES
from hillclimb.recipe.schema import Recipe
from hillclimb.recipe.training import Phase

Check = Callable[[Recipe], Iterator[Problem]]


def cross_checks(recipe: Recipe) -> list[Problem]:
    """Every mismatch between sections. A check that needs an absent field says nothing."""
    found = []
    for check in _CHECKS:
        try:
            found += list(check(recipe))
        except (AttributeError, KeyError, TypeError):
            continue
    return found


def climbs(recipe: Recipe) -> Iterator[tuple[str, ClimbRecipe]]:
    """Every climb with its dotted place."""
    for name in SPECIALISTS:
        specialist = recipe.specialists.get(name)
        for index, climb in enumerate(getattr(specialist, "climbs", ())):
            yield f"specialists.{name}.climbs.{index}", climb
    if final := getattr(recipe, "final", None):
        yield "final.climb", final.climb


def fine_tunings(recipe: Recipe) -> Iterator[tuple[str, SFTRecipe]]:
    """Every supervised fine-tuning with its dotted place."""
    for name in SPECIALISTS:
        if student := getattr(recipe.specialists.get(name), "student", None):
            yield f"specialists.{name}.student", student
    if consolidation := getattr(recipe, "consolidation", None):
        yield "consolidation.sft", consolidation.sft


def phases(recipe: Recipe) -> Iterator[tuple[str, Phase]]:
    """The base phases with their dotted places."""
    for name in PHASES:
        if phase := getattr(recipe.base, f"phase_{name}", None):
            yield f"base.phase_{name}", phase


def _context(recipe: Recipe) -> int:
    return recipe.base.phase_256k.sequence_length


def _lengths_fit(recipe: Recipe) -> Iterator[Problem]:
    """No response, trace or answer is longer than what the base has seen."""
    limit = _context(recipe)
    asked = []
    for place, climb in climbs(recipe):
        for index, stage in enumerate(getattr(climb, "lengths", ())):
            if (tokens := getattr(stage, "max_tokens", None)) is not None:
                asked.append((f"{place}.lengths.{index}.max_tokens", tokens))
    consolidation = getattr(recipe, "consolidation", None)
    if (distilled := getattr(consolidation, "on_policy", None)) is not None:
        asked.append(("consolidation.on_policy.max_tokens", distilled.max_tokens))
    for place, sft in fine_tunings(recipe):
        if (length := getattr(sft, "sequence_length", None)) is not None:
            asked.append((f"{place}.sequence_length", length))
    if (evaluation := getattr(recipe, "evaluation", None)) is not None:
        asked.append(("evaluation.max_tokens", evaluation.max_tokens))
    for field, tokens in asked:
        if tokens > limit:
            what = f"is {tokens}, but the base is trained to {limit} tokens"
            fix = f"lower it to {limit}, or raise base.phase_256k.sequence_length"
            yield Problem(field, what, fix)


def _lengths_grow(recipe: Recipe) -> Iterator[Problem]:
    ordered = list(phases(recipe))
    for (before, short), (place, long) in pairwise(ordered):
        if long.sequence_length < short.sequence_length:
            what = f"is {long.sequence_length}, below {before}'s {short.sequence_length}"
            yield Problem(f"{place}.sequence_length", what, "let each phase be at least as long")


def _window_fits(recipe: Recipe) -> Iterator[Problem]:
    length = recipe.base.phase_16k.sequence_length
    if recipe.model.window > length:
        what = f"is {recipe.model.window}, but base.phase_16k has sequences of {length} tokens"
        yield Problem("model.window", what, f"lower it to at most {length}")


def _schedules_end(recipe: Recipe) -> Iterator[Problem]:
    for place, phase in phases(recipe):
        schedule = phase.schedule
        if schedule.warmup_tokens >= phase.tokens:
            what = f"is {schedule.warmup_tokens}, but the phase has {phase.tokens} tokens"
            yield Problem(f"{place}.schedule.warmup_tokens", what, f"keep it below {phase.tokens}")
        if schedule.type == "cosine" and schedule.floor > schedule.peak:
            what = f"is {schedule.floor}, above the peak of {schedule.peak}"
            yield Problem(f"{place}.schedule.floor", what, f"keep it at or below {schedule.peak}")
    for place, sft in fine_tunings(recipe):
        if sft.floor > sft.peak:
            what = f"is {sft.floor}, above the peak of {sft.peak}"
            yield Problem(f"{place}.floor", what, f"keep it at or below {sft.peak}")


def _windows_ordered(recipe: Recipe) -> Iterator[Problem]:
    for place, climb in climbs(recipe):
        groups = getattr(climb, "groups", None)
        for name in ("early_window", "full_window"):
            low, high = getattr(groups, name, (0.0, 1.0))
            if not 0 <= low < high <= 1:
                what = f"is [{low}, {high}]"
                fix = "give two pass rates, the lower first, both from 0 to 1"
                yield Problem(f"{place}.groups.{name}", what, fix)


def _categories_have_sources(recipe: Recipe) -> Iterator[Problem]:
    offered = sorted({source.category for source in recipe.corpus.sources})
    for name in ("pretraining_mixture", "midtraining_mixture"):
        for category, weight in getattr(recipe, name).weights.items():
            if weight > 0 and category not in offered:
                what = f"is {weight}, but no source in corpus.sources has this category"
                fix = f"add one, or weigh only {', '.join(offered)}"
                yield Problem(f"{name}.weights.{category}", what, fix)


def _shares_positive(recipe: Recipe) -> Iterator[Problem]:
    places: list[tuple[str, dict[str, float]]] = [
        (f"specialists.{name}.problems.kinds", specialist.problems.kinds)
        for name, specialist in recipe.specialists.items()
        if hasattr(specialist, "problems")
    ]
    for name in ("consolidation", "final"):
        if (section := getattr(recipe, name, None)) is not None:
            places.append((f"{name}.shares", section.shares))
    for place, shares in places:
        for key, share in shares.items():
            if share < 0:
                yield Problem(f"{place}.{key}", f"is {share}", "give zero or a positive share")
        if sum(shares.values()) <= 0:
            yield Problem(place, "has no positive share", "give at least one above zero")


def _ranks_divide(recipe: Recipe) -> Iterator[Problem]:
    compute = recipe.compute
    laid_out: list[tuple[str, Phase | Layout, str]] = [
        *((place, phase, "base_ranks") for place, phase in phases(recipe)),
        ("compute.post_training", compute.post_training, "climb_ranks"),
        ("compute.post_training", compute.post_training, "sft_ranks"),
    ]
    for place, layout, field in laid_out:
        totals = {
            f"compute.{field}": getattr(compute, field),
            "model.experts": recipe.model.experts,
        }
        for name, of in (
            ("context_parallel", f"compute.{field}"),
            ("expert_parallel", f"compute.{field}"),
            ("expert_parallel", "model.experts"),
        ):
            if totals[of] % (size := getattr(layout, name)):
                what = f"is {size}, which does not divide {of} = {totals[of]}"
                yield Problem(f"{place}.{name}", what, f"choose a divisor of {totals[of]}")


def _context_divides(recipe: Recipe) -> Iterator[Problem]:
    """Ranks of a context group share tokens of a row, and heads in attention (Ulysses)."""
    heads, kv_heads = recipe.model.query_heads, recipe.model.kv_heads
    for place, phase in phases(recipe):
        size = phase.context_parallel
        if phase.sequence_length % size:
            what = f"is {size}, which does not divide the sequence_length {phase.sequence_length}"
            yield Problem(f"{place}.context_parallel", what, "choose a divisor of it")
        elif heads % size or (kv_heads % size and size % kv_heads):
            what = (
                f"is {size}: it must divide model.query_heads = {heads}, and divide "
                f"model.kv_heads = {kv_heads} or be a multiple of it"
            )
            yield Problem(f"{place}.context_parallel", what, f"choose {kv_heads} or a divisor")


def _batches_divide(recipe: Recipe) -> Iterator[Problem]:
    ranks = recipe.compute.base_ranks
    for place, phase in phases(recipe):
        rows = recipe.base.batch_tokens // phase.sequence_length
        groups = max(1, ranks // phase.context_parallel)
        if rows % groups:
            what = (
                f"is {phase.sequence_length}: a batch of {rows} sequences does not divide over "
                f"{groups} data-parallel ranks"
            )
            fix = "change base.batch_tokens or compute.base_ranks so that it does"
            yield Problem(f"{place}.sequence_length", what, fix)


def _micro_batches_hold_a_row(recipe: Recipe) -> Iterator[Problem]:
    for place, phase in phases(recipe):
        micro = recipe.base.micro_batch(phase)
        if micro * phase.context_parallel < phase.sequence_length:
            what = f"is {micro}, too few for one sequence of {place} ({phase.sequence_length})"
            fix = f"raise it, or {place}.micro_batch_tokens, or {place}.context_parallel"
            yield Problem("base.micro_batch_tokens", what, fix)
            return


_CHECKS: tuple[Check, ...] = (
    _lengths_fit,
    _lengths_grow,
    _window_fits,
    _schedules_end,
    _windows_ordered,
    _categories_have_sources,
    _shares_positive,
    _ranks_divide,
    _context_divides,
    _batches_divide,
    _micro_batches_hold_a_row,
    *CLUSTER_CHECKS,
)
