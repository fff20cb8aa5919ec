"""What vLLM is told to do: the options of the command and of the environment."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

OPTIONS = "HILLCLIMB_VLLM_OPTIONS"


def arguments(given: str) -> dict[str, Any]:
    """Arguments of `vllm.LLM`: those of the command, then those of `HILLCLIMB_VLLM_OPTIONS`.

    Raises:
        ValueError: if either is no JSON object.
    """
    found: dict[str, Any] = {}
    for place, text in (("--options", given), (OPTIONS, os.environ.get(OPTIONS, "{}"))):
        told: Any = None
        with suppress(json.JSONDecodeError):
            told = json.loads(text)
        if not isinstance(told, dict):
            raise ValueError(f"{place} is no JSON object with arguments of vllm.LLM: {text}")
        found |= told
    return found
