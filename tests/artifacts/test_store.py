"""Identity that refuses the unstable, and artifacts that exist only once they are whole."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.artifacts import (
    Artifact,
    ArtifactError,
    ArtifactWriter,
    Manifest,
    Store,
    canonical,
    fingerprint,
)

LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=6), LITERALS, max_size=5))
def test_the_order_of_keys_is_no_identity(value):
    backwards = dict(reversed(list(value.items())))
    assert fingerprint(value) == fingerprint(backwards)


def test_different_values_differ():
    values = [1, 1.5, "1", True, None, [1], {"a": 1}, [], {}]
    assert len({fingerprint(v) for v in values}) == len(values)


@pytest.mark.parametrize("value", [{1, 2}, object(), {1: 2}, float("nan"), b"x", [lambda: 1]])
def test_a_value_without_a_stable_form_is_refused(value):
    with pytest.raises(TypeError, match="value"):
        canonical({"value": value})


def manifest(name: str = "a") -> Manifest:
    return Manifest(
        name=name, kind="toy", fingerprint="f" * 64, code_version="1", seed=None, inputs={},
        config={}, files=[], metrics={}, summary={}, run={},
    )  # fmt: skip


@pytest.fixture(params=["file", "memory"])
def uri(request, tmp_path) -> str:
    if request.param == "file":
        return str(tmp_path / "artifacts" / "a" / ("f" * 16))
    return f"memory://{uuid.uuid4().hex}/artifacts/a/" + "f" * 16


def test_without_a_manifest_there_is_no_artifact(uri):
    ArtifactWriter(uri).write_text("x.txt", "hello")
    with pytest.raises(ArtifactError, match="never finished"):
        Artifact(uri)


def test_a_commit_names_every_file_and_drops_the_resume_state(uri):
    out = ArtifactWriter(uri)
    out.write_text("x.txt", "hello")
    out.write_json("deep/y.json", {"b": 1, "a": 2})
    out.write_text("resume/step-1/weights", "old")
    out.commit(manifest())
    made = Artifact(uri)
    assert [f.path for f in made.manifest.files] == ["deep/y.json", "x.txt"]
    assert made.json("deep/y.json") == {"a": 2, "b": 1}
    assert made.local("x.txt").read_text() == "hello"
    assert made.verify().problems == []


def test_a_changed_or_missing_file_is_named(uri):
    out = ArtifactWriter(uri)
    for name in ("x.txt", "y.txt"):
        out.write_text(name, name)
    out.commit(manifest())
    out.fs.pipe_file(out.path("x.txt"), b"x.tXt")
    out.remove("y.txt")
    problems = Artifact(uri).verify().problems
    assert len(problems) == 2
    assert "x.txt is not what was written" in problems[0]
    assert "y.txt is missing" in problems[1]
    with pytest.raises(ArtifactError, match=r"x\.txt.*make a again"):
        Artifact(uri).require_intact()


def test_a_folder_written_through_a_local_path_arrives(uri):
    out = ArtifactWriter(uri)
    with out.local("model") as folder:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    out.commit(manifest())
    assert (Artifact(uri).local("model") / "config.json").read_text() == "{}"


def test_a_store_finds_what_is_committed(tmp_path):
    store = Store(str(tmp_path))
    uri = store.uri("stem/round_0/climb", "a" * 64)
    assert store.find("stem/round_0/climb", "a" * 64) is None
    ArtifactWriter(uri).commit(manifest("stem/round_0/climb"))
    assert store.find("stem/round_0/climb", "a" * 64) is not None
    assert [a.manifest.name for a in store.artifacts()] == ["stem/round_0/climb"]
