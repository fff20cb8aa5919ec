"""Checkpoints that a step hardly waits for, whole or not there, for any number of ranks.

A step pays for the copy of this rank's state to host memory; a process of its own writes it. One
checkpoint is under way at a time. Under `resume/`, every checkpoint has a folder of its own:
`rank-R.safetensors` with R's fragments, `state.json`, further files of rank 0, and `whole.json`,
which comes when every rank's files are on disk. Then `latest` names the folder, and of the older
ones the newest stays.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hillclimb.artifacts import ArtifactError, ArtifactWriter
from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.training.fragments import Fragment
from hillclimb.training.host_copy import HostCopy, first_not_finite
from hillclimb.training.learner import Learner
from hillclimb.training.restore import Damaged, Stored
from hillclimb.training.writer import FOLDER, LATEST, folders, make_latest, whole_folders
from hillclimb.training.writing import Writer

_HASTE = 5.0
"""Seconds that an error on its way out leaves to the checkpoint under way."""


@dataclass(frozen=True)
class Cost:
    """Seconds that a save kept the step: waiting for the one before it, and copying."""

    waited: float
    copied: float


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


class Checkpointer:
    """Saves and loads one learner's state; every rank has its own and calls it alike.

    Leaving the block waits for the checkpoint under way.
    """

    def __init__(
        self, out: ArtifactWriter, learner: Learner, log: Callable[[str], None] = _say
    ) -> None:
        self.out, self.learner, self.log = out, learner, log
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.copy, self.files = HostCopy(), os.memfd_create("hillclimb-checkpoint-files")
        self.writer = Writer(out.uri, self.rank, (self.copy.file, self.files), log)
        self.shapes = _whole_shapes(learner.model)
        self._loaded: Stored | None = None
        self._attempt = _shared(secrets.token_hex(4))
        self._order: dict[str, Any] | None = None
        self._hook = register_optimizer_step_pre_hook(lambda *_: self._pass_on())

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._pass_on()
            self.writer.close(None if kind is None else _HASTE)
        finally:
            self._hook.remove()
            self.copy.close()
            os.close(self.files)

    def save(self, step: int, state: dict[str, Any], extra: dict[str, bytes] | None = None) -> Cost:
        """Copy the state after `step` and have it written; waits for the checkpoint before it.

        Args:
            state: JSON values that decide the future; rank 0's count.
            extra: further files by name; rank 0's count.

        Raises:
            CheckpointError: if the checkpoint before this one could not be written.
            FloatingPointError: if the state is not finite: the last checkpoint stays.
        """
        started = time.perf_counter()
        self.drain()
        ready = time.perf_counter()
        fragments = self.learner.fragments()
        self._require_finite(step, fragments)
        self.copy.take(fragments)
        small: dict[str, bytes] = {}
        if self.rank == 0:
            small = {"state.json": self._described(step, state), **(extra or {})}
        self._order = self._ordered(step, fragments, small)
        if self.copy.is_whole():
            self._pass_on()
        return Cost(ready - started, time.perf_counter() - ready)

    def drain(self) -> None:
        """Wait until the checkpoint under way is on disk, and with rank 0 the newest one."""
        self._pass_on()
        self.writer.wait()

    def latest(self) -> str | None:
        """The folder of the newest whole checkpoint."""
        return self.out.read_text(LATEST) if self.out.exists(LATEST) else None

    def load(self) -> dict[str, Any] | None:
        """Put the newest whole state into the learner; all ranks call it.

        A damaged checkpoint is passed over, and the log says so. What earlier attempts left half
        done is removed.

        Returns:
            The state given to `save`, or None where there is no checkpoint.

        Raises:
            ValueError: if the checkpoint is of another model.
            ArtifactError: if there are checkpoints and all are damaged.
        """
        found = self._candidates() if self.rank == 0 else []
        found = json.loads(_shared(json.dumps(found)))
        self._loaded = next(filter(None, map(self._try, found)), None)
        if self._loaded is None and found:
            raise ArtifactError(
                f"every checkpoint under {self.out.uri}/{FOLDER} is damaged, as the log says: "
                "delete that folder to start from the beginning"
            )
        if self.rank == 0:
            self._tidy()
        if self._loaded is None:
            return None
        self.learner.take(self._loaded.content["steps"])
        state: dict[str, Any] = self._loaded.content["state"]
        return state

    def extra(self, name: str) -> bytes:
        """A further file of the checkpoint that `load` took.

        Raises:
            ArtifactError: if it is damaged.
        """
        assert self._loaded is not None
        try:
            return self._loaded.read(name)
        except Damaged as error:
            raise ArtifactError(f"{error}: delete {self.out.uri}/{FOLDER} to start over") from error

    def _try(self, folder: str) -> Stored | None:
        """The checkpoint, its numbers in the learner; None on all ranks where one finds damage."""
        stored, damage = None, ""
        try:
            stored = Stored(self.out, folder)
            self._require_same_model(stored)
            stored.fill(self.learner.fragments(moments=stored.content["steps"] > 0), self.rank)
            if self.rank == 0:
                stored.check_small_files()
        except Damaged as error:
            damage = str(error)
        if _together(not damage):
            return stored
        if damage:
            self.log(f"{damage}: the checkpoint before it is looked for")
        return None

    def _candidates(self) -> list[str]:
        """Where to look: the newest checkpoint, then the others, the latest step first."""
        newest = self.latest()
        others = [folder for folder in whole_folders(self.out) if folder != newest]
        return [newest, *others] if newest else others

    def _tidy(self) -> None:
        """Remove what is damaged or half done; keep what was loaded and one before it."""
        keep: list[str] = []
        if self._loaded is not None:
            newest = self._loaded.folder
            make_latest(self.out, newest)
            keep = [newest, *[f for f in whole_folders(self.out) if f < newest][:1]]
        for folder in folders(self.out):
            if folder not in keep:
                self.out.remove(folder)

    def _pass_on(self) -> None:
        """Give the writer its order when the copy is whole; also called before an update."""
        if self._order is not None:
            order, self._order = self._order, None
            self.copy.wait()
            self.writer.send(order)

    def _ordered(
        self, step: int, fragments: list[Fragment], small: dict[str, bytes]
    ) -> dict[str, Any]:
        """What the writer is told, in few bytes.

        `files` are name, which memory file, start, bytes; `fragments` is where, in the second
        memory file, the list of fragments stands.
        """
        runs = [(f.name, f.start, f.length) for f in fragments]
        memory = {**small, "": json.dumps(runs).encode()}
        os.ftruncate(self.files, sum(map(len, memory.values())))
        places: list[tuple[str, int, int, int]] = []
        at = 0
        for name, data in memory.items():
            os.pwrite(self.files, data, at)
            places.append((name, 1, at, len(data)))
            at += len(data)
        return {
            "folder": f"{FOLDER}/step-{step:08d}-{self._attempt}",
            "world": self.world,
            "files": [(f"rank-{self.rank}.safetensors", 0, 0, self.copy.size), *places[:-1]],
            "fragments": places[-1][2:],
        }

    def _described(self, step: int, state: dict[str, Any]) -> bytes:
        return json.dumps(
            {
                "state": state,
                "step": step,
                "steps": self.learner.steps,
                "world": self.world,
                "vocabulary": self.learner.model.config.vocab_size,
                "shapes": self.shapes,
            }
        ).encode()

    def _require_same_model(self, stored: Stored) -> None:
        here, there = self.shapes, stored.content["shapes"]
        words = self.learner.model.config.vocab_size, stored.content["vocabulary"]
        where = f"{self.out.uri}/{stored.folder}"
        fix = f"go on with the model that it is of, or delete {self.out.uri}/{FOLDER}"
        if words[0] != words[1]:
            raise ValueError(
                f"{where} is of a vocabulary of {words[1]} tokens, the model now has {words[0]}: "
                f"go on with the tokenizer that it is of, or delete {self.out.uri}/{FOLDER}"
            )
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name):
                raise ValueError(
                    f"{where} has {name} of shape {there.get(name, 'none')}, the model now has "
                    f"{here.get(name, 'none')}: {fix}"
                )

    def _require_finite(self, step: int, fragments: list[Fragment]) -> None:
        if found := first_not_finite(fragments):
            fragment, kind = found
            raise FloatingPointError(
                f"the state after step {step} is not finite ({kind} of {fragment.name}): it is not "
                f"written, {self.latest() or 'none'} under {self.out.uri} is the last checkpoint. "
                "Lower the learning rate's peak or look at the last batches"
            )


def _whole_shapes(model: MaiForCausalLM) -> dict[str, list[int]]:
    """Shapes of the whole model's parameters, however they are laid out here."""
    with torch.device("meta"):
        whole = type(model)(model.config)
    return {name: list(p.shape) for name, p in whole.named_parameters()}


def _shared(text: str) -> str:
    """Rank 0's text, on every rank."""
    if dist.get_world_size() == 1:
        return text
    data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_device())
    size = torch.tensor([len(data)], device=_device())
    dist.broadcast(size, 0)
    data = data if dist.get_rank() == 0 else data.new_empty(int(size))
    dist.broadcast(data, 0)
    return bytes(data.tolist()).decode()


def _together(fine: bool) -> bool:
    """Whether it is fine on every rank."""
    if dist.get_world_size() == 1:
        return fine
    box = torch.tensor([int(fine)], device=_device())
    dist.all_reduce(box, dist.ReduceOp.MIN)
    return bool(box.item())


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
