"""The tools of an agentic episode, over a real sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hillclimb.environments.sandbox import BubblewrapProvider, SandboxDied
from hillclimb.environments.tools import TOOLS, Toolbox, shortened


@pytest.fixture
def tools() -> Iterator[Toolbox]:
    with BubblewrapProvider().start() as sandbox:
        yield Toolbox(sandbox, timeout_s=1.0, max_chars=400)


def edit(tools: Toolbox, command: str, path: str = "f.txt", **arguments: object) -> str:
    return tools.call("str_replace_editor", {"command": command, "path": path, **arguments})


def test_the_schema_is_json_and_names_every_argument() -> None:
    schemas = {tool["function"]["name"]: tool["function"] for tool in json.loads(json.dumps(TOOLS))}
    assert schemas["bash"]["parameters"]["required"] == ["command"]
    editor = schemas["str_replace_editor"]["parameters"]["properties"]
    assert editor["command"]["enum"] == ["view", "create", "str_replace", "insert", "undo_edit"]
    assert sorted(editor) == [
        "command", "file_text", "insert_line", "new_str", "old_str", "path", "view_range",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "observation"),
    [
        ("echo hi", "hi"),
        ("true", "ok"),
        ("false", "exit 1"),
        ("echo out; echo err >&2; exit 3", "out\nerr\nexit 3"),
        ("while :; do :; done", "error: killed after 1 s"),
        ("printf 'a\\nb\\n\\n'", "a\nb"),
    ],
)
def test_bash_observations(tools: Toolbox, command: str, observation: str) -> None:
    assert tools.call("bash", {"command": command}) == observation


def test_bash_keeps_files_but_no_state(tools: Toolbox) -> None:
    tools.call("bash", {"command": "mkdir d; cd d; X=1; echo 5 > f"})
    assert tools.call("bash", {"command": "pwd; echo [$X]; cat d/f"}) == "/work\n[]\n5"


def test_too_much_output_is_said(tools: Toolbox) -> None:
    observation = tools.call("bash", {"command": "yes"})
    assert observation.endswith("error: killed for too much output")
    assert "characters left out]" in observation
    assert len(observation) < 460


def test_an_edit_from_creation_to_undo(tools: Toolbox) -> None:
    assert edit(tools, "create", file_text="one\ntwo\n") == "ok"
    assert edit(tools, "create", file_text="x") == "error: file exists"
    assert edit(tools, "view") == "one\ntwo\n"
    assert edit(tools, "str_replace", old_str="two", new_str="2") == "ok"
    assert edit(tools, "insert", insert_line=1, new_str="half") == "ok"
    assert edit(tools, "view") == "one\nhalf\n2\n"
    assert tools.call("bash", {"command": "cat f.txt"}) == "one\nhalf\n2"
    assert edit(tools, "undo_edit", path="/work/./f.txt") == "ok"
    assert edit(tools, "view") == "one\n2\n"
    assert edit(tools, "undo_edit") == "ok"
    assert edit(tools, "undo_edit") == "ok"
    assert edit(tools, "view") == "error: cannot read '/work/f.txt': No such file"
    assert edit(tools, "undo_edit") == "error: nothing to undo"


def test_str_replace_needs_exactly_one_match(tools: Toolbox) -> None:
    edit(tools, "create", file_text="a b a")
    assert edit(tools, "str_replace", old_str="c", new_str="d") == "error: no match"
    assert edit(tools, "str_replace", old_str="a", new_str="d") == "error: 2 matches"
    assert edit(tools, "str_replace", old_str="", new_str="d") == "error: no match"
    assert edit(tools, "view") == "a b a"
    assert edit(tools, "str_replace", old_str=" b") == "ok"
    assert edit(tools, "view") == "a a"


@pytest.mark.parametrize(
    ("line", "text"), [(0, "x\na\nb"), (1, "a\nx\nb"), (2, "a\nb\nx\n"), (3, None), (-1, None)]
)
def test_insert_places(tools: Toolbox, line: int, text: str | None) -> None:
    edit(tools, "create", file_text="a\nb")
    observation = edit(tools, "insert", insert_line=line, new_str="x")
    assert observation == ("ok" if text else "error: insert_line must be 0 to 2")
    assert edit(tools, "view") == (text or "a\nb")


@pytest.mark.parametrize(
    ("view_range", "text"),
    [
        ([1, 1], "1\n"),
        ([2, 3], "2\n3\n"),
        ([2, -1], "2\n3\n"),
        ([0, 1], "error: view_range must be two lines from 1 to 3"),
        ([3, 2], "error: view_range must be two lines from 1 to 3"),
        ([1, 4], "error: view_range must be two lines from 1 to 3"),
        ("1", "error: view_range must be two lines from 1 to 3"),
    ],
)
def test_view_ranges(tools: Toolbox, view_range: object, text: str) -> None:
    edit(tools, "create", file_text="1\n2\n3\n")
    assert edit(tools, "view", view_range=view_range) == text


def test_view_of_folders_and_empty_files(tools: Toolbox) -> None:
    assert edit(tools, "view", path=".") == "empty folder"
    edit(tools, "create", path="d/b", file_text="")
    edit(tools, "create", path="a", file_text="1")
    assert edit(tools, "view", path="/work") == "a\nd/"
    assert edit(tools, "view", path="d/b") == "empty file"


@pytest.mark.parametrize(
    ("name", "arguments", "observation"),
    [
        ("python", {}, "error: no tool python"),
        ("bash", {}, "error: command must be a string"),
        ("bash", {"command": 3}, "error: command must be a string"),
        ("str_replace_editor", {"command": "delete", "path": "f"}, "error: no command delete"),
        ("str_replace_editor", {"command": "view"}, "error: path must be a string"),
        (
            "str_replace_editor",
            {"command": "create", "path": "f"},
            "error: file_text must be a string",
        ),
        (
            "str_replace_editor",
            {"command": "create", "path": "/usr/f", "file_text": "x"},
            "error: cannot write '/usr/f': Read-only file system",
        ),
        (
            "str_replace_editor",
            {"command": "insert", "path": "f", "insert_line": True, "new_str": ""},
            "error: insert_line must be a whole number",
        ),
    ],
)
def test_a_wrong_call_is_an_observation(
    tools: Toolbox, name: str, arguments: dict[str, object], observation: str
) -> None:
    assert tools.call(name, arguments) == observation


def test_a_lost_sandbox_is_no_observation(tools: Toolbox) -> None:
    tools.sandbox.stop()
    with pytest.raises(SandboxDied):
        tools.call("bash", {"command": "true"})


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=NAMES.filter(lambda name: len(name.encode()) < 200), text=TEXTS)
def test_any_name_and_text_can_be_created_and_undone(tools: Toolbox, name: str, text: str) -> None:
    path = f"any/x{name}"
    assert edit(tools, "create", path=path, file_text=text) == "ok"
    assert edit(tools, "view", path=path) == (text or "empty file")
    assert edit(tools, "undo_edit", path=path) == "ok"


@given(text=st.text(max_size=300), limit=st.integers(2, 100))
def test_shortened_keeps_both_ends(text: str, limit: int) -> None:
    short = shortened(text, limit)
    if len(text) <= limit:
        assert short == text
    else:
        half = limit // 2
        assert short.startswith(text[:half] + "\n[")
        assert short.endswith("characters left out]\n" + text[-half:])
        assert f"[{len(text) - 2 * half} characters" in short
