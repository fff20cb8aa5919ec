"""Tokenised documents in parquet or arrow files under any fsspec URI, read by `datasets`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from hillclimb.artifacts.remote import ArtifactError, is_local, patiently

BATCH_DOCUMENTS = 1024
READERS = 4


class ShardError(ArtifactError):
    """A shard is not what its index says; the message names it."""


class Texts:
    """Tokens of some documents.

    Attributes:
        documents: their numbers, ascending, (n,).
        tokens: one document after another, int32.
        offsets: document i is tokens[offsets[i]:offsets[i + 1]], int64 (n + 1,).
    """

    def __init__(self, documents: np.ndarray, lengths: np.ndarray) -> None:
        self.documents = documents
        self.offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        self.tokens = np.empty(int(self.offsets[-1]), np.int32)

    def body(self, document: int) -> np.ndarray:
        """Tokens of one document, by its number."""
        place = int(np.searchsorted(self.documents, document))
        return self.tokens[self.offsets[place] : self.offsets[place + 1]]


class Shards:
    """Files with a column `tokens`, and an index of their documents that is known beforehand.

    Documents are numbered through all files in order. A file is read from end to end and never
    kept: whoever asks says which documents it wants, and holds no others.
    """

    def __init__(
        self, uris: Sequence[str], counts: Sequence[int], lengths: np.ndarray, sources: np.ndarray,
        names: tuple[str, ...], options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            uris: parquet files or arrow files.
            counts: documents of each.
            lengths: tokens of each document, int32 (D,).
            sources: number of each document's source, int32 (D,).
            names: the sources' names.
            options: for fsspec, where the URIs are remote.
        """
        self.uris, self.names, self.sources = tuple(uris), names, sources
        self.firsts = np.concatenate(([0], np.cumsum(np.asarray(counts, np.int64))))
        self._lengths = lengths
        with _named(self.uris[0], "it is the first"):
            self._files = _open(self.uris, options or {})

    def lengths(self) -> np.ndarray:
        """Tokens of every document."""
        return self._lengths

    def place(self, document: int) -> tuple[str, int]:
        """The file and row of a document."""
        shard = int(np.searchsorted(self.firsts, document, side="right")) - 1
        return self.uris[shard].rpartition("/")[2], int(document - self.firsts[shard])

    def read(self, documents: np.ndarray) -> Texts:
        """Tokens of documents, given by ascending numbers; their files are read side by side.

        Raises:
            ShardError: if a file is truncated, damaged, or not what the index says.
            StoreAway: if a remote store does not answer.
        """
        texts = Texts(documents, self._lengths[documents])
        cuts = np.searchsorted(documents, self.firsts)
        wanted = [shard for shard in range(len(self.uris)) if cuts[shard] < cuts[shard + 1]]

        def fill(shard: int) -> None:
            uri, place = self.uris[shard], int(cuts[shard])
            if is_local(uri):
                self._fill(texts, shard, place)
            else:
                patiently(uri, lambda: self._fill(texts, shard, place))

        with ThreadPoolExecutor(READERS, "shards") as pool:
            list(pool.map(fill, wanted))
        return texts

    def _fill(self, texts: Texts, shard: int, place: int) -> None:
        """Copy what `texts` wants of one file; its documents there begin at `place`."""
        first, end = int(self.firsts[shard]), int(self.firsts[shard + 1])
        row = first
        with _named(self.uris[shard], f"the index says {end - first} documents"):
            for lengths, tokens in _batches(self._files, len(self.uris), shard):
                if not np.array_equal(lengths, self._lengths[row : min(row + len(lengths), end)]):
                    raise ValueError("documents of other lengths than in the index")
                until = int(np.searchsorted(texts.documents, row + len(lengths)))
                keep = np.zeros(len(lengths), bool)
                keep[texts.documents[place:until] - row] = True
                kept = tokens[np.repeat(keep, lengths)]
                texts.tokens[texts.offsets[place] : texts.offsets[until]] = kept
                row, place = row + len(lengths), until
            if row != end:
                raise ValueError(f"it ends after {row - first} documents")


@contextlib.contextmanager
def _named(uri: str, note: str) -> Iterator[None]:
    """Errors about a file's content become a `ShardError`; a store's own errors pass.

    Arrow calls damage a plain OSError without a number or a cause; drivers of stores never do.
    """
    try:
        yield
    except (pa.ArrowException, ValueError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise ShardError(f"the shard {uri} is missing: make the mixture again") from error
        plain = type(error) is OSError and error.errno is None and error.__cause__ is None
        if isinstance(error, OSError) and not plain:
            raise
        told = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ShardError(
            f"the shard {uri} is truncated or damaged ({told}; {note}): delete the mixture and "
            "make it again"
        ) from error


def _open(uris: tuple[str, ...], options: dict[str, Any]) -> Any:
    """All files as one `datasets.IterableDataset`, one source of data each; nothing is read yet.

    The builders are used directly: `load_dataset` would ask for every file's size first, leave a
    lock file a shard in the home folder, and tell a server that it was called.
    """
    from datasets import Features, List, Value
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.arrow.arrow import Arrow
    from datasets.packaged_modules.parquet.parquet import Parquet

    protocol = uris[0].partition("://")[0]
    files = DataFilesDict({"train": DataFilesList(list(uris), [])})
    given: dict[str, Any] = {"data_files": files, "storage_options": {protocol: options}}
    with tempfile.TemporaryDirectory() as folder:
        if uris[0].endswith(".arrow"):
            builder: Any = Arrow(cache_dir=folder, **given)
        else:
            features = Features({"tokens": List(Value("int32"))})
            builder = Parquet(cache_dir=folder, columns=["tokens"], features=features, **given)
        return builder.as_streaming_dataset(split="train").with_format("arrow")


def _batches(files: Any, shards: int, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(lengths, tokens) of one file's documents, batch after batch."""
    for table in files.shard(shards, number).iter(batch_size=BATCH_DOCUMENTS):
        for column in table["tokens"].chunks:
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            yield lengths, column.flatten().to_numpy(zero_copy_only=False)
