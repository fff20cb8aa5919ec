"""What a stage is told: nothing else reaches it."""

from __future__ import annotations

from typing import Any

import fsspec
from pydantic import BaseModel, ConfigDict

from hillclimb.artifacts import InputRef


class Request(BaseModel):
    """One artifact to make. Written as JSON; read with `python -m hillclimb.stages KIND`."""

    model_config = ConfigDict(extra="forbid")
    name: str
    kind: str
    output: str
    fingerprint: str
    code_version: str
    seed: int | None
    inputs: dict[str, InputRef]
    config: dict[str, Any]
    ranks: int = 1
    threads: int = 1
    tracking: dict[str, str] = {}

    @classmethod
    def read(cls, uri: str) -> Request:
        """Read a request from a file or any fsspec URI."""
        with fsspec.open(uri, "rb") as stream:
            return cls.model_validate_json(stream.read())
