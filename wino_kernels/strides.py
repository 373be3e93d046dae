"""How the rows of a strided ``(..., N)`` tensor are walked."""

from __future__ import annotations

from torch import Tensor


def collapse(tensor: Tensor) -> tuple[int, int, int, int] | None:
    """``(outer, inner, outer_stride, inner_stride)`` that walks the rows of ``(..., N)`` in order, or None.

    Row r starts at ``r // inner * outer_stride + r % inner * inner_stride``.
    """
    sizes, strides = [1, 1], [0, 0]
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        if size == 1:
            continue
        if sizes[-1] == 1 or strides[-1] == size * stride:
            sizes[-1], strides[-1] = sizes[-1] * size, stride
        elif sizes[0] == 1:
            sizes, strides = [sizes[1], size], [strides[1], stride]
        else:
            return None
    return sizes[0], sizes[1], strides[0], strides[1]
