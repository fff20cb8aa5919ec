"""What is read as a tool call, in answers of every kind."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hillclimb.environments.calls import parse_call

PIECES = st.sampled_from(["<tool_call>", "</tool_call>", "bash ls", " ", "\n"])


@given(st.lists(PIECES, max_size=10).map("".join))
def test_the_last_pair_of_tags_is_the_call(response: str) -> None:
    found = re.findall("<tool_call>(.*?)</tool_call>", response, re.DOTALL)
    call = parse_call(response)
    assert (call is None) == (not found)
    if call is not None and call[0] == "bash":
        assert f"bash {call[1]['command']}".strip() == found[-1].strip()


@pytest.mark.parametrize(
    "response",
    ["<tool_call>" * 131_072, "<tool_call>" * 131_072 + "</tool_call>", "</tool_call>" * 131_072],
)
def test_a_model_that_repeats_a_tag_to_the_limit_holds_nobody_up(response: str) -> None:
    """A search that starts anew at each tag takes a quarter of an hour for the first."""
    assert parse_call(response) in (None, ("<tool_call>" * 131_071, {}))


def test_arguments_too_deep_to_read_are_a_malformed_call() -> None:
    deep = '<tool_call>{"name": "bash", "arguments": ' + "[" * 100_000 + "</tool_call>"
    assert parse_call(deep) == ("malformed", {})
