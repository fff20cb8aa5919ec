"""How a model in training predicts text it does not learn from, whatever its layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hillclimb.model.modeling import MaiForCausalLM
from hillclimb.training import runtime
from hillclimb.training.layout import Layout

CHUNK_TOKENS = 16_384


@dataclass(frozen=True)
class _Place:
    """A document in a row: its number, first column, tokens that have a label."""

    document: int
    column: int
    size: int


@torch.no_grad()
def token_nll(
    model: MaiForCausalLM, documents: list[np.ndarray], length: int, layout: Layout | None = None
) -> list[np.ndarray]:
    """NLL of every token but the first of each document, which is cut at `length` + 1 tokens.

    All ranks give the same documents and get all results. Rows of whole documents side by side are
    dealt over the data streams, in chunks of like size and number, because ranks that share
    experts or weights must call the model together.

    Args:
        length: tokens of a row; documents are packed into rows of so many, or fewer on a CPU
            where none is so long.
        layout: of the model; ZeRO alone where it is None.
    """
    model.eval()
    layout = layout or Layout()
    sizes = [max(0, min(len(document) - 1, length)) for document in documents]
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    width = _width(max(sizes, default=0), length, layout.context_parallel)
    rows = _pack(sizes, width)
    height = max(1, CHUNK_TOKENS // width)
    chunks = [rows[i : i + height] for i in range(0, len(rows), height)]
    found = torch.zeros(int(offsets[-1]), dtype=torch.float64, device=runtime.device())
    for first in range(0, len(chunks), layout.data_world):
        mine = first + layout.data_rank
        chunk = chunks[mine] if mine < len(chunks) else [[]]
        tokens, segments, labels = _batch(documents, chunk, width, height)
        _, nll = model.losses(tokens, segments, labels)
        for row, places in zip(nll.view(tokens.shape), chunk, strict=False):
            for place in places:
                start = int(offsets[place.document])
                found[start : start + place.size] = row[place.column : place.column + place.size]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(found)
    return np.split(found.cpu().numpy(), offsets[1:-1]) if documents else []


def _width(longest: int, length: int, ranks: int) -> int:
    """Columns of a row: the training's on a GPU, where each shape is compiled anew."""
    width = length if runtime.device().type == "cuda" else max(1, longest)
    return -(-width // ranks) * ranks


def _pack(sizes: list[int], width: int) -> list[list[_Place]]:
    """Documents into rows one after another, the longest first; empty ones nowhere."""
    rows: list[list[_Place]] = []
    used = width
    for document in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if sizes[document] == 0:
            break
        if used + sizes[document] > width:
            rows.append([])
            used = 0
        rows[-1].append(_Place(document, used, sizes[document]))
        used += sizes[document]
    return rows


def _batch(
    documents: list[np.ndarray], chunk: list[list[_Place]], width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, document numbers (-1 on padding) and labels, each (rows, width)."""
    count = height if runtime.device().type == "cuda" else len(chunk)
    tokens = np.zeros((count, width), np.int64)
    segments, labels = np.full_like(tokens, -1), np.full_like(tokens, -100)
    for row, places in enumerate(chunk):
        for number, place in enumerate(places):
            columns = slice(place.column, place.column + place.size)
            body = documents[place.document][: place.size + 1]
            tokens[row, columns], labels[row, columns] = body[:-1], body[1:]
            segments[row, columns] = number
    device = runtime.device()
    return tuple(torch.from_numpy(a).to(device) for a in (tokens, segments, labels))  # type: ignore[return-value]
