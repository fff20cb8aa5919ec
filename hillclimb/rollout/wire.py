"""What travels between a climb and its rollout servers: JSON asks, safetensors answer.

Both are read without running anything that is in them, and give back what was written bit by bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.numpy import load, save
from safetensors.torch import save as save_tensors
from torch import Tensor

from hillclimb.rollout.engine import BATCH_ROWS, Batch, Completion, Finish, SamplingParams
from hillclimb.rollout.nuclei import Nuclei

Token = Annotated[int, Field(ge=0)]
Prompt = Annotated[list[Token], Field(min_length=1)]
FINISHES: tuple[Finish, ...] = get_args(Finish)


@dataclass(frozen=True)
class Weights:
    """The weights of one version as safetensors; the SHA-256 of those tells them from others.

    Attributes:
        place: the path at which servers take such a body.
    """

    version: int
    sha256: str
    body: bytes
    place: str = "weights"

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], version: int) -> Weights:
        """A copy of a model's tensors; equal tensors have equal bytes."""
        body = save_tensors({name: t.detach().contiguous() for name, t in tensors.items()})
        return cls(version, hashlib.sha256(body).hexdigest(), body)


class Ask(BaseModel):
    """One batch to draw, with the weights that it wants drawn."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    version: int
    weights: str = Field(description="their SHA-256")
    prompts: list[Prompt] = Field(min_length=1, max_length=BATCH_ROWS)
    seed: int
    max_tokens: int = Field(ge=0)
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    greedy: bool
    stop: list[Token]
    routes: bool = False

    @classmethod
    def of(cls, batch: Batch, params: SamplingParams, weights: Weights) -> Ask:
        """What to ask a server for."""
        return cls(
            version=weights.version,
            weights=weights.sha256,
            prompts=list(batch.prompts),
            seed=batch.seed,
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            greedy=params.greedy,
            stop=list(params.stop),
            routes=params.routes,
        )

    @property
    def params(self) -> SamplingParams:
        """How to draw."""
        return SamplingParams(
            self.max_tokens, self.temperature, self.top_p, self.greedy, tuple(self.stop),
            self.routes,
        )  # fmt: skip


def pack(completions: Sequence[Completion]) -> bytes:
    """Completions of one call, at least one, as safetensors."""
    none = np.zeros((0, 0, 0), np.uint16)
    routes = [none if c.routes is None else c.routes for c in completions]
    told = [part for part in routes if part.size]
    nucleus = Nuclei.joined([c.nucleus for c in completions])
    return save(
        {
            "lengths": np.array([len(c.tokens) for c in completions], np.int64),
            "tokens": np.array([t for c in completions for t in c.tokens], np.int32),
            "logprobs": np.concatenate([c.logprobs for c in completions]),
            "nucleus_counts": nucleus.counts,
            "nucleus_ids": nucleus.ids,
            "finish": np.array([FINISHES.index(c.finish) for c in completions], np.uint8),
            "versions": np.array([c.version for c in completions], np.int64),
            "routed": np.array([c.routes is not None for c in completions], np.uint8),
            "route_lengths": np.array([len(part) for part in routes], np.int64),
            "routes": np.concatenate(told) if told else none,
        }
    )


def unpack(body: bytes) -> list[Completion]:
    """What `pack` was given.

    Raises:
        ValueError: if it is not whole.
    """
    try:
        found = load(body)
        ends = found["lengths"].cumsum()
        rows = zip(
            _split(found["tokens"], ends),
            _split(found["logprobs"], ends),
            _nuclei(found["nucleus_counts"], found["nucleus_ids"], ends),
            found["finish"],
            found["versions"],
            found["routed"],
            _split(found["routes"], found["route_lengths"].cumsum(), absent=True),
            strict=True,
        )
        return [
            Completion(
                tokens.tolist(), logprobs, nucleus, FINISHES[finish], int(version),
                routes if routed else None,
            )
            for tokens, logprobs, nucleus, finish, version, routed, routes in rows
        ]  # fmt: skip
    except (SafetensorError, KeyError, IndexError) as error:
        raise ValueError(f"the completions are not whole: {error}") from error


def _split(rows: np.ndarray, ends: np.ndarray, absent: bool = False) -> list[np.ndarray]:
    """Rows of one completion each. Routes may be `absent`; their width still counts.

    Raises:
        ValueError: if there are fewer or more rows.
    """
    if absent and not len(rows):
        return [rows.copy() for _ in ends]
    if len(rows) != ends[-1]:
        raise ValueError(f"the completions are not whole: {len(rows)} rows, not {ends[-1]}")
    return [part.copy() for part in np.split(rows, ends[:-1])]


def _nuclei(counts: np.ndarray, ids: np.ndarray, ends: np.ndarray) -> list[Nuclei]:
    """The nuclei of one completion each.

    Raises:
        ValueError: if there are fewer or more.
    """
    if len(counts) != ends[-1] or (counts < 0).any() or counts.sum() != len(ids):
        raise ValueError(f"the completions are not whole: {len(counts)} nuclei, not {ends[-1]}")
    return Nuclei(counts, ids).split(ends)
