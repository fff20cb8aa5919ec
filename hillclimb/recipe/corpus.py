"""Where documents come from and what is asked of them (report §2.4-2.5, App. A)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hillclimb.recipe.base import Section

Category = Literal[
    "code", "stem", "math", "books", "pdf", "web", "multilingual", "tools", "dialogue"
]  # fmt: skip
Checks = Literal["prose", "technical", "code"]


class Source(Section):
    """What every source declares. The order of the sources is their priority in deduplication.

    `language` lists the languages (ISO 639-1) that the source may hold; empty means any that the
    language filter allows. `max_documents` and `max_chars` cap what is taken, not what is kept.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    licence: str = Field(min_length=1, description="SPDX expression; a row's own licence wins")
    category: Category
    kind: str = Field(min_length=1)
    language: tuple[str, ...] = ("en",)
    max_documents: int | None = Field(None, gt=0)
    max_chars: int | None = Field(None, gt=0)


class PythonStdlibSource(Source):
    """The running interpreter's standard library, one document per module."""

    type: Literal["python_stdlib"] = "python_stdlib"
    licence: str = "PSF-2.0"
    category: Category = "code"
    kind: str = "python_module"
    include: tuple[str, ...] = ("**/*.py",)
    exclude: tuple[str, ...] = (
        "test/**", "**/test/**", "**/tests/**", "idlelib/**", "config-*/**", "**/_sysconfigdata*",
    )  # fmt: skip


class InstalledPackagesSource(Source):
    """Descriptions and text files of installed distributions. `packages` empty means all."""

    type: Literal["installed_packages"] = "installed_packages"
    licence: str = "LicenseRef-as-declared-by-package"
    packages: tuple[str, ...] = ()
    exclude: tuple[str, ...] = Field(("hillclimb",), description="distributions left out")
    suffixes: tuple[str, ...] = (".md", ".rst", ".txt")
    max_documents_per_package: int = Field(20, gt=0)


class TableSource(Source):
    """Rows with named fields, at a URI that may hold a glob."""

    uri: str = Field(min_length=1)
    text_field: str = "text"
    kind_field: str | None = Field(None, description="a row's field that overrides `kind`")
    licence_field: str | None = Field(None, description="a row's field that overrides `licence`")
    language_field: str | None = Field(None, description="a row's field that names its language")
    url_field: str | None = Field(None, description="a row's field with its address")
    html: bool | Literal["auto"] = Field(False, description="auto: rows that begin with markup")


class JsonlSource(TableSource):
    """JSON lines, gzip or plain."""

    type: Literal["jsonl"] = "jsonl"


class ParquetSource(TableSource):
    """Parquet files; fields are columns."""

    type: Literal["parquet"] = "parquet"


class HtmlSource(Source):
    """Raw HTML files, one document each; their encoding is inferred."""

    type: Literal["html"] = "html"
    uri: str = Field(min_length=1)


class WorksheetsSource(Source):
    """Rule-generated worksheets that show task formats; marked as generated in provenance."""

    type: Literal["worksheets"] = "worksheets"
    licence: str = "CC0-1.0"
    kind: str = "worksheet"
    count: int = Field(gt=0, description="documents, shared evenly over `kinds`")
    kinds: tuple[str, ...] = Field(min_length=1)


AnySource = Annotated[
    PythonStdlibSource
    | InstalledPackagesSource
    | JsonlSource
    | ParquetSource
    | HtmlSource
    | WorksheetsSource,
    Field(discriminator="type"),
]


class ReadLimits(Section):
    """What a reader takes in at once."""

    max_line_bytes: int = Field(16 << 20, gt=0, description="longer rows go to quarantine")
    max_document_chars: int = Field(4_000_000, gt=0, description="longer texts go to quarantine")


class LanguageFilter(Section):
    """Language identification on a leading slice; `skip` names categories taken as declared."""

    allowed: tuple[str, ...] = ("en",)
    min_probability: float = Field(0.65, ge=0, le=1)
    sample_chars: int = Field(1500, gt=0)
    skip: tuple[Category, ...] = ("code",)


class Blocklist(Section):
    """Domains whose documents are dropped, and words of which a document may hold a few."""

    domains: tuple[str, ...] = ("huggingface.co", "hf.co", "hf-mirror.com")
    words: tuple[str, ...] = ()
    max_words: int = Field(0, ge=0, description="occurrences of listed words that are tolerated")


class QualityFilter(Section):
    """Gopher's and C4's heuristics, and plain rules for code, on a leading slice.

    `checks` says which set a category gets: `prose` all of them, `technical` the ones that hold
    for text with formulas, tables and code, `code` the rules for source files. Generated
    documents are only checked for being empty.
    """

    checks: dict[Category, Checks] = Field(
        {
            "code": "code", "stem": "technical", "math": "technical", "tools": "technical",
            "pdf": "technical",
        },
        description="categories that are not named get `prose`",
    )  # fmt: skip
    sample_chars: int = Field(50_000, gt=0)
    min_words: int = Field(50, ge=1)
    min_mean_word_length: float = Field(3, gt=0)
    max_mean_word_length: float = Field(10, gt=0)
    max_symbol_word_ratio: float = Field(0.1, gt=0)
    max_bullet_lines: float = Field(0.9, gt=0, le=1)
    max_ellipsis_lines: float = Field(0.3, gt=0, le=1)
    min_alphabetic_words: float = Field(0.8, gt=0, le=1)
    min_stop_words: int = Field(2, ge=0, description="English documents only")
    min_sentences: int = Field(3, ge=0, description="C4's, which says 5 for web pages")
    max_word_length: int = Field(1000, gt=0)
    code_max_chars: int = Field(30_000, gt=0)
    code_max_line: int = Field(1000, gt=0)
    code_min_alphanumeric: float = Field(0.25, ge=0, le=1)


class AITextFilter(Section):
    """Text that reads as a language model's is dropped, at a bounded rate of false alarms.

    The rate is that of held-out human text of the domain that a category belongs to. Categories
    without a domain, generated documents, short ones and ones that are not English are not scored.
    """

    max_false_positive_rate: float = Field(0.01, gt=0, le=0.2)
    per_domain: dict[str, float] = Field({}, description="a rate of its own for a domain")
    domains: dict[Category, str] = Field(
        {
            "books": "fiction", "web": "blog", "stem": "stem", "math": "stem", "pdf": "stem",
            "tools": "docs", "dialogue": "assistant-chat",
        },
        description="the scorer's domain whose threshold a category gets",
    )  # fmt: skip
    sample_chars: int = Field(4000, gt=0)
    min_chars: int = Field(300, gt=0)


class MinHash(Section):
    """Near-duplicates: MinHash over word n-grams, LSH in bands, agreement at the threshold.

    `containment` drops a document whose n-grams already occur, in this share, in kept documents.
    Generated documents are exempt from both.
    """

    threshold: float = Field(0.8, gt=0, le=1)
    ngram: int = Field(5, gt=0)
    bands: int = Field(14, gt=0)
    rows: int = Field(8, gt=0, description="hashes per band")
    seed: int = Field(1, ge=0)
    containment: float = Field(0.8, gt=0, le=1)


class Decontamination(Section):
    """Documents that hold an evaluation item are dropped (report §2.3).

    An item is held where word n-grams cover `overlap` of its words. Items shorter than `ngram`
    must occur whole; those below `min_words` cannot be told from chance and are reported.
    """

    ngram: int = Field(20, gt=0)
    overlap: float = Field(0.8, gt=0, le=1)
    min_words: int = Field(8, gt=0)


class CorpusRecipe(Section):
    """Sources in order of priority, and the steps that filter them."""

    sources: tuple[AnySource, ...] = Field(min_length=1)
    limits: ReadLimits = ReadLimits()
    language: LanguageFilter = LanguageFilter()
    blocklist: Blocklist = Blocklist()
    quality: QualityFilter = QualityFilter()
    ai_text: AITextFilter = AITextFilter()
    minhash: MinHash = MinHash()
    decontamination: Decontamination = Decontamination()

    @model_validator(mode="after")
    def _distinct_names(self) -> CorpusRecipe:
        names = [source.name for source in self.sources]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"sources repeats the name {', '.join(repeated)}: give each its own")
        return self
