"""Resumable training state: safetensors and JSON only, the newest one always whole."""

from __future__ import annotations

import json
from typing import Any

import torch.distributed as dist
from safetensors.torch import load, save

from hillclimb.artifacts import ArtifactWriter
from hillclimb.training.learner import Learner

FOLDER = "resume"


def save_checkpoint(
    out: ArtifactWriter, learner: Learner, step: int, state: dict[str, Any], extra: dict[str, bytes]
) -> None:
    """Write the state after `step`; the former one goes only when this one is whole.

    Args:
        state: JSON values that decide the future.
        extra: further files by name (rank 0 only).
    """
    rank, folder = dist.get_rank(), f"{FOLDER}/step-{step:08d}"
    out.write_bytes(f"{folder}/rank-{rank}.safetensors", save(learner.tensors()))
    if rank == 0:
        weights = {name: p.detach().contiguous() for name, p in learner.model.named_parameters()}
        out.write_bytes(f"{folder}/weights.safetensors", save(weights))
        out.write_bytes(f"{folder}/state.json", json.dumps(state).encode())
        for name, data in extra.items():
            out.write_bytes(f"{folder}/{name}", data)
    if dist.get_world_size() > 1:
        dist.barrier()
    if rank == 0:
        previous = latest(out)
        out.write_text(f"{FOLDER}/latest", folder)
        if previous and previous != folder:
            out.remove(previous)


def latest(out: ArtifactWriter) -> str | None:
    """The folder of the newest whole checkpoint."""
    return out.read_text(f"{FOLDER}/latest") if out.exists(f"{FOLDER}/latest") else None


def load_checkpoint(out: ArtifactWriter, learner: Learner) -> dict[str, Any] | None:
    """Put the newest state back into the learner.

    Returns:
        The JSON state, or None where there is no checkpoint.

    Raises:
        ValueError: if it was written by another number of ranks.
    """
    folder = latest(out)
    if folder is None:
        return None
    path = f"{folder}/rank-{dist.get_rank()}.safetensors"
    if not out.exists(path) or out.exists(f"{folder}/rank-{dist.get_world_size()}.safetensors"):
        raise ValueError(
            f"{out.uri}/{folder} was written by another number of ranks than the "
            f"{dist.get_world_size()} of now: keep compute as it was, or delete {out.uri}/{FOLDER}"
        )
    tensors = load(out.read_bytes(path))
    learner.restore(load(out.read_bytes(f"{folder}/weights.safetensors")), tensors)
    state: dict[str, Any] = json.loads(out.read_text(f"{folder}/state.json"))
    return state
