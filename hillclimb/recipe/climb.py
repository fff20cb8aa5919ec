"""The climbs: reinforcement learning, self-distillation, consolidation (report §3)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hillclimb.recipe.base import Section
from hillclimb.recipe.training import AdamW

SPECIALISTS = ("stem", "agentic", "helpfulness")


class Sampling(Section):
    """How rollouts are drawn (report §3.1.5)."""

    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.97, gt=0, le=1)


class Replay(Section):
    """What the sampler decided and the learner repeats (report §3.1.5, §3.6)."""

    nucleus: bool = Field(
        True, description="what the sampler could not draw is masked in the learner as well"
    )
    routes: bool = Field(
        True, description="tokens go through the experts that they went through in the sampler"
    )


class OuterClip(Section):
    """The outer clip [0, outer] of the ratio, on every branch (report §3.1.1)."""

    outer: float | None = Field(50.0, gt=1, description="null: none, as in PPO")


class AdaptiveClips(OuterClip):
    """The trust clip [1-epsilon, 1/(1-epsilon)+k]; `entropy` moves k (report §3.1.1)."""

    type: Literal["adaptive"] = "adaptive"
    epsilon: float = Field(0.6, gt=0, lt=1)


class FixedClips(OuterClip):
    """The trust clip [1-low, 1+high], which stays as it is: DAPO's clip-higher."""

    type: Literal["fixed"] = "fixed"
    low: float = Field(0.2, gt=0, le=1)
    high: float = Field(0.28, gt=0)


Clips = Annotated[AdaptiveClips | FixedClips, Field(discriminator="type")]


class NoCorrection(Section):
    """The old policy is the one that drew: its log-probabilities are the engine's."""

    type: Literal["none"] = "none"


class TruncatedSampling(Section):
    """Truncated importance sampling: the learner works out the old policy's log-probabilities.

    It does so before the first step of an update; each token counts min(pi_old / pi_engine, cap).
    """

    type: Literal["truncated"] = "truncated"
    cap: float = Field(2.0, gt=0)


Correction = Annotated[NoCorrection | TruncatedSampling, Field(discriminator="type")]


class EntropyController(Section):
    """k <- clip(k + delta*sign(target - entropy), 0, k_max), once a step (report §3.1.1)."""

    target: float = Field(0.3, ge=0, description="H*, nats per token")
    delta: float = Field(0.25, ge=0)
    k_max: float = Field(2.5, ge=0)


class RewardWeights(Section):
    """R = R_task + language*R_lang - length*R_len (report §3.1.3)."""

    language: float = Field(0.5, ge=0)
    language_alpha: float = Field(0.005, ge=0)
    length: float = Field(0.25, ge=0)


class Groups(Section):
    """Group sizes, the early exit and the full filter (report §3.1.5)."""

    early: int = Field(16, gt=1)
    full: int = Field(128, gt=1)
    early_window: tuple[float, float] = (0.05, 0.8)
    full_window: tuple[float, float] = (0.1, 0.8)

    @model_validator(mode="after")
    def _sizes(self) -> Groups:
        if self.early > self.full:
            raise ValueError(f"early={self.early} must not exceed full={self.full}")
        return self


class Staleness(Section):
    """How far rollouts may lag behind the learner (report §3.1.5)."""

    steps_per_update: int = Field(5, gt=0, description="gradient steps per weight update")
    max_updates: int = Field(8, ge=0, description="older rollouts are dropped")
    ahead: int = Field(
        0,
        ge=0,
        description="weight updates that generation may run ahead of the learner; "
        "0: they take turns",
    )

    @model_validator(mode="after")
    def _fresh_enough(self) -> Staleness:
        if self.ahead > self.max_updates:
            raise ValueError(
                f"ahead={self.ahead} must not exceed max_updates={self.max_updates}: what is drawn "
                "further ahead is dropped"
            )
        return self


class LengthStage(Section):
    """One rung of the length curriculum: the climb moves on at the criterion (report §3.1.5)."""

    max_tokens: int = Field(gt=0)
    steps: int = Field(gt=0, description="gradient steps after which the next rung starts")
    truncated_share: float = Field(
        1.0, gt=0, le=1, description="or as soon as this share of rollouts hits the limit"
    )
    length_penalty: bool = True


class RLOptimizer(AdamW):
    """AdamW of the climbs (report §3.1.5)."""

    beta2: float = 0.95
    eps: float = 1e-15
    weight_decay: float = 0.0
    attention_weight_decay: float = 0.0
    embedding_weight_decay: float = 0.0


class SFTOptimizer(AdamW):
    """AdamW of fine-tuning on traces (report §3.1.4)."""

    beta2: float = 0.95
    weight_decay: float = 0.001
    attention_weight_decay: float = 0.001
    embedding_weight_decay: float = 0.001


Signal = Literal[
    "mismatch", "entropy", "truncation", "reward_hack", "disagreement", "gradient"
]  # fmt: skip


class StopRule(Section):
    """When a climb says that it is over, and why.

    Every signal has a limit. Out of it, those in `halt` end the climb; the others only warn.
    """

    plateau_steps: int = Field(50, gt=0, description="no gain of `plateau_gain` in so many steps")
    plateau_gain: float = Field(0.02, ge=0)
    plateau_floor: float = Field(0.0, ge=0, le=1, description="no plateau below this pass rate")
    max_mismatch: float = Field(0.05, gt=0, description="mean |log-prob gap| engine to learner")
    min_entropy: float = Field(0.0, ge=0)
    max_entropy: float = Field(8.0, gt=0, description="nats per token")
    max_truncated_share: float = Field(
        0.5, gt=0, le=1, description="of an update's rollouts that hit the length limit"
    )
    max_hacked_share: float = Field(
        0.05, ge=0, le=1, description="of an update's rollouts that set off a canary"
    )
    max_disagreement: float = Field(
        0.2, ge=0, le=1, description="of the rollouts that judge and verifier both saw"
    )
    max_gradient_ratio: float = Field(20.0, gt=1, description="norm over its running median")
    halt: tuple[Signal, ...] = Field(
        ("mismatch", "entropy", "reward_hack"), description="signals that end the climb"
    )

    @model_validator(mode="after")
    def _band(self) -> StopRule:
        if self.min_entropy >= self.max_entropy:
            raise ValueError(
                f"min_entropy={self.min_entropy} must be below max_entropy={self.max_entropy}"
            )
        return self


class ClimbRecipe(Section):
    """One reinforcement-learning climb (report §3.1)."""

    learning_rate: float = Field(1e-6, gt=0)
    optimizer: RLOptimizer = RLOptimizer()
    sampling: Sampling = Sampling()
    clips: Clips = AdaptiveClips()
    entropy: EntropyController | None = Field(
        EntropyController(), description="null: k stays at 0; so it must be with fixed clips"
    )
    ratio: Literal["token", "sequence"] = Field(
        "token", description="of each token, or the geometric mean over the sequence (GSPO)"
    )
    replay: Replay = Replay()
    correction: Correction = NoCorrection()
    rewards: RewardWeights = RewardWeights()
    groups: Groups = Groups()
    staleness: Staleness = Staleness()
    lengths: tuple[LengthStage, ...] = Field(min_length=1)
    batch_groups: int = Field(gt=0, description="groups in one gradient step")
    prompts_per_update: int = Field(gt=0, description="prompts sampled at a time")
    draws_per_update: int | None = Field(
        None,
        gt=0,
        description="stop drawing prompts after so many times, if need be with a short batch; "
        "null: until every batch is full or every problem tried, and no step with less",
    )
    balance_coefficient: float = Field(1e-5, ge=0)
    std_eps: float = Field(1e-6, gt=0)
    checkpoint_every: int = Field(10, gt=0, description="gradient steps between checkpoints")
    stop: StopRule = StopRule()
    micro_batch_tokens: int = Field(gt=0)

    @model_validator(mode="after")
    def _controller_has_a_clip(self) -> ClimbRecipe:
        if self.clips.type == "fixed" and self.entropy is not None:
            raise ValueError(
                "entropy moves the k of adaptive clips, and clips.type=fixed has none: "
                "set entropy to null"
            )
        return self


class TraceRecipe(Section):
    """Which rollouts self-distillation learns from (report §3.1.4)."""

    traces: int = Field(gt=0, description="most traces kept")
    per_prompt: int = Field(4, gt=0)
    late_share: float = Field(0.5, gt=0, le=1, description="rollouts from the last share of steps")
    accept: Literal["passed", "finished"] = Field(
        "passed", description="wrong answers teach as well; the report used successes only"
    )
    max_language_switches: int = Field(0, ge=0, description="non-English words in the reasoning")
    max_repeat: float = Field(0.5, gt=0, le=1, description="most frequent 4-gram's share")


class SFTRecipe(Section):
    """Supervised fine-tuning on traces (report §3.1.4, §3.5)."""

    optimizer: SFTOptimizer = SFTOptimizer()
    peak: float = Field(1.7e-5, gt=0)
    floor: float = Field(5.2e-6, ge=0)
    warmup_share: float = Field(0.02, ge=0, lt=1)
    epochs: int = Field(4, gt=0)
    sequence_length: int = Field(131_072, gt=1)
    batch_sequences: int = Field(2048, gt=0)
    dropout: float = Field(0.15, ge=0, lt=1)
    balance_coefficient: float = Field(1e-2, ge=0)
    micro_batch_tokens: int = Field(gt=0)
    checkpoint_every: int = Field(50, gt=0)


class ProblemSet(Section):
    """Problems that are made, verified and split (report §3.2-3.4)."""

    train: int = Field(gt=0)
    held_out: int = Field(gt=0)
    kinds: dict[str, float] = Field(min_length=1, description="share of each kind of problem")


class Specialist(Section):
    """One specialist: its problems, its rounds and its climb."""

    problems: ProblemSet
    climbs: tuple[ClimbRecipe, ...] = Field(min_length=1, description="one entry a round")
    traces: TraceRecipe
    student: SFTRecipe

    @property
    def rounds(self) -> int:
        """Climbs of this specialist; all but the first start from a self-distilled student."""
        return len(self.climbs)


class OnPolicyDistillation(Section):
    """The student draws; the advantage of a token is log p_teacher - log p_student."""

    learning_rate: float = Field(1e-6, gt=0)
    optimizer: RLOptimizer = RLOptimizer()
    steps: int = Field(gt=0, description="each with rollouts of its own")
    batch_prompts: int = Field(gt=0, description="one rollout each")
    max_tokens: int = Field(gt=0, description="of a rollout")
    balance_coefficient: float = Field(1e-5, ge=0)
    micro_batch_tokens: int = Field(gt=0)
    checkpoint_every: int = Field(10, gt=0)


class Consolidation(Section):
    """One model from three specialists, balanced by samples (report §3.5)."""

    shares: dict[Literal[SPECIALISTS], float]  # type: ignore[valid-type]
    traces: int = Field(gt=0)
    sft: SFTRecipe
    on_policy: OnPolicyDistillation | None = Field(
        None,
        description="learn from what the specialists say of the model's own rollouts; "
        "null: from their traces",
    )


class Evaluation(Section):
    """How checkpoints are scored."""

    samples: int = Field(2, gt=0, description="sampled answers a problem; greedy is one more")
    max_tokens: int = Field(gt=0)
    held_out_tokens: int = Field(60_000, gt=0, description="tokens for NLL per category")
    sampling: Sampling = Sampling()
