"""What each kind of stage does on accelerators: tokens, operations, memory, hours."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hillclimb.recipe.climb import (
    SPECIALISTS,
    ClimbRecipe,
    LengthStage,
    OnPolicyDistillation,
    SFTRecipe,
)
from hillclimb.recipe.schema import Recipe
from hillclimb.recipe.training import Phase
from hillclimb.scaling.flops import decode_flops, training_flops
from hillclimb.scaling.memory import Memory, rollout_memory, training_memory, weights_bytes

MEAN_LENGTH = 0.5


@dataclass(frozen=True)
class Work:
    """Tokens trained on and sampled, operations, memory of one accelerator, and time."""

    tokens: int = 0
    flops: float = 0.0
    memory: Memory = field(default_factory=Memory)
    accelerators: int = 0
    hours: float = 0.0


def phase_work(recipe: Recipe, phase: Phase) -> Work:
    """One phase of base training."""
    ranks = recipe.compute.base_ranks
    vocab = recipe.tokenizer.vocab_size
    flops = phase.tokens * training_flops(recipe.model, vocab, phase.sequence_length)
    width = recipe.compute.accelerator.weight_bytes
    micro = recipe.base.micro_batch(phase)
    memory = training_memory(recipe.model, vocab, phase, ranks, micro, width)
    return Work(phase.tokens, flops, memory, ranks, _training_hours(recipe, flops, ranks))


def tuning_work(recipe: Recipe, sft: SFTRecipe, traces: int, limit: int) -> Work:
    """Fine-tuning on `traces` traces of at most `limit` tokens."""
    ranks, vocab = recipe.compute.sft_ranks, recipe.tokenizer.vocab_size
    length = _mean(limit)
    tokens = traces * length * sft.epochs
    flops = tokens * training_flops(recipe.model, vocab, length)
    memory = _learner_memory(recipe, ranks, sft.micro_batch_tokens)
    return Work(tokens, flops, memory, ranks, _training_hours(recipe, flops, ranks))


def distillation_work(recipe: Recipe, config: OnPolicyDistillation) -> Work:
    """Sampling, the teachers' forward passes and learning, in turns on the same accelerators.

    The teachers of all specialists stay in memory.
    """
    compute, vocab = recipe.compute, recipe.tokenizer.vocab_size
    ranks, length = compute.sft_ranks, _mean(config.max_tokens)
    tokens = config.steps * config.batch_prompts * length
    sampling = tokens * decode_flops(recipe.model, vocab, length / 2)
    learning = tokens * training_flops(recipe.model, vocab, length)
    judging = learning / 3
    width = compute.accelerator.weight_bytes
    rollouts = rollout_memory(
        recipe.model, vocab, compute.rollout_server, config.batch_prompts, config.max_tokens, width
    )
    teachers = Memory(weights=len(SPECIALISTS) * weights_bytes(recipe.model, vocab))
    return Work(
        2 * tokens,
        sampling + judging + learning,
        _learner_memory(recipe, ranks, config.micro_batch_tokens) + rollouts + teachers,
        ranks,
        _decode_hours(recipe, sampling, ranks) + _training_hours(recipe, judging + learning, ranks),
    )


def climb_work(recipe: Recipe, climb: ClimbRecipe) -> Work:
    """One climb: sampling and learning, beside each other where rollouts have accelerators.

    Without accelerators of their own, rollouts share the learner's and take turns with it.
    """
    compute, vocab = recipe.compute, recipe.tokenizer.vocab_size
    learned = sampled = 0
    learning = sampling = 0.0
    for stage in climb.lengths:
        length = _mean(stage.max_tokens)
        learned += (trained := _trained_responses(climb, stage) * length)
        sampled += (drawn := _sampled_responses(climb, stage) * length)
        learning += trained * training_flops(recipe.model, vocab, length)
        sampling += drawn * decode_flops(recipe.model, vocab, length / 2)
    apart = compute.climb_rollout_accelerators
    learn_hours = _training_hours(recipe, learning, compute.climb_ranks)
    sample_hours = _decode_hours(recipe, sampling, apart or compute.climb_ranks)
    return Work(
        learned + sampled,
        learning + sampling,
        _climb_memory(recipe, climb),
        compute.climb_ranks + apart,
        max(learn_hours, sample_hours) if apart else learn_hours + sample_hours,
    )


def evaluation_work(recipe: Recipe, models: int) -> Work:
    """Scoring `models` checkpoints on every held-out problem, sampled and greedy."""
    compute, evaluation = recipe.compute, recipe.evaluation
    problems = sum(s.problems.held_out for s in recipe.specialists.values())
    length = _mean(evaluation.max_tokens)
    tokens = models * problems * (evaluation.samples + 1) * length
    vocab = recipe.tokenizer.vocab_size
    flops = tokens * decode_flops(recipe.model, vocab, length / 2)
    accelerators = compute.evaluation_ranks
    memory = rollout_memory(
        recipe.model,
        vocab,
        compute.rollout_server,
        1,
        evaluation.max_tokens,
        compute.accelerator.weight_bytes,
    )
    return Work(tokens, flops, memory, accelerators, _decode_hours(recipe, flops, accelerators))


def _trained_responses(climb: ClimbRecipe, stage: LengthStage) -> int:
    return stage.steps * climb.batch_groups * climb.groups.full


def _sampled_responses(climb: ClimbRecipe, stage: LengthStage) -> int:
    """Every prompt is tried with an early group; those that are learned from are completed."""
    updates = math.ceil(stage.steps / climb.staleness.steps_per_update)
    prompts = max(updates * climb.prompts_per_update, stage.steps * climb.batch_groups)
    completed = climb.groups.full - climb.groups.early
    return prompts * climb.groups.early + stage.steps * climb.batch_groups * completed


def _climb_memory(recipe: Recipe, climb: ClimbRecipe) -> Memory:
    """The fuller of a learner and a rollout accelerator, or both on one."""
    compute = recipe.compute
    learner = _learner_memory(recipe, compute.climb_ranks, climb.micro_batch_tokens)
    apart = compute.climb_rollout_accelerators > 0
    rollouts = rollout_memory(
        recipe.model,
        recipe.tokenizer.vocab_size,
        compute.rollout_server,
        1 if apart else climb.groups.full,
        max(stage.max_tokens for stage in climb.lengths),
        compute.accelerator.weight_bytes,
    )
    return max((learner, rollouts), key=lambda m: m.total) if apart else learner + rollouts


def _learner_memory(recipe: Recipe, ranks: int, tokens: int) -> Memory:
    return training_memory(
        recipe.model,
        recipe.tokenizer.vocab_size,
        recipe.compute.post_training,
        ranks,
        tokens,
        recipe.compute.accelerator.weight_bytes,
    )


def _training_hours(recipe: Recipe, flops: float, accelerators: int) -> float:
    accelerator = recipe.compute.accelerator
    return flops / (accelerators * accelerator.flops * accelerator.utilisation) / 3600


def _decode_hours(recipe: Recipe, flops: float, accelerators: int) -> float:
    accelerator = recipe.compute.accelerator
    return flops / (accelerators * accelerator.flops * accelerator.decode_utilisation) / 3600


def _mean(limit: int) -> int:
    """The mean length of responses of at most `limit` tokens."""
    return max(1, round(limit * MEAN_LENGTH))
