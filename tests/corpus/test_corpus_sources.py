"""Readers: every document has provenance, and nothing unreadable stops the run."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hillclimb.corpus import (
    Quarantined,
    RawDocument,
    SourceError,
    read_raw,
    read_sources,
    write_raw,
)
from hillclimb.recipe.corpus import (
    HtmlSource,
    InstalledPackagesSource,
    JsonlSource,
    ParquetSource,
    PythonStdlibSource,
    ReadLimits,
    WorksheetsSource,
)


def jsonl(uri: Path | str, **more: Any) -> JsonlSource:
    return JsonlSource(
        name="rows", licence="MIT", category="web", kind="page", uri=str(uri), **more
    )


def split(
    items: Iterable[RawDocument | Quarantined],
) -> tuple[list[RawDocument], list[Quarantined]]:
    every = list(items)
    good = [item for item in every if isinstance(item, RawDocument)]
    return good, [item for item in every if isinstance(item, Quarantined)]


def line(text: str, **more: Any) -> bytes:
    return json.dumps({"text": text, **more}).encode() + b"\n"


def test_bad_rows_go_to_quarantine_with_place_and_reason(tmp_path: Path) -> None:
    rows = [
        line("first"),
        b'{"text": "caf\xe9"}\n',
        b"{not json}\n",
        b'["a list"]\n',
        b'{"title": "no text"}\n',
        b'{"text": "   "}\n',
        b'{"text": 7}\n',
        b'{"text": "half a pair \\ud800"}\n',
        b"\n",
        line("last"),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"".join(rows))
    good, bad = split(read_sources([jsonl(tmp_path / "*.jsonl")]))
    assert [document.text for document in good] == ["first", "last"]
    assert [document.provenance["locator"] for document in good] == ["a.jsonl:1", "a.jsonl:10"]
    assert [(item.locator, item.reason) for item in bad] == [
        ("a.jsonl:2", "not UTF-8"),
        ("a.jsonl:3", "invalid JSON"),
        ("a.jsonl:4", "row is not a JSON object"),
        ("a.jsonl:5", "no text in field 'text'"),
        ("a.jsonl:6", "no text in field 'text'"),
        ("a.jsonl:7", "no text in field 'text'"),
        ("a.jsonl:8", "text holds lone surrogates"),
    ]
    assert "caf\\xe9" in bad[0].sample


def test_broken_gzip_keeps_what_came_before(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(line(f"row {i} " + "x" * 500) for i in range(4000)), mtime=0)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 40] = b"\xff" * 40
    (tmp_path / "b.jsonl.gz").write_bytes(bytes(damaged))
    (tmp_path / "c.jsonl.gz").write_bytes(b"<html>not gzip</html>")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(line("one")) + gzip.compress(line("two")))
    good, bad = split(read_sources([jsonl(tmp_path / "*.gz")]))
    by_file = {name: sum(d.provenance["locator"].startswith(name) for d in good) for name in "abcd"}
    assert 1000 < by_file["a"] < 4000
    assert by_file["c"] == 0
    assert by_file["d"] == 2
    reasons = {item.locator.split(":")[0]: item.reason for item in bad}
    assert reasons["a.jsonl.gz"] == "unreadable file: gzip ends early"
    assert reasons["c.jsonl.gz"].startswith("unreadable file: the name says gzip")
    assert "b.jsonl.gz" in reasons


def test_a_line_of_100_mb_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as stream:
        stream.write(line("before") + b'{"text": "')
        for _ in range(100):
            stream.write(b"y" * (1 << 20))
        stream.write(b'"}\n' + line("after"))
    tracemalloc.start()
    limits = ReadLimits(max_line_bytes=4 << 20)
    good, bad = split(read_sources([jsonl(tmp_path / "a.jsonl.gz")], limits=limits))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [document.text for document in good] == ["before", "after"]
    assert [(item.locator, item.reason) for item in bad] == [
        ("a.jsonl.gz:2", f"line over {4 << 20} bytes")
    ]
    assert peak < 24 << 20


def test_caps_and_row_fields(tmp_path: Path) -> None:
    rows = [
        line(f"text {i}", kind="note", lic="CC0-1.0", lang="fr", url=f"http://a.b/{i}")
        for i in range(9)
    ]
    (tmp_path / "a.jsonl").write_bytes(b"".join(rows))
    fields = {
        "kind_field": "kind", "licence_field": "lic", "language_field": "lang", "url_field": "url",
    }  # fmt: skip
    good, _ = split(read_sources([jsonl(tmp_path / "a.jsonl", max_documents=3, **fields)]))
    assert len(good) == 3
    first = good[0]
    assert (first.kind, first.licence, first.language) == ("note", "CC0-1.0", "fr")
    assert first.provenance == {
        "source": "rows", "licence": "CC0-1.0", "locator": "a.jsonl:1", "generated": False,
        "url": "http://a.b/0",
    }  # fmt: skip
    good, _ = split(read_sources([jsonl(tmp_path / "a.jsonl", max_chars=13)]))
    assert len(good) == 2


def test_parquet_and_html(tmp_path: Path) -> None:
    table = pa.table({"body": ["one", None, "three"], "other": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "p.html").write_bytes("<p>Grüße</p>".encode("latin-1"))
    (tmp_path / "q.html").write_bytes(b" ")
    table_source = ParquetSource(
        name="t", licence="MIT", category="web", kind="x", text_field="body",
        uri=str(tmp_path / "*.parquet"),
    )  # fmt: skip
    pages = HtmlSource(
        name="h", licence="MIT", category="web", kind="x", uri=str(tmp_path / "*.html")
    )
    good, bad = split(read_sources([table_source, pages]))
    assert [document.text for document in good] == [
        "one",
        "three",
        "<p>Grüße</p>".encode("latin-1"),
    ]
    assert good[2].html
    assert [item.locator for item in bad] == ["a.parquet:2", "b.parquet", "q.html"]


def test_nothing_matched_and_missing_generator_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source rows: .* matches no file"):
        list(read_sources([jsonl(tmp_path / "*.jsonl")]))
    sheets = WorksheetsSource(name="w", category="math", count=3, kinds=("sums",))
    with pytest.raises(SourceError, match="no generator for kind sums; there are tables"):
        list(read_sources([sheets], {"tables": lambda source, n: []}))


def test_worksheets_are_marked_as_generated() -> None:
    sheets = WorksheetsSource(name="w", category="math", count=5, kinds=("sums", "tables"))

    def make(source: WorksheetsSource, count: int) -> Iterable[dict[str, Any]]:
        return [{"text": f"{count} {i}", "level": i} for i in range(count)]

    good, bad = split(read_sources([sheets], {"sums": make, "tables": make}))
    assert not bad
    assert [d.provenance["generator"] for d in good] == ["sums"] * 3 + ["tables"] * 2
    assert all(document.generated for document in good)
    assert good[1].provenance["level"] == 1


def test_what_every_machine_has() -> None:
    sources = [
        PythonStdlibSource(name="stdlib", max_documents=20),
        InstalledPackagesSource(
            name="packages", category="tools", kind="doc", packages=("pydantic",)
        ),
    ]
    good, _ = split(read_sources(sources))
    again, _ = split(read_sources(sources))
    assert good == again
    modules = [document for document in good if document.source == "stdlib"]
    assert len(modules) == 20
    assert all(document.provenance["locator"].startswith("python 3.") for document in modules)
    package = next(document for document in good if document.source == "packages")
    assert package.provenance["locator"].startswith("pydantic 2.")
    assert package.licence == "MIT"
    assert not any("/root" in str(document.provenance) for document in good)


def test_raw_documents_survive_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line("one") + b"{\n" + line("two"))
    (tmp_path / "p.html").write_bytes(b"<p>\xff</p>")
    pages = HtmlSource(
        name="h", licence="MIT", category="web", kind="x", uri=str(tmp_path / "*.html")
    )
    items = list(read_sources([jsonl(tmp_path / "a.jsonl"), pages]))
    counts = write_raw(items, str(tmp_path / "raw"))
    assert counts["sources"]["rows"] == {"documents": 2, "chars": 6, "quarantined": 1}
    key = str
    assert sorted(read_raw(str(tmp_path / "raw")), key=key) == sorted(items, key=key)
