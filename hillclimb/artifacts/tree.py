"""Files under one URI, local or remote."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from hillclimb.artifacts.remote import connect, is_local, patiently

ABSENT = (FileNotFoundError, NotADirectoryError)
T = TypeVar("T")


def digest_of(stream: BinaryIO) -> tuple[int, str]:
    """Bytes and SHA-256 of a stream, read in blocks."""
    sha, size = hashlib.sha256(), 0
    while block := stream.read(1 << 20):
        sha.update(block)
        size += len(block)
    return size, sha.hexdigest()


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a local file whole, folders and all; it is on disk when this returns, or as before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{path}.partial")
    try:
        with open(partial, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Tree:
    """Files under one URI."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.is_local = is_local(self.uri)
        self.fs, base = connect(self.uri)
        self.base = base.rstrip("/")

    def path(self, relative: str) -> str:
        return f"{self.base}/{relative}" if relative else self.base

    def ask(self, operation: Callable[[], T]) -> T:
        """Do what may be done twice, with patience for a remote store."""
        return operation() if self.is_local else patiently(self.uri, operation)

    def exists(self, relative: str) -> bool:
        """Whether there is a file or folder. A store that does not answer is no answer."""
        try:
            self.ask(lambda: self.fs.info(self.path(relative)))
        except ABSENT:
            return False
        return True

    def read_bytes(self, relative: str) -> bytes:
        return bytes(self.ask(lambda: self.fs.cat_file(self.path(relative))))

    def read_text(self, relative: str) -> str:
        return self.read_bytes(relative).decode()

    def list(self, relative: str = "") -> list[str]:
        """Every file below `relative`, sorted, relative to the tree."""
        try:
            found = self.ask(lambda: self.fs.find(self.path(relative)))
        except ABSENT:
            return []
        return sorted(str(p)[len(self.base) + 1 :] for p in found if not str(p).endswith("/"))

    def digest(self, relative: str) -> tuple[int, str]:
        """Bytes and SHA-256 of a file, read in blocks."""

        def read() -> tuple[int, str]:
            with self.fs.open(self.path(relative), "rb") as stream:
                return digest_of(stream)

        return self.ask(read)
