"""Documents that every machine has: the standard library and what installed packages say."""

from __future__ import annotations

import hashlib
import io
import platform
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path, PurePosixPath

from hillclimb.corpus.rows import Quarantined, RawDocument, raw_document, shorten
from hillclimb.recipe.corpus import InstalledPackagesSource, PythonStdlibSource

_PAPERWORK = re.compile(
    r"licen[cs]e|copying|notice|authors|contributors|entry_points|top_level|requirements|"
    r"sources\.txt|record|vendor\.txt|dependency_links|namespace_packages",
    re.IGNORECASE,
)


def sampled(keys: Iterable[str]) -> list[str]:
    """Keys in the order of their digests: a cap then takes an even sample, the same each time."""
    return sorted(keys, key=lambda key: hashlib.blake2b(key.encode(), digest_size=8).digest())


def read_stdlib(source: PythonStdlibSource) -> Iterator[RawDocument | Quarantined]:
    """One document per module, located by Python's version and the path inside the library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {
        path.relative_to(root).as_posix()
        for pattern in source.include
        for path in root.glob(pattern)
        if path.is_file()
    }
    names = sampled(name for name in found if not _excluded(name, source.exclude))
    for name in names:
        locator = f"python {platform.python_version()}: {name}"
        data = (root / name).read_bytes()
        text = _decode_python(data)
        if text is None:
            yield Quarantined(source.name, locator, "encoding is not the declared one")
        elif text.strip():
            yield raw_document(source, locator, text, language="en")


def _excluded(name: str, patterns: tuple[str, ...]) -> bool:
    if "site-packages" in name or "dist-packages" in name:
        return True
    return any(fnmatchcase(name, p) or fnmatchcase(f"/{name}", p) for p in patterns)


def _decode_python(data: bytes) -> str | None:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return None


def read_installed_packages(
    source: InstalledPackagesSource,
) -> Iterator[RawDocument | Quarantined]:
    """The long description and the text files of each distribution, located by its version."""
    installed: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name and name not in source.exclude and (not source.packages or name in source.packages):
            installed.setdefault(name, distribution)
    for name in sampled(installed):
        distribution = installed[name]
        licence = _licence(distribution) or source.licence
        texts = _description(distribution) + _text_files(distribution, source.suffixes)
        for path, data in texts[: source.max_documents_per_package]:
            yield from _package_document(
                source, f"{name} {distribution.version}: {path}", path, data, licence
            )


def _package_document(
    source: InstalledPackagesSource, locator: str, path: str, data: str | bytes, licence: str
) -> Iterator[RawDocument | Quarantined]:
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError:
        yield Quarantined(source.name, locator, "not UTF-8", shorten(data))
        return
    if text.strip():
        kind = "package_description" if path == "METADATA" else ""
        yield raw_document(source, locator, text, kind=kind, licence=licence, language="en")


def _description(distribution: metadata.Distribution) -> list[tuple[str, str | bytes]]:
    message = distribution.metadata
    body = message.get_payload() or message.get("Description") or ""  # type: ignore[attr-defined]
    summary = message.get("Summary") or ""  # type: ignore[attr-defined]
    text = f"{summary}\n\n{body}".strip() if isinstance(body, str) else summary
    return [("METADATA", text)] if text else []


def _text_files(
    distribution: metadata.Distribution, suffixes: tuple[str, ...]
) -> list[tuple[str, str | bytes]]:
    texts: list[tuple[str, str | bytes]] = []
    for file in sorted(distribution.files or [], key=str):
        path = PurePosixPath(file)
        inside = not path.is_absolute() and ".." not in path.parts
        if inside and path.suffix in suffixes and not _PAPERWORK.search(str(path)):
            located = Path(str(distribution.locate_file(file)))
            if located.is_file():
                texts.append((path.as_posix(), located.read_bytes()))
    return texts


def _licence(distribution: metadata.Distribution) -> str:
    message = distribution.metadata
    expression = message.get("License-Expression")  # type: ignore[attr-defined]
    if expression:
        return str(expression)
    for classifier in message.get_all("Classifier") or []:
        name = str(classifier.rsplit(" :: ", 1)[-1])
        if classifier.startswith("License :: ") and "approved" not in name.lower():
            return name
    stated = str(message.get("License") or "")  # type: ignore[attr-defined]
    return stated if stated and "\n" not in stated and len(stated) < 80 else ""
