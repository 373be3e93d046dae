"""How a product with the LM head is cut up, so that what is alive of it stays in cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

TILE_BYTES = 4 << 20  # of logits alive at once: about what the last-level cache keeps
_TILE_STEP = 64
_LEAST_WIDTH = 1024  # of a tile: a narrower product is slower


def most_rows(dtype: torch.dtype) -> int:
    """Rows multiplied together: more would make tiles narrow."""
    return max(TILE_BYTES // (_LEAST_WIDTH * dtype.itemsize), 1)


def tiles_of_logits(rows: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first vocabulary index, logits ``[rows, width]``) tile by tile; every tile is the same memory."""
    width = max(TILE_BYTES // (max(len(rows), 1) * rows.dtype.itemsize) // _TILE_STEP, 1) * _TILE_STEP
    products = rows.new_empty(len(rows) * min(width, len(weight)))
    for first in range(0, len(weight), width):
        columns = weight[first : first + width].t()
        shape = len(rows), columns.shape[1]
        yield first, torch.mm(rows, columns, out=products[: shape[0] * shape[1]].view(shape))
