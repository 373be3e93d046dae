"""Keys and values that are kept while a block is decoded, as Fast-dLLM keeps them (arXiv 2505.22618).

Approximate: what is kept was computed when the block began (or was last refreshed) and does not see what was written
since. ``"prefix"`` keeps prompt and finished blocks, ``"dual"`` also what lies behind the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes a layer's keys and values (N, Hkv, L, d) and returns those that are attended to (N, Hkv, Lk, d)."""


class KeyValueCache:
    """Keys and values of every layer for N rows of a batch and all L tokens of their layout, shadow block last."""

    def __init__(self, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """``shape``: (N, Hkv, L, d)."""
        rows, heads, length, head_dim = shape
        # A token's heads stand together, as a layer computes them, so that a token is written in one piece.
        self._layers = [
            tuple(torch.zeros(rows, length, heads, head_dim, dtype=dtype, device=device) for _ in range(2))
            for _ in range(layers)
        ]

    def whole(self, rows: Tensor | None = None) -> Iterator[Store]:
        """Of a pass over the first tokens, at most L, of ``rows`` (int64; None: all rows): it replaces what is kept."""

        def store_in(kept: tuple[Tensor, ...]) -> Store:
            def store(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
                for buffer, fresh in zip(kept, (key, value), strict=True):
                    first = buffer[:, : fresh.shape[2]]
                    if rows is None:
                        first.copy_(fresh.transpose(1, 2))
                    else:
                        first.index_copy_(0, rows, fresh.transpose(1, 2))
                return key, value

            return store

        return map(store_in, self._layers)

    def part(self, index: Tensor, keys: int) -> Iterator[Store]:
        """Of a pass over the tokens ``index`` (N, Lq) of all rows: it replaces theirs and sees the first ``keys``.

        Equal indices in a row must be equal tokens.
        """

        length = self._layers[0][0].shape[1]
        where = (index + length * torch.arange(len(index), device=index.device)[:, None]).flatten()

        def store_in(kept: tuple[Tensor, ...]) -> Store:
            def store(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
                for buffer, fresh in zip(kept, (key, value), strict=True):
                    buffer.flatten(0, 1).index_copy_(0, where, fresh.transpose(1, 2).flatten(0, 1))
                seen_keys, seen_values = (buffer[:, :keys].transpose(1, 2) for buffer in kept)
                return seen_keys, seen_values

            return store

        return map(store_in, self._layers)

    def keep(self, rows: Tensor) -> None:
        """Only ``rows`` (int64) of the batch go on."""
        self._layers = [tuple(buffer.index_select(0, rows) for buffer in kept) for kept in self._layers]
