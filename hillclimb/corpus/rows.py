"""What flows through the corpus: documents, quarantined rows, and reports on steps."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hillclimb.recipe.corpus import Source

SAMPLE_CHARS = 200
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class RawDocument:
    """One document as its source gave it.

    `text` is bytes only where the encoding has yet to be inferred (raw HTML files).
    `provenance` holds the source, the licence, the `locator` (the place inside the source, never
    an absolute path) and whether the text was generated, with its generator if so.
    """

    id: str
    text: str | bytes
    source: str
    category: str
    kind: str
    licence: str
    language: str
    provenance: Mapping[str, Any]
    html: bool = False

    @property
    def generated(self) -> bool:
        """Whether a rule made the text."""
        return bool(self.provenance["generated"])


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Something that could not be read, why, and how it begins."""

    source: str
    locator: str
    reason: str
    sample: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """One clean document of the corpus."""

    id: str
    text: str
    source: str
    category: str
    kind: str
    licence: str
    language: str
    provenance: Mapping[str, Any]


@dataclass
class StepReport:
    """What one step kept and dropped, and why, with the first few that it dropped."""

    name: str
    kept: int = 0
    dropped: int = 0
    chars_in: int = 0
    chars_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def keep(self, chars_in: int, chars_out: int) -> None:
        """Count a document that goes on."""
        self.kept += 1
        self.chars_in += chars_in
        self.chars_out += chars_out

    def drop(self, doc_id: str, source: str, reason: str, detail: str, excerpt: str) -> None:
        """Count a document that stops here; `reason` is the short key, `detail` its evidence."""
        self.dropped += 1
        self.reasons[reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(
                {
                    "id": doc_id,
                    "source": source,
                    "reason": reason,
                    "detail": detail,
                    "excerpt": shorten(excerpt),
                }
            )

    def as_json(self) -> dict[str, Any]:
        """A JSON value with reasons from the most to the least frequent."""
        ranked = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        return {
            "name": self.name,
            "kept": self.kept,
            "dropped": self.dropped,
            "chars_in": self.chars_in,
            "chars_out": self.chars_out,
            "reasons": dict(ranked),
            "examples": self.examples,
            "notes": self.notes,
        }


@dataclass
class FunnelReport:
    """The whole filtering: from what was read to what is left, by step, source and category."""

    steps: list[StepReport]
    read: dict[str, dict[str, int]]
    kept: dict[str, dict[str, int]]
    by_category: dict[str, dict[str, int]]
    quarantined: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """The value that `funnel.json` holds."""
        return {
            "steps": [step.as_json() for step in self.steps],
            "read": self.read,
            "kept": self.kept,
            "by_category": self.by_category,
            "quarantined": self.quarantined,
        }

    def step(self, name: str) -> StepReport:
        """The report of one step.

        Raises:
            KeyError: if there is no such step.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(f"no step {name!r}; there are {', '.join(s.name for s in self.steps)}")


def document_id(source: str, locator: str, content: str | bytes) -> str:
    """A stable identity: 32 hex digits over source, place and content."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    digest = hashlib.blake2b(digest_size=16)
    for part in (source.encode(), locator.encode("utf-8", "surrogatepass"), data):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def raw_document(
    source: Source,
    locator: str,
    text: str | bytes,
    *,
    kind: str = "",
    licence: str = "",
    language: str = "",
    html: bool = False,
    generator: str = "",
    extra: Mapping[str, Any] | None = None,
) -> RawDocument:
    """A document of `source`; what is not given is what the source declares.

    The language is `und` (undetermined) where the source may hold several.
    """
    licence = licence or source.licence
    provenance = {**(extra or {}), "source": source.name, "licence": licence, "locator": locator}
    provenance["generated"] = bool(generator)
    if generator:
        provenance["generator"] = generator
    declared = source.language[0] if len(source.language) == 1 else "und"
    return RawDocument(
        id=document_id(source.name, locator, text),
        text=text,
        source=source.name,
        category=source.category,
        kind=kind or source.kind,
        licence=licence,
        language=language or declared,
        provenance=provenance,
        html=html,
    )


def shorten(text: str | bytes, limit: int = SAMPLE_CHARS) -> str:
    """The beginning of a text on one line, safe to store as UTF-8."""
    head = text[: limit * 4]
    if isinstance(head, bytes):
        head = head.decode("utf-8", "backslashreplace")
    head = " ".join(head.split()).encode("utf-8", "backslashreplace").decode()
    return head if len(head) <= limit else head[: limit - 1] + "…"
