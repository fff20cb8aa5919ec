"""`hillclimb verify`: every artifact under a root, hashed again."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from hillclimb.artifacts import Artifact, ArtifactError, Manifest, Store, VerifyReport
from hillclimb.artifacts.fingerprint import fingerprint
from hillclimb.artifacts.store import MANIFEST
from hillclimb.cli import words
from hillclimb.cli.failures import Exit, Failure


def show(console: Console, root: str) -> None:
    """Verify, say what was checked.

    Raises:
        Failure: naming every damaged file.
    """
    report = verify_root(root, console)
    if report.problems:
        raise Failure("\n".join(report.problems), Exit.WRONG)
    console.print(f"{report.checked} files ({words.size(report.bytes)}) are what was written")


def verify_root(root: str, console: Console) -> VerifyReport:
    """Re-hash every file, and check that every manifest is the one its fingerprint names."""
    store, whole = Store(root), VerifyReport()
    tails = [name for name in store.tree.list("artifacts") if name.endswith(f"/{MANIFEST}")]
    if not tails:
        raise Failure(f"there are no artifacts under {root}: is it the right --root?", Exit.USAGE)
    for tail in _watched(tails, console):
        uri = f"{store.root}/{tail[: -len(MANIFEST) - 1]}"
        try:
            artifact = Artifact(uri)
        except (ArtifactError, ValidationError, UnicodeDecodeError):
            whole.problems.append(f"{uri}/{MANIFEST} is not readable as a manifest")
            continue
        found = artifact.verify()
        whole.checked += found.checked + 1
        whole.bytes += found.bytes
        whole.problems += found.problems
        if not _is_itself(artifact.manifest, uri):
            whole.problems.append(f"{uri}/{MANIFEST} does not describe what its fingerprint names")
    return whole


def _watched(tails: list[str], console: Console) -> Iterator[str]:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(tails, description="verifying")


def _is_itself(manifest: Manifest, uri: str) -> bool:
    """Whether the identity that the manifest describes is the one that it and its folder claim."""
    identity = {
        "kind": manifest.kind,
        "name": manifest.name,
        "config": manifest.config,
        "seed": manifest.seed,
        "ranks": manifest.run.get("ranks", 1),
        "inputs": {role: ref.fingerprint for role, ref in manifest.inputs.items()},
        "code": manifest.code_version,
    }
    return fingerprint(identity) == manifest.fingerprint and uri.endswith(
        f"/artifacts/{manifest.name}/{manifest.fingerprint[:16]}"
    )
