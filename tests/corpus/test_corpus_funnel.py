"""The whole filtering: same bytes each time, everything accounted for."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from hillclimb.corpus import (
    FunnelReport,
    HashedNgramScorer,
    filter_corpus,
    iter_documents,
    read_raw,
    read_sources,
    write_raw,
)
from hillclimb.recipe.corpus import CorpusRecipe, LanguageFilter

NOUN_LIST = (
    "harbour river teacher window garden letter market bridge captain engine winter stone forest "
    "kitchen mountain doctor village painter machine island weather soldier question valley ticket "
    "summer theatre office farmer blanket candle pocket station voyage library neighbour morning"
)
VERB_LIST = (
    "carried followed painted repaired remembered counted measured opened watched borrowed chose "
    "crossed described discovered forgot lifted mentioned noticed preferred reached replaced sold"
)
NOUNS, VERBS = NOUN_LIST.split(), VERB_LIST.split()
TEMPLATES = (
    "The {0} of the {1} {5} every {2}, which {6} a {3}.",
    "Nobody {5} that {0} when the {1} {6} with {2} and {3}.",
    "In {7} a {0} {5} {8} {1}s, but no {2} {6} them.",
    "After the {0}, {8} people {5} their {1} to {2} or {3}.",
    "Once a {0} has {5} the {1}, any {2} may be {6}.",
    "It was {2} that {5} {0}; the {1} {6} {7} years later.",
)
EVAL = (
    "Tell me how many boats were repaired near the mill before the long winter of that year began"
)


def story(seed: int, sentences: int = 25) -> str:
    rng = random.Random(seed)
    parts = [
        rng.choice(TEMPLATES).format(
            *rng.sample(NOUNS, 5), *rng.sample(VERBS, 2), 1500 + rng.randrange(500), seed + i
        )
        for i in range(sentences)
    ]
    return " ".join(parts)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> CorpusRecipe:
    folder = tmp_path_factory.mktemp("rows")
    texts = [story(seed) for seed in range(150)]
    texts += [
        story(3) + " One more sentence was added.",
        story(5).replace("The", "THE").replace("In", "IN"),
        story(200) + " " + EVAL,
    ]
    texts += [
        "Much too short.",
        "Das Boot lag am Morgen still im Hafen und niemand war zu sehen. " * 8,
    ]
    rows = [json.dumps({"text": text}).encode() for text in texts]
    rows[10:10] = [b"{broken", b'{"text": ""}']
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b"\n".join(rows), mtime=0))
    (folder / "b.html").write_text(f"<html><body><main><p>{story(300)}</p></main></body></html>")
    sheets = {"type": "worksheets", "name": "w", "category": "math", "count": 20, "kinds": ["sums"]}
    common: dict[str, Any] = {"licence": "CC0-1.0", "category": "web", "kind": "story"}
    return CorpusRecipe.model_validate(
        {
            "sources": [
                sheets,
                {"type": "jsonl", "name": "rows", "uri": str(folder / "*.gz"), **common},
                {"type": "html", "name": "pages", "uri": str(folder / "*.html"), **common},
            ]
        }
    )  # fmt: skip


def sums(_: object, count: int) -> list[dict[str, str]]:
    return [{"text": f"{i} + {i} = {2 * i}"} for i in range(count)]


def run(recipe: CorpusRecipe, folder: Path, workers: int = 1) -> FunnelReport:
    write_raw(read_sources(recipe.sources, {"sums": sums}), str(folder / "raw"))
    return filter_corpus(
        read_raw(str(folder / "raw")),
        recipe,
        {"boats": [EVAL]},
        HashedNgramScorer.load(),
        str(folder / "out"),
        workers,
    )


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_document_is_accounted_for(recipe: CorpusRecipe, tmp_path: Path) -> None:
    report = run(recipe, tmp_path)
    documents = list(iter_documents(str(tmp_path / "out")))
    read = sum(counts["documents"] for counts in report.read.values())
    assert read == 20 + 155 + 1
    assert read == len(documents) + sum(step.dropped for step in report.steps)
    for before, after in zip(report.steps, report.steps[1:], strict=False):
        assert before.kept == after.kept + after.dropped
        assert before.chars_out == after.chars_in
    assert report.steps[-1].kept == len(documents)
    assert report.steps[-1].chars_out == sum(len(document.text) for document in documents)
    assert report.quarantined == {"invalid JSON": 1, "no text in field 'text'": 1}
    assert report.step("language").dropped == 1
    assert report.step("quality").reasons == {"gopher_short_doc": 1}
    assert report.step("decontamination").reasons == {"contaminated": 1}
    assert report.step("decontamination").examples[0]["detail"] == "1.00 of boats[0]"
    assert report.step("exact_dedup").dropped == 1
    assert report.step("near_dedup").dropped == 1
    assert report.kept["w"]["documents"] == 20
    sheet = next(document for document in documents if document.source == "w")
    assert sheet.provenance["generator"] == "sums"
    saved = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert saved == json.loads(json.dumps(report.as_json()))


def test_two_runs_and_two_workers_give_the_same_bytes(recipe: CorpusRecipe, tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("again", 1), ("two", 2)):
        run(recipe, tmp_path / name, workers)
    first = digests(tmp_path / "one")
    assert set(first) == {
        "raw-00000.parquet", "quarantine-00000.parquet", "documents-00000.parquet", "funnel.json",
    }  # fmt: skip
    assert digests(tmp_path / "again") == first
    assert digests(tmp_path / "two") == first


def test_datasets_reads_the_corpus(recipe: CorpusRecipe, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    run(recipe, tmp_path)
    files = str(tmp_path / "out" / "documents-*.parquet")
    table = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table.column_names == [
        "id", "text", "source", "category", "kind", "licence", "language", "provenance",
    ]  # fmt: skip
    assert table.num_rows == len(list(iter_documents(str(tmp_path / "out"))))
    assert len(set(table["id"])) == table.num_rows
    assert json.loads(table[0]["provenance"])["generated"] is True


def test_a_memory_filesystem_will_do(recipe: CorpusRecipe) -> None:
    items = list(read_sources(recipe.sources[:1], {"sums": sums}))
    filter_corpus(items, recipe, {}, HashedNgramScorer.load(), "memory://corpus-test")
    assert len(list(iter_documents("memory://corpus-test"))) == 20


def test_an_empty_corpus_is_readable(recipe: CorpusRecipe, tmp_path: Path) -> None:
    report = filter_corpus([], recipe, {}, HashedNgramScorer.load(), str(tmp_path))
    assert report.steps[-1].kept == 0
    assert list(iter_documents(str(tmp_path))) == []


def test_real_documents_of_every_kind(shared_data: Path, tmp_path: Path) -> None:
    fields = {"kind_field": "kind", "licence_field": "licence", "language_field": "lang"}
    names = {
        "web_md_en": "web", "papers_stem": "stem", "web_html_en": "web",
        "multilingual_md": "multilingual", "web_html_multilingual": "multilingual",
    }  # fmt: skip
    sources = [
        {
            "type": "jsonl", "name": name, "uri": str(shared_data / "corpus" / f"{name}.jsonl.gz"),
            "licence": "see rows", "category": category, "kind": "text", "html": "auto",
            "language": [], "max_documents": 40, **fields,
        }
        for name, category in names.items()
    ]  # fmt: skip
    recipe = CorpusRecipe.model_validate({"sources": sources}).model_copy(
        update={
            "language": LanguageFilter(allowed=("en", "fr", "de", "es", "ja", "ko", "zh", "it"))
        }
    )
    report = filter_corpus(
        read_sources(recipe.sources), recipe, {}, HashedNgramScorer.load(), str(tmp_path)
    )
    documents = list(iter_documents(str(tmp_path)))
    assert not report.quarantined
    for name in names:
        assert report.kept.get(name, {}).get("documents", 0) >= 10, name
    assert not any("<html" in document.text[:500] for document in documents)
    assert all(document.licence != "see rows" for document in documents)
    assert report.step("ai_text").dropped <= 0.02 * report.step("ai_text").notes["scored"] + 1
