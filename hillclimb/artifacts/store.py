"""Artifacts in a store: written file by file, committed by a manifest that comes last.

An artifact lives under `<root>/artifacts/<name>/<first 16 digits of the fingerprint>/`.
Its `manifest.json` names every file with its SHA-256; without it there is no artifact.
Checkpoints of an unfinished stage live under `resume/` beside it and go at the commit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from pydantic import BaseModel, ConfigDict

MANIFEST = "manifest.json"
RESUME = "resume"


class ArtifactError(Exception):
    """An artifact is absent or not what its manifest says; the message names the file."""


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(extra="forbid")
    path: str
    bytes: int
    sha256: str


class InputRef(BaseModel):
    """An artifact that another one was made from."""

    model_config = ConfigDict(extra="forbid")
    name: str
    fingerprint: str
    uri: str


class Manifest(BaseModel):
    """What an artifact is: identity first, then what came out, then how it was made."""

    model_config = ConfigDict(extra="forbid")
    name: str
    kind: str
    fingerprint: str
    code_version: str
    seed: int | None
    inputs: dict[str, InputRef]
    config: dict[str, Any]
    files: list[FileEntry]
    metrics: dict[str, float]
    summary: dict[str, Any]
    run: dict[str, Any]


@dataclass
class VerifyReport:
    """What re-hashing found. `problems` are sentences that name a file."""

    checked: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def _digest(fs: fsspec.AbstractFileSystem, path: str) -> tuple[int, str]:
    sha, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
            size += len(block)
    return size, sha.hexdigest()


class _Tree:
    """Files under one URI."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.fs, self.base = fsspec.core.url_to_fs(self.uri)
        self.base = self.base.rstrip("/")
        protocol = self.fs.protocol
        self.is_local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def path(self, relative: str) -> str:
        return f"{self.base}/{relative}" if relative else self.base

    def exists(self, relative: str) -> bool:
        return bool(self.fs.exists(self.path(relative)))

    def read_text(self, relative: str) -> str:
        with self.fs.open(self.path(relative), "rb") as stream:
            return bytes(stream.read()).decode()

    def list(self, relative: str = "") -> list[str]:
        """Every file below `relative`, sorted, relative to the tree."""
        if not self.exists(relative):
            return []
        found = self.fs.find(self.path(relative))
        return sorted(str(p)[len(self.base) + 1 :] for p in found)


class Artifact(_Tree):
    """A committed artifact, read only."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        if not self.exists(MANIFEST):
            raise ArtifactError(f"{uri} has no {MANIFEST}: the artifact was never finished")
        self.manifest = Manifest.model_validate_json(self.read_text(MANIFEST))
        self._local: dict[str, Path] = {}

    @property
    def fingerprint(self) -> str:
        """The identity of this artifact."""
        return self.manifest.fingerprint

    def json(self, relative: str) -> Any:
        """Read a JSON file of the artifact."""
        return json.loads(self.read_text(relative))

    def local(self, relative: str = "") -> Path:
        """A local path of a file or folder; remote ones are copied once to a temporary folder."""
        if self.is_local:
            return Path(self.path(relative))
        if relative not in self._local:
            target = Path(tempfile.mkdtemp(prefix="hillclimb-")) / (relative or "artifact")
            self.fs.get(self.path(relative), str(target), recursive=True)
            self._local[relative] = target
        return self._local[relative]

    def verify(self) -> VerifyReport:
        """Re-hash every file.

        Returns:
            A report whose problems name the files that are missing or changed.
        """
        report = VerifyReport()
        for entry in self.manifest.files:
            where = f"{self.uri}/{entry.path}"
            if not self.exists(entry.path):
                report.problems.append(f"{where} is missing")
                continue
            size, sha = _digest(self.fs, self.path(entry.path))
            report.checked += 1
            report.bytes += size
            if sha != entry.sha256:
                report.problems.append(
                    f"{where} is not what was written: sha256 {sha[:12]}…, "
                    f"manifest says {entry.sha256[:12]}…"
                )
        return report

    def require_intact(self) -> None:
        """Raise `ArtifactError` naming every damaged file."""
        problems = self.verify().problems
        if problems:
            raise ArtifactError(
                "; ".join(problems) + f". Delete {self.uri} and make {self.manifest.name} again."
            )


class ArtifactWriter(_Tree):
    """An artifact in the making. Nothing counts until `commit`."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.fs.makedirs(self.base, exist_ok=True)

    def write_text(self, relative: str, text: str) -> None:
        """Write one file whole (atomically on local disks)."""
        self.write_bytes(relative, text.encode())

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write one file whole (atomically on local disks)."""
        path = self.path(relative)
        self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        partial = f"{path}.partial" if self.is_local else path
        with self.fs.open(partial, "wb") as stream:
            stream.write(data)
        if self.is_local:
            Path(partial).replace(path)

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
            self.fs.put(str(path), self.path(relative), recursive=path.is_dir())

    def remove(self, relative: str) -> None:
        """Delete a file or folder if it is there."""
        if self.exists(relative):
            self.fs.rm(self.path(relative), recursive=True)

    def commit(self, manifest: Manifest) -> Manifest:
        """Drop what is left of the resume state, hash every file, write the manifest last."""
        self.remove(RESUME)
        names = [n for n in self.list() if n != MANIFEST and not n.endswith(".partial")]
        entries = []
        for name in names:
            size, sha = _digest(self.fs, self.path(name))
            entries.append(FileEntry(path=name, bytes=size, sha256=sha))
        done = manifest.model_copy(update={"files": entries})
        self.write_text(MANIFEST, done.model_dump_json(indent=1) + "\n")
        return done


class Store:
    """All artifacts under one root."""

    def __init__(self, root: str) -> None:
        self.tree = _Tree(root)

    @property
    def root(self) -> str:
        """The root's URI."""
        return self.tree.uri

    def uri(self, name: str, fingerprint: str) -> str:
        """Where the artifact `name` with `fingerprint` lives."""
        return f"{self.root}/artifacts/{name}/{fingerprint[:16]}"

    def find(self, name: str, fingerprint: str) -> Artifact | None:
        """The committed artifact, or None."""
        uri = self.uri(name, fingerprint)
        if not _Tree(uri).exists(MANIFEST):
            return None
        return Artifact(uri)

    def artifacts(self) -> list[Artifact]:
        """Every committed artifact, sorted by URI."""
        tails = [n for n in self.tree.list("artifacts") if n.endswith("/" + MANIFEST)]
        return [Artifact(f"{self.root}/{name[: -len(MANIFEST) - 1]}") for name in tails]
