"""Artifacts: fingerprints, manifests and the store they live in (any fsspec URI)."""

from hillclimb.artifacts.fingerprint import canonical, fingerprint
from hillclimb.artifacts.manifest import FileEntry, InputRef, Manifest
from hillclimb.artifacts.remote import ArtifactError, StoreAway
from hillclimb.artifacts.store import Artifact, ArtifactWriter, Overtaken, Store, VerifyReport

__all__ = [
    "Artifact",
    "ArtifactError",
    "ArtifactWriter",
    "FileEntry",
    "InputRef",
    "Manifest",
    "Overtaken",
    "Store",
    "StoreAway",
    "VerifyReport",
    "canonical",
    "fingerprint",
]
