"""Raw and clean documents as parquet, byte for byte the same each time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from hillclimb.corpus.rows import Document, Quarantined, RawDocument

SHARD_CHARS = 128 << 20
_BATCH = 256

_COMMON = [
    ("id", pa.string()),
    ("text", pa.string()),
    ("source", pa.string()),
    ("category", pa.string()),
    ("kind", pa.string()),
    ("licence", pa.string()),
    ("language", pa.string()),
    ("provenance", pa.string()),
]
DOCUMENTS = pa.schema(_COMMON)
RAW = pa.schema([*_COMMON, ("data", pa.binary()), ("html", pa.bool_())])
QUARANTINE = pa.schema([(f.name, pa.string()) for f in fields(Quarantined)])


class ParquetShards:
    """Writes rows to `<prefix>-00000.parquet`, `-00001`, … of about 128 Mi characters each.

    At least one shard is written, so that an empty corpus is readable too. Use as a context.
    """

    def __init__(self, folder: str, prefix: str, schema: pa.Schema) -> None:
        self.fs, self.base = fsspec.core.url_to_fs(folder.rstrip("/"))
        self.fs.makedirs(self.base, exist_ok=True)
        self.prefix, self.schema = prefix, schema
        self.paths: list[str] = []
        self._rows: list[Mapping[str, Any]] = []
        self._chars = 0
        self._open()

    def __enter__(self) -> ParquetShards:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, row: Mapping[str, Any], chars: int) -> None:
        """Add one row; `chars` is what it counts towards the size of the shard."""
        if self._chars + chars > SHARD_CHARS and self._chars:
            self._close()
            self._open()
        self._rows.append(row)
        self._chars += chars
        if len(self._rows) >= _BATCH:
            self._flush()

    def _open(self) -> None:
        name = f"{self.prefix}-{len(self.paths):05d}.parquet"
        self.paths.append(name)
        self._stream = self.fs.open(f"{self.base}/{name}", "wb")
        self._writer = pq.ParquetWriter(self._stream, self.schema, compression="zstd")
        self._chars = 0

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self.schema))
            self._rows = []

    def _close(self) -> None:
        self._flush()
        self._writer.close()
        self._stream.close()


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def document_row(document: Document) -> dict[str, Any]:
    """One row of `documents-*.parquet`."""
    row = {name: getattr(document, name) for name in DOCUMENTS.names if name != "provenance"}
    return {**row, "provenance": canonical(dict(document.provenance))}


def raw_row(document: RawDocument) -> dict[str, Any]:
    """One row of `raw-*.parquet`: `text`, or `data` where the encoding is not known yet."""
    row = {name: getattr(document, name) for name in DOCUMENTS.names if name != "text"}
    row["provenance"] = canonical(dict(document.provenance))
    is_text = isinstance(document.text, str)
    return {
        **row,
        "text": document.text if is_text else None,
        "data": None if is_text else document.text,
        "html": document.html,
    }


def quarantine_row(item: Quarantined) -> dict[str, Any]:
    """One row of `quarantine-*.parquet`."""
    return {name: getattr(item, name) for name in QUARANTINE.names}


def rows_of(folder: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Every row of `<prefix>-*.parquet`, in order, holding one batch at a time.

    Raises:
        FileNotFoundError: if there is no shard.
    """
    fs, base = fsspec.core.url_to_fs(folder.rstrip("/"))
    paths = sorted(str(path) for path in fs.glob(f"{base}/{prefix}-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no {prefix}-*.parquet")
    for path in paths:
        with fs.open(path, "rb") as stream:
            table = pq.ParquetFile(cast(BinaryIO, stream))
            for batch in table.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()


def write_raw(items: Iterable[RawDocument | Quarantined], folder: str) -> dict[str, Any]:
    """Write what `read_sources` yields, as `raw-*.parquet` and `quarantine-*.parquet`.

    Returns:
        `{"sources": {name: {"documents", "chars", "quarantined"}}}`, chars being bytes for rows
        whose encoding is not known yet.
    """
    sources: dict[str, dict[str, int]] = {}
    raw, bad = ParquetShards(folder, "raw", RAW), ParquetShards(folder, "quarantine", QUARANTINE)
    with raw, bad:
        for item in items:
            empty = {"documents": 0, "chars": 0, "quarantined": 0}
            counts = sources.setdefault(item.source, empty)
            if isinstance(item, Quarantined):
                bad.write(quarantine_row(item), len(item.sample))
                counts["quarantined"] += 1
            else:
                raw.write(raw_row(item), len(item.text))
                counts["documents"] += 1
                counts["chars"] += len(item.text)
    return {"sources": sources}


def read_raw(folder: str) -> Iterator[RawDocument | Quarantined]:
    """What `write_raw` wrote: the documents in order, then the quarantined rows."""
    for row in rows_of(folder, "raw"):
        data, text = row.pop("data"), row.pop("text")
        row["provenance"] = json.loads(row["provenance"])
        yield RawDocument(text=data if text is None else text, **row)
    for row in rows_of(folder, "quarantine"):
        yield Quarantined(**row)


def iter_documents(folder: str) -> Iterator[Document]:
    """The clean documents of a filtered corpus, in order."""
    for row in rows_of(folder, "documents"):
        row["provenance"] = json.loads(row["provenance"])
        yield Document(**row)
