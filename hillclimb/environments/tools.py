"""The two tools of an agentic episode (report App. D): `bash` and `str_replace_editor`.

`TOOLS` is what the model is told (OpenAI function schema); `Toolbox.call` runs one call in the
episode's sandbox and returns the observation, a short string that is the same for the same state.
A wrong call is an observation too ("error: ..."), never an exception.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from hillclimb.environments.sandbox.base import Sandbox, SandboxFileError

_T = TypeVar("_T")
_TEXT = {"type": "string"}
TOOLS: tuple[dict[str, object], ...] = (
    {
        "type": "function",
        "function": {
            "name": "bash",
            "description": "Run a command in a new shell in /work. Files stay between calls; the "
            "working directory and variables do not. There is no network.",
            "parameters": {
                "type": "object",
                "properties": {"command": _TEXT},
                "required": ["command"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "str_replace_editor",
            "description": "View and edit text files. `create` makes a new file and fails if it "
            "exists; `str_replace` replaces the one occurrence of old_str; `insert` puts new_str "
            "after line insert_line (0: at the top); `undo_edit` takes back the last edit of path.",
            "parameters": {
                "type": "object",
                "properties": {
                    "command": {
                        "type": "string",
                        "enum": ["view", "create", "str_replace", "insert", "undo_edit"],
                    },
                    "path": _TEXT,
                    "file_text": _TEXT,
                    "view_range": {
                        "type": "array",
                        "items": {"type": "integer"},
                        "minItems": 2,
                        "maxItems": 2,
                        "description": "First and last line, from 1; -1 is the end.",
                    },
                    "old_str": _TEXT,
                    "new_str": _TEXT,
                    "insert_line": {"type": "integer"},
                },
                "required": ["command", "path"],
            },
        },
    },
)


class _Refused(Exception):
    """The call cannot be done; the message becomes the observation."""


@dataclass
class Toolbox:
    """The tools of one episode over its sandbox, with the history that `undo_edit` needs.

    `timeout_s` bounds one bash command, `max_chars` one observation. `SandboxDied` passes through:
    it ends the episode and is not the model's doing.
    """

    sandbox: Sandbox
    timeout_s: float = 10.0
    max_chars: int = 4000
    _history: dict[str, list[str | None]] = field(default_factory=dict)

    def call(self, name: str, arguments: Mapping[str, object]) -> str:
        """Run one tool call; the observation."""
        tools: dict[str, Callable[[Mapping[str, object]], str]] = {
            "bash": self._bash,
            "str_replace_editor": self._edit,
        }
        try:
            if name not in tools:
                raise _Refused(f"no tool {name}")
            return shortened(tools[name](arguments), self.max_chars)
        except _Refused as refusal:
            return shortened(f"error: {refusal}", self.max_chars)

    def _bash(self, arguments: Mapping[str, object]) -> str:
        done = self.sandbox.run(_argument(arguments, "command", str), self.timeout_s)
        parts = [text.rstrip("\n") for text in (done.stdout, done.stderr) if text.rstrip("\n")]
        if done.timed_out:
            parts.append(f"error: killed after {self.timeout_s:g} s")
        elif done.truncated:
            parts.append("error: killed for too much output")
        elif done.exit_code:
            parts.append(f"exit {done.exit_code}")
        return "\n".join(parts) or "ok"

    def _edit(self, arguments: Mapping[str, object]) -> str:
        commands: dict[str, Callable[[str, Mapping[str, object]], str]] = {
            "view": self._view,
            "create": self._create,
            "str_replace": self._str_replace,
            "insert": self._insert,
            "undo_edit": self._undo_edit,
        }
        command = _argument(arguments, "command", str)
        if command not in commands:
            raise _Refused(f"no command {command}")
        path = posixpath.normpath(posixpath.join("/work", _argument(arguments, "path", str)))
        return commands[command](path, arguments)

    def _view(self, path: str, arguments: Mapping[str, object]) -> str:
        if self._test("-d", path):
            listing = self.sandbox.run(f"ls -p -- {shlex.quote(path)}", self.timeout_s)
            return listing.stdout.rstrip("\n") or "empty folder"
        text = self._read(path)
        if arguments.get("view_range") is None:
            return text or "empty file"
        lines = _lines(text)
        first, last = _line_range(arguments["view_range"], len(lines))
        return "".join(lines[first - 1 : last])

    def _create(self, path: str, arguments: Mapping[str, object]) -> str:
        text = _argument(arguments, "file_text", str)
        if self._test("-e", path) or self._test("-L", path):
            raise _Refused("file exists")
        return self._write(path, None, text)

    def _str_replace(self, path: str, arguments: Mapping[str, object]) -> str:
        old = _argument(arguments, "old_str", str)
        new = _argument(arguments, "new_str", str) if "new_str" in arguments else ""
        text = self._read(path)
        matches = text.count(old) if old else 0
        if matches != 1:
            raise _Refused(f"{matches} matches" if matches else "no match")
        return self._write(path, text, text.replace(old, new))

    def _insert(self, path: str, arguments: Mapping[str, object]) -> str:
        after, new = _argument(arguments, "insert_line", int), _argument(arguments, "new_str", str)
        text = self._read(path)
        lines = _lines(text)
        if not 0 <= after <= len(lines):
            raise _Refused(f"insert_line must be 0 to {len(lines)}")
        if after and not lines[after - 1].endswith("\n"):
            lines[after - 1] += "\n"
        lines.insert(after, new if new.endswith("\n") else new + "\n")
        return self._write(path, text, "".join(lines))

    def _undo_edit(self, path: str, arguments: Mapping[str, object]) -> str:
        if not self._history.get(path):
            raise _Refused("nothing to undo")
        before = self._history[path].pop()
        if before is None:
            self.sandbox.run(f"rm -f -- {shlex.quote(path)}", self.timeout_s)
        else:
            self._write_file(path, before)
        return "ok"

    def _test(self, flag: str, path: str) -> bool:
        return self.sandbox.run(f"test {flag} {shlex.quote(path)}", self.timeout_s).exit_code == 0

    def _read(self, path: str) -> str:
        try:
            return self.sandbox.read(path)
        except SandboxFileError as error:
            raise _Refused(str(error)) from error

    def _write(self, path: str, before: str | None, after: str) -> str:
        self._write_file(path, after)
        self._history.setdefault(path, []).append(before)
        return "ok"

    def _write_file(self, path: str, text: str) -> None:
        try:
            self.sandbox.write(path, text)
        except SandboxFileError as error:
            raise _Refused(str(error)) from error


def shortened(text: str, max_chars: int) -> str:
    """Text within `max_chars`, or its two ends around a marker that counts what is left out."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _argument(arguments: Mapping[str, object], name: str, kind: type[_T]) -> _T:
    value = arguments.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Refused(f"{name} must be a {'string' if kind is str else 'whole number'}")
    return value


def _line_range(value: object, lines: int) -> tuple[int, int]:
    if isinstance(value, list | tuple) and len(value) == 2:
        first, last = value
        if isinstance(first, int) and isinstance(last, int):
            last = lines if last == -1 else last
            if 1 <= first <= last <= lines:
                return first, last
    raise _Refused(f"view_range must be two lines from 1 to {lines}")
