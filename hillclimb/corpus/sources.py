"""Sources into raw documents: each reader yields documents and quarantined rows, in one order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from hillclimb.corpus.lines import BrokenStream, LongLine, blocks, lines
from hillclimb.corpus.local_python import read_installed_packages, read_stdlib
from hillclimb.corpus.rows import Quarantined, RawDocument, raw_document, shorten
from hillclimb.recipe.corpus import (
    AnySource,
    HtmlSource,
    InstalledPackagesSource,
    JsonlSource,
    ParquetSource,
    PythonStdlibSource,
    ReadLimits,
    Source,
    TableSource,
    WorksheetsSource,
)

Item = RawDocument | Quarantined
Generator = Callable[[WorksheetsSource, int], Iterable[Mapping[str, Any]]]
_MARKUP = ("<?xml", "<!doctype", "<html", "<head", "<body", "<article", "<div", "<p>")


class SourceError(Exception):
    """A source cannot be read at all; the message names it and the fix."""


def read_sources(
    sources: Sequence[AnySource],
    generators: Mapping[str, Generator] | None = None,
    limits: ReadLimits | None = None,
) -> Iterator[Item]:
    """Every document of every source, in the order of the sources.

    Args:
        sources: what the recipe lists; the order is the priority in deduplication.
        generators: for `worksheets`, one callable per kind. It is called with the source and the
            number of documents to make and yields rows with a `text` and, if it likes, further
            fields, which go to the provenance.
        limits: the largest line and document that is taken.

    Raises:
        SourceError: if a URI matches nothing or a worksheet kind has no generator.
    """
    limits = limits or ReadLimits()
    for source in sources:
        yield from _capped(source, _read(source, generators or {}, limits), limits)


def _read(
    source: AnySource, generators: Mapping[str, Generator], limits: ReadLimits
) -> Iterator[Item]:
    match source:
        case PythonStdlibSource():
            return read_stdlib(source)
        case InstalledPackagesSource():
            return read_installed_packages(source)
        case JsonlSource():
            return _over_files(source, source.uri, _jsonl_reader(source, limits))
        case ParquetSource():
            return _over_files(source, source.uri, _parquet_reader(source))
        case HtmlSource():
            return _over_files(source, source.uri, _html_reader(source, limits))
        case WorksheetsSource():
            return _worksheets(source, generators)


def _capped(source: Source, items: Iterator[Item], limits: ReadLimits) -> Iterator[Item]:
    """Apply the caps of the source and put texts that no later step could hold in quarantine."""
    documents = chars = 0
    for item in items:
        if isinstance(item, RawDocument):
            problem = _unstorable(item.text, limits.max_document_chars)
            if problem:
                locator = str(item.provenance["locator"])
                yield Quarantined(item.source, locator, problem, shorten(item.text))
                continue
            size = len(item.text)
            if source.max_documents is not None and documents >= source.max_documents:
                return
            if source.max_chars is not None and chars + size > source.max_chars:
                return
            documents, chars = documents + 1, chars + size
        yield item


def _unstorable(text: str | bytes, max_chars: int) -> str:
    if len(text) > max_chars:
        return f"document over {max_chars} characters"
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError:
            return "text holds lone surrogates"
    return ""


_FileReader = Callable[[BinaryIO, str], Iterator[Item]]


def _over_files(source: Source, uri: str, read: _FileReader) -> Iterator[Item]:
    """Open every file that `uri` matches, sorted; one that cannot be read goes to quarantine."""
    fs, pattern = fsspec.core.url_to_fs(uri)
    paths = sorted(str(path) for path in fs.glob(pattern) if not fs.isdir(path))
    if not paths:
        raise SourceError(f"source {source.name}: {uri} matches no file; correct its uri")
    fixed = pattern.split("*", 1)[0]
    base = fixed.rsplit("/", 1)[0] + "/" if "/" in fixed else ""
    for path in paths:
        locator = path.removeprefix(base)
        try:
            with fs.open(path, "rb") as stream:
                yield from read(cast(BinaryIO, stream), locator)
        except (OSError, BrokenStream, pa.ArrowException) as error:
            reason = str(error) if isinstance(error, BrokenStream) else type(error).__name__
            yield Quarantined(source.name, locator, f"unreadable file: {reason}")


def _jsonl_reader(source: JsonlSource, limits: ReadLimits) -> _FileReader:
    def read(stream: BinaryIO, locator: str) -> Iterator[Item]:
        parts = blocks(stream, gzip_expected=locator.endswith(".gz"))
        for number, line in enumerate(lines(parts, limits.max_line_bytes), start=1):
            place = f"{locator}:{number}"
            if isinstance(line, LongLine):
                reason = f"line over {limits.max_line_bytes} bytes"
                yield Quarantined(source.name, place, reason, shorten(line.head))
            elif line.strip():
                yield _parse(source, place, line)

    return read


def _parse(source: JsonlSource, locator: str, line: bytes) -> Item:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = "not UTF-8"
        sample = shorten(line[max(0, error.start - 40) : error.start + 40])
        return Quarantined(source.name, locator, reason, sample)
    except (ValueError, RecursionError):
        return Quarantined(source.name, locator, "invalid JSON", shorten(line))
    if not isinstance(row, dict):
        return Quarantined(source.name, locator, "row is not a JSON object", shorten(line))
    return _row(source, locator, row)


def _parquet_reader(source: ParquetSource) -> _FileReader:
    def read(stream: BinaryIO, locator: str) -> Iterator[Item]:
        table, number = pq.ParquetFile(stream), 0
        wanted = {source.text_field, *_extra_fields(source)}
        columns = [name for name in table.schema_arrow.names if name in wanted]
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield _row(source, f"{locator}:{number}", row)

    return read


def _extra_fields(source: TableSource) -> list[str]:
    named = (source.kind_field, source.licence_field, source.language_field, source.url_field)
    return [name for name in named if name]


def _row(source: TableSource, locator: str, row: Mapping[str, Any]) -> Item:
    text = row.get(source.text_field)
    if not isinstance(text, str) or not text.strip():
        reason = f"no text in field {source.text_field!r}"
        return Quarantined(source.name, locator, reason, shorten(repr(dict(row))))
    url = _text_field(row, source.url_field)
    html = source.html
    if html == "auto":
        html = text.lstrip("\ufeff \t\r\n")[:16].lower().startswith(_MARKUP)
    return raw_document(
        source,
        locator,
        text,
        kind=_text_field(row, source.kind_field),
        licence=_text_field(row, source.licence_field),
        language=_text_field(row, source.language_field),
        html=html,
        extra={"url": url} if url else None,
    )


def _text_field(row: Mapping[str, Any], name: str | None) -> str:
    value = row.get(name) if name else None
    return value if isinstance(value, str) else ""


def _html_reader(source: HtmlSource, limits: ReadLimits) -> _FileReader:
    def read(stream: BinaryIO, locator: str) -> Iterator[Item]:
        data = stream.read(limits.max_document_chars + 1)
        if data.strip():
            yield raw_document(source, locator, data, html=True)
        else:
            yield Quarantined(source.name, locator, "empty file")

    return read


def _worksheets(source: WorksheetsSource, generators: Mapping[str, Generator]) -> Iterator[Item]:
    missing = [kind for kind in source.kinds if kind not in generators]
    if missing:
        known = ", ".join(sorted(generators)) or "none"
        raise SourceError(
            f"source {source.name}: no generator for kind {', '.join(missing)}; there are {known}"
        )
    for index, kind in enumerate(source.kinds):
        count = source.count // len(source.kinds) + (index < source.count % len(source.kinds))
        for number, row in enumerate(generators[kind](source, count)):
            yield _worksheet(source, kind, number, row)


def _worksheet(source: WorksheetsSource, kind: str, number: int, row: Mapping[str, Any]) -> Item:
    locator = f"{kind}:{number}"
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        return Quarantined(source.name, locator, "no text in field 'text'", shorten(repr(row)))
    extra = {key: value for key, value in row.items() if key != "text"}
    return raw_document(source, locator, text, generator=kind, extra=extra)
