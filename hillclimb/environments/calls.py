"""How a tool call is written: OpenAI-style JSON, or one plain line."""

from __future__ import annotations

import json


def parse_call(response: str) -> tuple[str, dict[str, object]] | None:
    """The (tool, arguments) of the last tool call in a response; None without one.

    `{"name": "bash", "arguments": {"command": "ls"}}` and `bash ls` mean the same; for the editor
    the plain line is `str_replace_editor COMMAND PATH [OLD [NEW]]` with words for the strings.
    """
    text = _last(response)
    if text is None:
        return None
    if text.startswith("{"):
        return _from_json(text)
    name, _, rest = text.partition(" ")
    if name == "bash":
        return name, {"command": rest}
    return name, _editor_arguments(rest.split())


def _last(response: str) -> str | None:
    """What stands in the last pair of tags, in time proportional to the response's length."""
    *ended, _ = response.split("</tool_call>")
    for part in reversed(ended):
        _, opened, text = part.partition("<tool_call>")
        if opened:
            return text.strip()
    return None


def _from_json(text: str) -> tuple[str, dict[str, object]]:
    try:
        call = json.loads(text)
        return str(call["name"]), dict(call.get("arguments", {}))
    except (ValueError, KeyError, TypeError, RecursionError):
        return "malformed", {}


def _editor_arguments(words: list[str]) -> dict[str, object]:
    names = ("command", "path", "old_str", "new_str")
    arguments: dict[str, object] = dict(zip(names, words, strict=False))
    if arguments.get("command") == "create" and len(words) > 2:
        return {"command": "create", "path": words[1], "file_text": " ".join(words[2:]) + "\n"}
    return arguments
