"""The structure of a response: a thought, then an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TAG = re.compile(r"</?(?:think|answer)>")
_EXPECTED = ["<think>", "</think>", "<answer>", "</answer>"]


@dataclass(frozen=True, slots=True)
class Structure:
    """The two parts of a response; `fault` says what is wrong with it, None if nothing is.

    A part that cannot be told is empty.
    """

    thought: str
    answer: str
    fault: str | None = None

    @property
    def ok(self) -> bool:
        return self.fault is None


def think_answer(response: str, *, think_open: bool = False) -> Structure:
    """Read `<think>..</think><answer>..</answer>`: each once, in order, nothing but blanks around.

    `think_open`: the prompt already ends with `<think>`, so the response starts inside it.
    """
    text = "<think>" + response if think_open else response
    tags = [match.group() for match in _TAG.finditer(text)]
    if tags != _EXPECTED:
        return Structure(_between(text, "<think>", "</think>"), "", _tag_fault(tags))
    before, thought, between, answer, after = _TAG.split(text)
    if before.strip() or between.strip() or after.strip():
        return Structure(thought, answer, "text outside the tags")
    return Structure(thought, answer, None if answer.strip() else "empty answer")


def think_then_reply(response: str, *, think_open: bool = False) -> Structure:
    """Read `<think>..</think>` and a reply without tags: the native chat format."""
    text = "<think>" + response if think_open else response
    tags = [match.group() for match in _TAG.finditer(text)]
    if tags != _EXPECTED[:2]:
        return Structure(_between(text, "<think>", "</think>"), "", _tag_fault(tags))
    before, thought, reply = _TAG.split(text)
    if before.strip():
        return Structure(thought, reply.strip(), "text before the thought")
    return Structure(thought, reply.strip(), None if reply.strip() else "empty answer")


def thoughts(transcript: str) -> str:
    """All that was thought in an episode whose prompt ends with `<think>`, turns joined by lines.

    The first thought begins with the transcript; each later one after a `<think>` of its own.
    """
    return "\n".join(turn.partition("</think>")[0] for turn in transcript.split("<think>"))


def _between(text: str, start: str, end: str) -> str:
    _, opened, rest = text.partition(start)
    return rest.partition(end)[0] if opened else ""


def _tag_fault(tags: list[str]) -> str:
    for tag in _EXPECTED:
        if tags.count(tag) > 1:
            return f"{tag} more than once"
    missing = [tag for tag in _EXPECTED if tag not in tags]
    return f"no {missing[0]}" if missing else "tags out of order"
