"""How a question becomes a prompt: the zero-shot template, and the native chat format.

A climb from zero reasoning traces starts with the `zero` template, which opens the reasoning for
the model; the first self-distillation moves it to `chat` (report §3.1.4). Both put two tokens
between the question and the reasoning, so that what a base learnt about distances still holds.
"""

from __future__ import annotations

from typing import Literal

Template = Literal["zero", "chat"]

STOP_TOKENS = ("</answer>", "</tool_call>", "<|im_end|>", "<|endoftext|>")


def render(question: str, template: Template) -> str:
    """The prompt text of a question; generation goes on inside `<think>`."""
    if template == "zero":
        return f"Q: {question}\n<think>"
    return f"<|im_start|>user<|im_sep|> {question}<|im_end|><think>"


def observation(text: str) -> str:
    """A tool's answer as the model reads it; the next turn opens its reasoning again."""
    return f"<tool_response> {text}</tool_response><think>"
