"""The locks of the images, taken out of requirements/cpu.txt: `python scripts/locks.py`.

An image installs what its part of the project imports and all that this needs, at the versions of
the one lock that tests run with. What a package needs is read from the installed packages, so run
it in the environment of that lock. CUDA's own packages and vLLM are in no CPU environment: the
heads of requirements/cuda.txt and requirements/rollout.txt say how those two are resolved.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("dagster-pipes", "fsspec", "kubernetes", "numpy", "pyarrow", "pydantic", "pyyaml")
EXTRAS = {
    "control": ("cluster", "corpus", "postgres", "rewards", "s3"),
    "training": ("corpus", "rewards", "s3", "train"),
}
OWN = {
    "control": ("boto3", "setuptools"),  # MLflow's server imports boto3 for artifacts in S3
    "training": ("setuptools",),
}


def roots(image: str) -> list[str]:
    """What an image installs by itself: `control` or `training`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [r for r in project["dependencies"] if image == "control" or _name(r) in STAGES]
    extras = project["optional-dependencies"]
    return [*wanted, *(r for extra in EXTRAS[image] for r in extras[extra]), *OWN[image]]


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def closure(requirements: Iterable[str]) -> set[str]:
    """The canonical names of everything that `requirements` need, themselves included."""
    waiting, seen = [Requirement(r) for r in requirements], set[tuple[str, str]]()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in ("", *sorted(wanted.extras)):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += _needs(name, extra)
    return {name for name, _ in seen}


def _needs(name: str, extra: str) -> list[Requirement]:
    try:
        found = map(Requirement, metadata.requires(name) or ())
    except metadata.PackageNotFoundError:
        raise LookupError(f"{name} is not installed: install requirements/cpu.txt first") from None
    return [r for r in found if r.marker is None or _applies(r, extra)]


def _applies(requirement: Requirement, extra: str) -> bool:
    assert requirement.marker
    return requirement.marker.evaluate({"extra": extra})


def lock(image: str) -> list[str]:
    """The lines of an image's lock, in the order of requirements/cpu.txt.

    Raises:
        LookupError: if requirements/cpu.txt lacks something that the image needs.
    """
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    known = {canonicalize_name(line.partition("==")[0]): line for line in lines}
    names = closure(roots(image))
    if missing := sorted(names - known.keys()):
        raise LookupError(f"requirements/cpu.txt lacks {', '.join(missing)} for {image}: add it")
    return [line for name, line in known.items() if name in names]


if __name__ == "__main__":
    for name in EXTRAS:
        path = ROOT / "requirements" / f"{name}.txt"
        path.write_text("".join(f"{line}\n" for line in lock(name)))
        print(f"{path.relative_to(ROOT)}: {len(lock(name))} packages")
