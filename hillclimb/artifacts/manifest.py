"""What an artifact says of itself."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(extra="forbid")
    path: str
    bytes: int
    sha256: str


class InputRef(BaseModel):
    """An artifact that another one was made from."""

    model_config = ConfigDict(extra="forbid")
    name: str
    fingerprint: str
    uri: str


class Manifest(BaseModel):
    """What an artifact is: identity first, then what came out, then how it was made."""

    model_config = ConfigDict(extra="forbid")
    name: str
    kind: str
    fingerprint: str
    code_version: str
    seed: int | None
    inputs: dict[str, InputRef]
    config: dict[str, Any]
    files: list[FileEntry]
    metrics: dict[str, float]
    summary: dict[str, Any]
    run: dict[str, Any]
