"""The report: its numbers, partial experiments, escaping, sameness."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_experiment import HOSTILE, TRAINED, Maker, recipe, write_parquet

from hillclimb.artifacts import ArtifactError, ArtifactWriter
from hillclimb.recipe.graph import stage_specs
from hillclimb.report import build_report
from hillclimb.report.experiment import Experiment
from hillclimb.report.rollouts import pack

ROLLOUTS = 7 * 60 * 3 * 8


def blocks_of(page: str) -> list[dict[str, Any]]:
    """The rollouts that a page carries, unpacked as its script does."""
    found = re.findall(r'class="block"[^>]*>([A-Za-z0-9+/=]+)</script>', page)
    return [json.loads(gzip.decompress(base64.b64decode(text))) for text in found]


def text_of(page: str) -> str:
    """What a reader sees, without markup."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


class Tags(HTMLParser):
    """Counts tags, collects ids and links, and checks that every tag is closed."""

    VOID = ("meta", "input", "br", "img", "link")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def parsed(page: str) -> Tags:
    """The page's tags."""
    tags = Tags()
    tags.feed(page)
    return tags


def test_headline_says_what_was_made_and_how_well(report: Path) -> None:
    seen = text_of(report.read_text())
    assert "A reasoning model of 653k parameters" in seen
    assert "documents kept 5,481 of 12,000" in seen
    assert "base training 1.23M tokens" in seen
    assert f"rollouts kept {ROLLOUTS:,}" in seen
    assert "0.40 → 0.88 sampled 0.46 → 0.94 greedy n = 200" in seen
    assert "0.875 ± 0.023" in seen
    assert "0.935 ± 0.017" in seen


def test_every_section_shows_its_numbers(report: Path) -> None:
    seen = text_of(report.read_text())
    assert "Round 1 ended (plateau): the pass rate gained less than 0.02 in 50 steps" in seen
    assert "R = task + 0.5·language − 0.25·length" in seen
    assert "trust [0.4, 2.5+k]" in seen
    assert "7,827 kept, 3,100 dropped" in seen
    assert "Quarantine: 2 rows that could not be read" in seen
    assert "1.67 / 8" in seen
    assert "code 20,000 2.000 0.900 1.750 0.789 1.500 0.678" in seen
    assert "Loss spikes and their data: 3" in seen
    assert "64 to 128 1.840 1.590 1.340" in seen
    assert "1,440 300 120 6 language 2, repeats 7" in seen
    assert "stem/round_1/student 300 50k 2.000 1.220" in seen
    assert "Not made yet" not in seen


def test_an_alarm_is_told_and_marked_where_it_began(report: Path) -> None:
    page = report.read_text()
    words = "Round 0 raised an alarm (gradient, 2 of 60 steps): the gradient's norm is 31 times"
    assert text_of(page).count(words) == 1
    assert page.count("alarm: gradient") == 1
    assert "was halted by a signal" not in page
    assert "alarm: entropy" not in page


def test_a_climb_that_waits_for_a_person_says_so(tmp_path: Path) -> None:
    """Also one whose clips are fixed, without a controller and an outer clip."""
    clips = {"type": "fixed", "outer": None}
    climb = {**recipe().final.climb.model_dump(mode="json"), "clips": clips, "entropy": None}
    final = {**recipe().final.model_dump(mode="json"), "climb": climb}
    changed = type(recipe()).model_validate({**recipe().model_dump(mode="json"), "final": final})
    maker = Maker(str(tmp_path), changed)
    maker.make(lambda spec: spec.name == "mai_thinking")
    where = maker.store.uri("mai_thinking", maker.fingerprints["mai_thinking"])
    stop = {"reason": "reward_hack", "sentence": "canaries everywhere", "step": 3}
    (Path(where) / "stop.json").write_text(json.dumps(stop))
    page = text_of(build_report(str(tmp_path), changed, 0, tmp_path / "r.html").read_text())
    assert "(reward_hack): canaries everywhere; this waits for a person" in page
    assert "trust [0.8, 1.28]" in page
    assert "No controller: the trust clip stays as it is." in page


def test_cost_is_the_sum_of_the_stages(report: Path) -> None:
    count = len(stage_specs(recipe()))
    seconds = sum(10 + index for index in range(count))
    seen = text_of(report.read_text())
    assert f"stages, one after another {seconds // 60} min {seconds % 60} s" in seen
    assert f"CPU-core hours {seconds / 3600:.2f}" in seen
    tokens = 3 * 409_600 + 7 * 600_000 + 4 * 50_000
    assert f"tokens trained, sampled and learned {tokens / 1e6:.3g}M" in seen


def test_goodput_names_its_stalls_and_adds_up(report: Path) -> None:
    page = report.read_text()
    seen = text_of(page).replace(" , ", ", ")
    trained = [name for name, spec in stage_specs(recipe()).items() if spec.kind in TRAINED]
    for name in trained:
        assert f"{name} 80.0 % restarts 9.0 %, start 4.0 %, lost steps 3.0 % 3 100 4" in seen
    assert f"{trained[0]} 1 min 40 s 1 min 20 s 1.0 s 0.5 s 0.5 s 3.0 s 9.0 s 4.0 s" in seen
    for bar in re.findall(r'class="split" aria-hidden="true">(.*?)</span>', page):
        widths = [float(width) for width in re.findall(r"width:([\d.]+)%", bar)]
        assert sum(widths) == pytest.approx(100, abs=1.5)


def test_every_rollout_is_there_with_its_parts(report: Path, whole_root: str) -> None:
    blocks = blocks_of(report.read_text())
    assert [block["climb"] for block in blocks] == [
        name for name, spec in stage_specs(recipe()).items() if spec.kind == "climb"
    ]
    assert sum(len(block["response"]) for block in blocks) == ROLLOUTS
    experiment = Experiment.read(whole_root, recipe(), 0)
    rows = experiment.head("stem/round_0/climb", ["rollouts/part-00000.parquet"], 40)
    block = blocks[0]
    for index, row in enumerate(rows):
        assert block["response"][index] == row["response"]
        assert block["prompt"]["words"][block["prompt"]["at"][index]] == row["prompt"]
        assert block["reward"][index] == (
            None if row["reward"] is None else pytest.approx(row["reward"], abs=1e-3)
        )
        assert block["other"]["logprob"][index] == pytest.approx(row["logprob"], abs=1e-3)


def test_model_text_is_inert(report: Path) -> None:
    page = report.read_text()
    assert HOSTILE not in page
    assert "<img" not in page
    assert html.escape(HOSTILE, quote=False)[:40] in page.replace("&#39;", "'")
    scripts = re.findall(r"<script\b[^>]*>", page)
    assert len(scripts) == 7 + 1
    assert blocks_of(page)[0]["response"][0] == HOSTILE


def test_page_is_well_formed_and_asks_for_nothing(report: Path) -> None:
    page = report.read_text()
    tags = parsed(page)
    assert tags.open == []
    assert "link" not in tags.tags
    outside = [v for k, v in tags.attributes if k in ("src", "href") and not str(v).startswith("#")]
    assert outside == []
    assert "url(" not in page
    assert "default-src 'none'" in html.unescape(page)
    ids = [v for k, v in tags.attributes if k == "id"]
    assert len(ids) == len(set(ids))
    targets = {str(v)[1:] for k, v in tags.attributes if k == "href"}
    assert targets <= {*ids}, "every link inside the page has a target"


def test_no_absolute_path_leaks(report: Path, whole_root: str) -> None:
    assert whole_root not in report.read_text()


def test_same_artifacts_give_the_same_bytes(report: Path, whole_root: str, tmp_path: Path) -> None:
    again = build_report(whole_root, recipe(), 0, tmp_path / "deep" / "again.html")
    assert again.read_bytes() == report.read_bytes()
    assert [path.name for path in again.parent.iterdir()] == ["again.html"]


def test_nothing_made_yet(tmp_path: Path) -> None:
    page = build_report(str(tmp_path / "root"), recipe(), 0, tmp_path / "r.html").read_text()
    seen = text_of(page)
    assert "A climb that has just begun" in seen
    assert f"0 of {len(stage_specs(recipe()))} stages are made" in seen
    assert blocks_of(page) == []
    assert parsed(page).open == []


@pytest.mark.parametrize("until", ["filtered_corpus", "mai_base_16k", "stem/round_1/climb"])
def test_partial_experiments_say_what_is_missing(tmp_path: Path, until: str) -> None:
    names = list(stage_specs(recipe()))
    wanted = names[: names.index(until) + 1]
    Maker(str(tmp_path / "root"), recipe()).make(lambda spec: spec.name in wanted)
    page = build_report(str(tmp_path / "root"), recipe(), 0, tmp_path / "r.html").read_text()
    seen = text_of(page)
    assert f"{len(wanted)} of {len(names)} stages are made" in seen
    assert "Not made yet: scorecard" in seen
    assert parsed(page).open == []
    assert "Missing in the artifacts" not in seen


def test_another_seed_is_another_experiment(whole_root: str, tmp_path: Path) -> None:
    seen = text_of(build_report(whole_root, recipe(), 1, tmp_path / "r.html").read_text())
    assert "documents kept 5,481 of 12,000" in seen, "the corpus does not depend on the seed"
    assert "Not made yet: scorecard" in seen


def test_a_hole_in_an_artifact_is_said(tmp_path: Path) -> None:
    maker = Maker(str(tmp_path / "root"), recipe())
    maker.make(lambda spec: spec.name == "mai_base_16k")
    artifact = maker.store.find("mai_base_16k", maker.fingerprints["mai_base_16k"])
    assert artifact is not None
    Path(artifact.path("held_out.json")).unlink()
    seen = text_of(build_report(maker.store.root, recipe(), 0, tmp_path / "r.html").read_text())
    assert "held_out.json is not in the artifact mai_base_16k, which is made" in seen


def test_a_rollout_file_without_a_column_is_named(tmp_path: Path) -> None:
    maker = Maker(str(tmp_path / "root"), recipe())
    spec = maker.specs["stem/round_0/climb"]
    out = ArtifactWriter(maker.store.uri(spec.name, maker.fingerprints[spec.name]))
    write_parquet(out, "rollouts/part-00000.parquet", [{"update": 0, "group": 0}])
    maker.commit(out, spec, {}, 1.0)
    with pytest.raises(
        ArtifactError, match=r"part-00000.parquet of stem/round_0/climb lacks .*turns"
    ):
        pack(Experiment.read(maker.store.root, recipe(), 0))


def test_a_cap_leaves_out_whole_groups_and_says_so(whole_root: str) -> None:
    experiment = Experiment.read(whole_root, recipe(), 0)
    blocks = pack(experiment, max_rows=2000)
    shown = sum(block.shown for block in blocks)
    assert sum(block.total for block in blocks) == ROLLOUTS
    assert 1500 < shown < 2500
    assert all(block.shown for block in blocks), "every climb keeps its share"
    for block in blocks:
        data = json.loads(gzip.decompress(base64.b64decode(block.text)))
        assert len(data["index"]) == block.shown
        sizes: dict[tuple[int, int], int] = {}
        for key in zip(data["update"], data["group"], strict=True):
            sizes[key] = sizes.get(key, 0) + 1
        assert set(sizes.values()) == {8}, "groups stay whole"
    assert pack(experiment, max_rows=2000) == blocks


def test_a_cap_on_characters_holds(whole_root: str) -> None:
    experiment = Experiment.read(whole_root, recipe(), 0)
    whole = sum(len(block.text) for block in pack(experiment))
    blocks = pack(experiment, max_characters=whole // 3)
    assert whole // 5 < sum(len(block.text) for block in blocks) <= whole // 3
