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

CHUNK_TOKENS = 4096


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

    All ranks give the same documents and get all results. Chunks of rows are dealt over the data
    streams, as many to each, because ranks that share experts or weights call the model together.

    Args:
        length: most tokens of a row.
        layout: of the model; ZeRO alone where it is None.
    """
    model.eval()
    layout = layout or Layout()
    sizes = [max(0, min(len(document) - 1, length)) for document in documents]
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    chunks = _chunks(sizes, length)
    found = torch.zeros(int(offsets[-1]), dtype=torch.float64, device=runtime.device())
    for first in range(0, len(chunks), layout.data_world):
        mine = first + layout.data_rank
        chunk = chunks[mine] if mine < len(chunks) else [[]]
        tokens, segments, labels = _batch(documents, chunk, length, layout.context_parallel)
        _, nll = model.losses(tokens, segments, labels)
        for row, places in zip(nll.view(tokens.shape), chunk, strict=False):
            for place in places:
                start = int(offsets[place.document])
                found[start : start + place.size] = row[place.column : place.column + place.size]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(found)
    return np.split(found.cpu().numpy(), offsets[1:-1]) if documents else []


def _chunks(sizes: list[int], length: int) -> list[list[list[_Place]]]:
    """Rows of at most `CHUNK_TOKENS` together, the longest first; empty documents nowhere.

    On a GPU, where each shape is compiled anew, documents share rows of the training's length; on a
    CPU each has its own, as wide as the chunk's longest.
    """
    order = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: -sizes[i])
    packed = runtime.device().type == "cuda"
    rows: list[list[_Place]] = []
    used = length
    for document in order:
        if not packed or used + sizes[document] > length:
            rows.append([])
            used = 0
        rows[-1].append(_Place(document, used, sizes[document]))
        used += sizes[document]
    chunks = []
    while rows:
        height = max(1, CHUNK_TOKENS // (length if packed else rows[0][0].size))
        chunks.append(rows[:height])
        rows = rows[height:]
    return chunks


def _batch(
    documents: list[np.ndarray], chunk: list[list[_Place]], length: int, ranks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, document numbers (-1 on padding) and labels of a chunk, each (rows, columns)."""
    count, width = len(chunk), max((p.size for row in chunk for p in row), default=1)
    if runtime.device().type == "cuda":
        count, width = max(1, CHUNK_TOKENS // length), length
    tokens = np.zeros((count, -(-width // ranks) * ranks), np.int64)
    segments, labels = np.full_like(tokens, -1), np.full_like(tokens, -100)
    for row, places in enumerate(chunk):
        for number, place in enumerate(places):
            columns = slice(place.column, place.column + place.size)
            body = documents[place.document][: place.size + 1]
            tokens[row, columns], labels[row, columns] = body[:-1], body[1:]
            segments[row, columns] = number
    inputs, numbers, right = (
        torch.from_numpy(array).to(runtime.device()) for array in (tokens, segments, labels)
    )
    return inputs, numbers, right
