"""The table of tokens: each one that a climb learnt from, to its engine and to its learner.

A row is a rollout; `update`, `group` and `sample` name it in the table of rollouts. Its part has
the number of the update that learnt from it, which may be a later one than drew it.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hillclimb.artifacts import ArtifactWriter
from hillclimb.model.tokenizer import TextTokenizer
from hillclimb.rl.learned import Learned
from hillclimb.stages.tables import write_table

TOKENS_PART = "tokens/part-{:05d}.parquet"
TOKENS = pa.schema(
    [(name, pa.int64()) for name in ("update", "group", "sample")]
    + [(name, pa.int64()) for name in ("learner_version", "learner_steps")]
    + [("tokens", pa.list_(pa.int32())), ("pieces", pa.list_(pa.string()))]
    + [("drawn", pa.list_(pa.bool_())), ("version", pa.list_(pa.int32()))]
    + [(name, pa.list_(pa.float32())) for name in ("logprob", "learner_logprob")]
)


def write_tokens(
    out: ArtifactWriter, update: int, learned: Sequence[Learned], tokenizer: TextTokenizer
) -> None:
    """Write the part of one update; an update that learnt nothing has none."""
    if learned:
        said = Pieces(tokenizer)
        rows = [_row(each, said) for each in learned]
        write_table(out, TOKENS_PART.format(update), rows, TOKENS)


def _row(learned: Learned, said: Pieces) -> dict[str, Any]:
    sample = learned.sample
    own = np.full(len(sample.tokens), np.nan, np.float32)
    own[sample.drawn] = learned.logprobs
    return {
        "update": learned.update,
        "group": learned.group,
        "sample": sample.number,
        "learner_version": learned.learner_version,
        "learner_steps": learned.learner_steps,
        "tokens": sample.tokens,
        "pieces": said.of(sample.tokens.tolist()),
        "drawn": sample.drawn,
        "version": sample.versions,
        "logprob": _known(sample.logprobs, sample.drawn),
        "learner_logprob": _known(own, sample.drawn),
    }


def _known(values: np.ndarray, drawn: np.ndarray) -> list[float | None]:
    """None where nothing was drawn."""
    return [float(v) if d else None for v, d in zip(values, drawn, strict=True)]


class Pieces:
    """The text that each token adds; of a character in several tokens, the last one has it."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer.tokenizer
        self._known: dict[int, bytes] = {}

    def of(self, tokens: Sequence[int]) -> list[str]:
        """One piece a token; bytes that are no text show as U+FFFD."""
        reader = codecs.getincrementaldecoder("utf-8")("replace")
        last = len(tokens) - 1
        return [reader.decode(self._bytes(t), final=i == last) for i, t in enumerate(tokens)]

    def _bytes(self, token: int) -> bytes:
        if token not in self._known:
            name = self._tokenizer.id_to_token(token) or ""
            self._known[token] = bytes(BYTES[c] for c in name if c in BYTES)
        return self._known[token]


def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level token's name stands for: printable Latin-1
    itself, the others in order from U+0100."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    named = [*map(chr, shown), *(chr(256 + place) for place in range(len(hidden)))]
    return dict(zip(named, [*shown, *hidden], strict=True))


BYTES = _byte_of()
