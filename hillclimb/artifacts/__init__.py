"""Artifacts: fingerprints, manifests and the store they live in (any fsspec URI)."""

from hillclimb.artifacts.fingerprint import canonical, fingerprint
from hillclimb.artifacts.store import (
    Artifact,
    ArtifactError,
    ArtifactWriter,
    FileEntry,
    InputRef,
    Manifest,
    Store,
    VerifyReport,
)

__all__ = [
    "Artifact",
    "ArtifactError",
    "ArtifactWriter",
    "FileEntry",
    "InputRef",
    "Manifest",
    "Store",
    "VerifyReport",
    "canonical",
    "fingerprint",
]
