"""Bytes into lines with bounded memory, from plain or gzip streams that may be broken."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK = 1 << 18
_GZIP = b"\x1f\x8b"


class BrokenStream(Exception):
    """A compressed stream ended early or is damaged; what came before it was delivered."""


@dataclass(frozen=True, slots=True)
class LongLine:
    """A line over the limit: its beginning and its whole size in bytes, without the newline."""

    head: bytes
    size: int


def blocks(stream: BinaryIO, gzip_expected: bool) -> Iterator[bytes]:
    """Decompressed blocks of at most 256 KiB. Gzip is known by its magic bytes.

    Raises:
        BrokenStream: after the last good block of a damaged or truncated gzip stream.
    """
    head = stream.read(_BLOCK)
    if head[:2] == _GZIP:
        yield from _gunzip(head, stream)
    elif gzip_expected and head:
        raise BrokenStream("the name says gzip but the first bytes do not")
    else:
        while head:
            yield head
            head = stream.read(_BLOCK)


def _gunzip(data: bytes, stream: BinaryIO) -> Iterator[bytes]:
    inflate = zlib.decompressobj(wbits=31)
    while data:
        try:
            out = inflate.decompress(data, _BLOCK)
        except zlib.error as error:
            raise BrokenStream(f"damaged gzip: {error}") from None
        if out:
            yield out
        if inflate.eof:
            data = inflate.unused_data.lstrip(b"\0") or stream.read(_BLOCK).lstrip(b"\0")
            if data:
                inflate = zlib.decompressobj(wbits=31)
        else:
            data = inflate.unconsumed_tail or stream.read(_BLOCK)
    if not inflate.eof:
        raise BrokenStream("gzip ends early")


def lines(parts: Iterable[bytes], limit: int, head: int = 400) -> Iterator[bytes | LongLine]:
    """Split blocks at newlines. A line over `limit` bytes is skipped without being held.

    Lines keep no newline. When `parts` raises, the unfinished line is not delivered.
    """
    pending, skipped, beginning = bytearray(), 0, b""
    for block in parts:
        start = 0
        while (end := block.find(b"\n", start)) >= 0:
            pending += block[start:end]
            start = end + 1
            yield _line(pending, skipped, beginning, limit, head)
            pending, skipped, beginning = bytearray(), 0, b""
        pending += block[start:]
        if len(pending) > limit:
            beginning = beginning or bytes(pending[:head])
            skipped += len(pending)
            pending = bytearray()
    if pending or skipped:
        yield _line(pending, skipped, beginning, limit, head)


def _line(
    pending: bytearray, skipped: int, beginning: bytes, limit: int, head: int
) -> bytes | LongLine:
    if skipped or len(pending) > limit:
        return LongLine(beginning or bytes(pending[:head]), skipped + len(pending))
    return bytes(pending)
