"""How a product with the LM head is cut up, so that what is alive of it stays in cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Bytes alive at once of logits, of a converted weight tile, of gathered rows: about what the last-level cache keeps.
TILE_BYTES = 4 << 20
_TILE_STEP = 64
_LEAST_WIDTH = 1024  # of a tile: a narrower product is slower


def tile_width(rows: int, dtype: torch.dtype, converted: int = 0) -> int:
    """Vocabulary entries per tile, a multiple of 64; ``converted``: columns of weight to convert, or 0."""
    return max(TILE_BYTES // (max(rows, converted, 1) * dtype.itemsize) // _TILE_STEP, 1) * _TILE_STEP


def most_rows(dtype: torch.dtype, columns: int = 0) -> int:
    """Rows multiplied together: more would make tiles narrow, or themselves (of ``columns``) fill the cache."""
    return max(TILE_BYTES // (max(columns, _LEAST_WIDTH) * dtype.itemsize), 1)


def tiles_of_logits(rows: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first vocabulary index, logits ``[rows, width]``) tile by tile; every tile is the same memory."""
    width = tile_width(len(rows), rows.dtype)
    products = rows.new_empty(len(rows) * min(width, len(weight)))
    for first in range(0, len(weight), width):
        columns = weight[first : first + width].t()
        shape = len(rows), columns.shape[1]
        yield first, torch.mm(rows, columns, out=products[: shape[0] * shape[1]].view(shape))
