"""A stored checkpoint, read by any number of ranks: every byte that counts is checked first."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hillclimb.artifacts import ArtifactWriter
from hillclimb.artifacts.tree import ABSENT, digest_of
from hillclimb.training.fragments import Fragment
from hillclimb.training.host_copy import tensor_name
from hillclimb.training.writer import WHOLE, digest


class Damaged(Exception):
    """A checkpoint is not as it was written; the message names the file."""


@dataclass(frozen=True)
class Piece:
    """Numbers `first` to `last` of a fragment as `rank` keeps it, for the place `to` of ours."""

    rank: int
    start: int
    first: int
    last: int
    to: int


class Stored:
    """A checkpoint's folder.

    Raises:
        Damaged: where a file is missing, cut or changed; when it is read, at the latest.
    """

    def __init__(self, out: ArtifactWriter, folder: str) -> None:
        self.out, self.folder = out, folder
        try:
            whole = json.loads(self._read(WHOLE))
            content = whole["content"]
            if digest(content) != whole["sha256"]:
                raise KeyError
            self.files: dict[str, dict[str, Any]] = content["files"]
            self._runs = [_by_name(fragments) for fragments in content["ranks"]]
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{self._where(WHOLE)} is not what was written") from None
        self.content: dict[str, Any] = json.loads(self.read("state.json"))

    def read(self, name: str) -> bytes:
        """A small file, checked."""
        data = self._read(name)
        self._check(name, digest_of(BytesIO(data)))
        return data

    def check_small_files(self) -> None:
        """Check everything but the ranks' tensors."""
        for name in sorted(self.files):
            if not name.startswith("rank-"):
                self.read(name)

    def fill(self, fragments: Sequence[Fragment], rank: int) -> None:
        """Put the stored numbers into the tensors of `fragments`, from whichever files hold them.

        Args:
            rank: whose file is looked at first.
        """
        plans = [self._plan(fragment, rank) for fragment in fragments]
        ranks = sorted({piece.rank for plan in plans for piece in plan})
        with self._local([f"rank-{r}.safetensors" for r in ranks]) as paths, ExitStack() as stack:
            try:
                files = {
                    r: stack.enter_context(safe_open(path, framework="pt"))
                    for r, path in zip(ranks, paths, strict=True)
                }
                for fragment, plan in zip(fragments, plans, strict=True):
                    for piece in plan:
                        _copy(fragment, piece, files[piece.rank])
            except SafetensorError as error:
                raise Damaged(f"{self._where('rank-*.safetensors')}: {error}") from None

    def _plan(self, fragment: Fragment, rank: int) -> list[Piece]:
        """Which stored pieces make up a fragment."""
        found, at, end = [], fragment.start, fragment.start + fragment.length
        order = sorted(range(len(self._runs)), key=lambda r: (r != rank, r))
        held = [(r, run) for r in order for run in self._runs[r].get(fragment.name, ())]
        while at < end:
            piece = next(((r, s, n) for r, (s, n) in held if s <= at < s + n), None)
            if piece is None:
                raise Damaged(
                    f"{self._where(WHOLE)}: no rank's file holds number {at} of {fragment.name}"
                )
            keeper, start, length = piece
            stop = min(end, start + length)
            found.append(Piece(keeper, start, at - start, stop - start, at - fragment.start))
            at = stop
        return found

    @contextlib.contextmanager
    def _local(self, names: list[str]) -> Iterator[list[Path]]:
        """Local paths of files that are what was written; remote ones are copied."""
        with ExitStack() as stack:
            remote = [self.out.path(f"{self.folder}/{name}") for name in names]
            paths = [Path(path) for path in remote]
            if not self.out.is_local:
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="hillclimb-"))
                paths = [Path(scratch) / name for name in names]
                try:
                    self.out.ask(lambda: self.out.fs.get(remote, [str(p) for p in paths]))
                except ABSENT:
                    raise Damaged(f"{self.out.uri}/{self.folder}: a file is missing") from None
            for name, path in zip(names, paths, strict=True):
                try:
                    with open(path, "rb") as stream:
                        self._check(name, digest_of(stream))
                except FileNotFoundError:
                    raise Damaged(f"{self._where(name)} is missing") from None
            yield paths

    def _read(self, name: str) -> bytes:
        try:
            return self.out.read_bytes(f"{self.folder}/{name}")
        except ABSENT:
            raise Damaged(f"{self._where(name)} is missing") from None

    def _check(self, name: str, found: tuple[int, str]) -> None:
        size, sha = found
        entry = self.files.get(name)
        if entry is None:
            raise Damaged(f"{self._where(WHOLE)} does not name {name}")
        if size != entry["bytes"]:
            raise Damaged(f"{self._where(name)} has {size} bytes, {entry['bytes']} were written")
        if sha != entry["sha256"]:
            raise Damaged(
                f"{self._where(name)} is not what was written: sha256 {sha[:12]}…, "
                f"{entry['sha256'][:12]}… was written"
            )

    def _where(self, name: str) -> str:
        return f"{self.out.uri}/{self.folder}/{name}"


def _by_name(fragments: list[tuple[str, int, int]]) -> dict[str, list[tuple[int, int]]]:
    """Runs of numbers (start, length) by parameter."""
    runs: dict[str, list[tuple[int, int]]] = {}
    for name, start, length in fragments:
        runs.setdefault(name, []).append((start, length))
    return runs


@torch.no_grad()
def _copy(fragment: Fragment, piece: Piece, file: Any) -> None:
    for kind, tensor in fragment.tensors.items():
        stored = file.get_slice(tensor_name(fragment.name, piece.start, kind))
        numbers = stored[piece.first : piece.last]
        tensor[piece.to : piece.to + len(numbers)].copy_(numbers)
