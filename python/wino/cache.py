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
        self._layers = [
            (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(layers)
        ]

    def whole(self, rows: Tensor | None = None) -> Iterator[Store]:
        """Of a pass over the first tokens, at most L, of ``rows`` (int64; None: all rows): it replaces what is kept."""

        def store_in(kept: tuple[Tensor, Tensor]) -> Store:
            def store(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
                for buffer, fresh in zip(kept, (key, value), strict=True):
                    first = buffer[:, :, : fresh.shape[2]]
                    if rows is None:
                        first.copy_(fresh)
                    else:
                        first.index_copy_(0, rows, fresh)
                return key, value

            return store

        return map(store_in, self._layers)

    def part(self, index: Tensor, keys: int) -> Iterator[Store]:
        """Of a pass over the tokens ``index`` (N, Lq) of all rows: it replaces theirs and sees the first ``keys``.

        Equal indices in a row must be equal tokens.
        """

        def store_in(kept: tuple[Tensor, Tensor]) -> Store:
            def store(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
                where = index[:, None, :, None].expand_as(key)
                for buffer, fresh in zip(kept, (key, value), strict=True):
                    buffer.scatter_(2, where, fresh)
                return kept[0][:, :, :keys], kept[1][:, :, :keys]

            return store

        return map(store_in, self._layers)

    def keep(self, rows: Tensor) -> None:
        """Only ``rows`` (int64) of the batch go on."""
        self._layers = [(key.index_select(0, rows), value.index_select(0, rows)) for key, value in self._layers]
