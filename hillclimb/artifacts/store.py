"""Artifacts in a store: written file by file, committed by a manifest that comes last.

An artifact lives under `<root>/artifacts/<name>/<first 16 digits of the fingerprint>/`.
Its `manifest.json` names every file with its SHA-256; without it there is no artifact.
Checkpoints of an unfinished stage live under `resume/` beside it and go at the commit.

The root is a folder or any fsspec URI. Object stores have neither folders nor renames: files are
written whole, and what is seen of them is never taken from a cached listing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from hillclimb.artifacts.copies import bring, cache_root
from hillclimb.artifacts.manifest import FileEntry, Manifest
from hillclimb.artifacts.remote import ArtifactError, StoreAway, is_object_store, no_container
from hillclimb.artifacts.tree import ABSENT, Tree, digest_of, write_durably

MANIFEST = "manifest.json"
RESUME = "resume"


class Unfinished(ArtifactError):
    """There is no manifest."""


class Overtaken(OSError):
    """Another process has committed the artifact that this one is still writing."""


@dataclass
class VerifyReport:
    """What re-hashing found. `problems` are sentences that name a file."""

    checked: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


class Artifact(Tree):
    """A committed artifact, read only."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        try:
            text = self.read_text(MANIFEST)
        except ABSENT:
            raise Unfinished(f"{uri} has no {MANIFEST}: the artifact was never finished") from None
        self.manifest = Manifest.model_validate_json(text)

    @property
    def fingerprint(self) -> str:
        """The identity of this artifact."""
        return self.manifest.fingerprint

    def json(self, relative: str) -> Any:
        """Read a JSON file of the artifact."""
        return json.loads(self.read_text(relative))

    def local(self, relative: str = "") -> Path:
        """A local path of a file or folder.

        Remote files are copied once for all processes of this machine, under `HILLCLIMB_CACHE`.

        Raises:
            ArtifactError: naming the files that are not what the manifest says.
        """
        if self.is_local:
            return Path(self.path(relative))
        folder = self._bring(relative)
        return folder / relative if relative else folder

    def _bring(self, relative: str) -> Path:
        files = {
            entry.path: entry.sha256
            for entry in self.manifest.files
            if not relative or f"{entry.path}/".startswith(f"{relative}/")
        }
        if relative and not files:
            raise ArtifactError(f"{self.uri} holds no {relative}")
        identity = f"{self.uri} {self.manifest.model_dump_json()}"
        folder = cache_root() / hashlib.sha256(identity.encode()).hexdigest()[:32]
        try:
            damaged = bring(folder, files, self._get)
        except FileNotFoundError:
            damaged = sorted(files)
        if damaged:
            self._refuse(self.verify(set(damaged)).problems)
            raise StoreAway(f"{damaged[0]} of {self.uri} did not arrive whole: ask again")
        return folder

    def _get(self, names: list[str], paths: list[str]) -> None:
        remote = [self.path(name) for name in names]
        self.ask(lambda: self.fs.get(remote, paths))

    def verify(self, only: set[str] | None = None) -> VerifyReport:
        """Re-hash every file, or `only` some, where they are stored.

        Returns:
            A report whose problems name the files that are missing or changed.
        """
        report = VerifyReport()
        for entry in self.manifest.files:
            if only is not None and entry.path not in only:
                continue
            where = f"{self.uri}/{entry.path}"
            try:
                size, sha = self.digest(entry.path)
            except ABSENT:
                report.problems.append(f"{where} is missing")
                continue
            report.checked += 1
            report.bytes += size
            if sha != entry.sha256:
                report.problems.append(
                    f"{where} is not what was written: sha256 {sha[:12]}…, "
                    f"manifest says {entry.sha256[:12]}…"
                )
        return report

    def require_intact(self) -> None:
        """Raise `ArtifactError` naming every damaged file.

        Of a remote artifact, this makes the local copy: it is read once, not twice.
        """
        if self.is_local:
            self._refuse(self.verify().problems)
        else:
            self._bring("")

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise ArtifactError(
                "; ".join(problems) + f". Delete {self.uri} and make {self.manifest.name} again."
            )


class ArtifactWriter(Tree):
    """An artifact in the making. Nothing counts until `commit`.

    On a remote store, where no lock keeps two processes apart, a writer stops as soon as another
    one has committed: `Overtaken`.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._written: dict[str, tuple[int, str]] = {}
        if self.is_local:
            self.fs.makedirs(self.base, exist_ok=True)

    def write_text(self, relative: str, text: str) -> None:
        """Write one file whole."""
        self.write_bytes(relative, text.encode())

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write one file whole: readers see all of it or nothing."""
        path = self.path(relative)
        if not self.is_local:
            self._send([relative], lambda: self.fs.pipe_file(path, data))
            self._written[relative] = (len(data), hashlib.sha256(data).hexdigest())
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        partial_path = Path(f"{path}.partial")
        partial_path.write_bytes(data)
        partial_path.replace(path)

    def write_blocks(
        self, relative: str, blocks: Callable[[], Iterable[bytes | memoryview]]
    ) -> tuple[int, str]:
        """Write one file whole, block by block; when this returns, it is on disk.

        Args:
            blocks: gives the file from its start; asked again where a store wants a second try.

        Returns:
            Bytes and SHA-256.
        """
        path, done = self.path(relative), (0, "")

        def write(stream: BinaryIO) -> None:
            nonlocal done
            sha, size = hashlib.sha256(), 0
            for block in blocks():
                stream.write(block)
                sha.update(block)
                size += len(block)
            done = (size, sha.hexdigest())

        def send() -> None:
            with self.fs.open(path, "wb") as stream:
                write(stream)

        if self.is_local:
            write_durably(Path(path), write)
        else:
            self._send([relative], send)
            self._written[relative] = done
        return done

    def write_json(self, relative: str, value: Any) -> None:
        """Write JSON with sorted keys."""
        self.write_text(relative, json.dumps(value, sort_keys=True, indent=1) + "\n")

    @contextlib.contextmanager
    def local(self, relative: str) -> Iterator[Path]:
        """A local path to write a file or folder at; remote stores get it at the end."""
        if self.is_local:
            path = Path(self.path(relative))
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="hillclimb-") as folder:
            path = Path(folder) / Path(relative).name
            yield path
            self._upload(path, relative)

    def _upload(self, source: Path, relative: str) -> None:
        below = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        names = [f"{relative}/{p.relative_to(source)}" if p != source else relative for p in below]
        if not names:
            return
        targets = [self.path(name) for name in names]
        self._send(names, lambda: self.fs.put([str(p) for p in below], targets))
        for path, name in zip(below, names, strict=True):
            with open(path, "rb") as stream:
                self._written[name] = digest_of(stream)

    def _send(self, names: list[str], operation: Callable[[], object]) -> None:
        """Write remote files, in folders that are there."""
        if self.exists(MANIFEST):
            raise Overtaken(f"{self.uri} was committed by another process: there is nothing to do")
        if not is_object_store(self.uri):
            for parent in sorted({self.path(name).rpartition("/")[0] for name in names}):
                self.ask(partial(self.fs.makedirs, parent, exist_ok=True))
        try:
            self.ask(operation)
        except FileNotFoundError as error:
            raise no_container(self.uri) from error

    def remove(self, relative: str) -> None:
        """Delete a file or folder if it is there."""
        with contextlib.suppress(*ABSENT):
            self.ask(lambda: self.fs.rm(self.path(relative), recursive=True))

    def commit(self, manifest: Manifest) -> Manifest:
        """Drop what is left of the resume state, hash every file, write the manifest last.

        What this process sent to a remote store is not read back: its hash is known.

        Raises:
            Overtaken: if another process was first.
        """
        self.remove(RESUME)
        entries = []
        for name in self.list():
            if name == MANIFEST or name.endswith(".partial") or name.startswith(f"{RESUME}/"):
                continue
            size, sha = self._written.get(name) or self.digest(name)
            entries.append(FileEntry(path=name, bytes=size, sha256=sha))
        done = manifest.model_copy(update={"files": entries})
        self.write_text(MANIFEST, done.model_dump_json(indent=1) + "\n")
        return done


class Store:
    """All artifacts under one root."""

    def __init__(self, root: str) -> None:
        self.tree = Tree(root)

    @property
    def root(self) -> str:
        """The root's URI."""
        return self.tree.uri

    def uri(self, name: str, fingerprint: str) -> str:
        """Where the artifact `name` with `fingerprint` lives."""
        return f"{self.root}/artifacts/{name}/{fingerprint[:16]}"

    def find(self, name: str, fingerprint: str) -> Artifact | None:
        """The committed artifact, or None."""
        try:
            return Artifact(self.uri(name, fingerprint))
        except Unfinished:
            return None

    def artifacts(self) -> list[Artifact]:
        """Every committed artifact, sorted by URI."""
        tails = [n for n in self.tree.list("artifacts") if n.endswith("/" + MANIFEST)]
        return [Artifact(f"{self.root}/{name[: -len(MANIFEST) - 1]}") for name in tails]
