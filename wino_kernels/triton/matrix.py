"""Matrix products and rounding, as device functions: what the chip does natively and the interpreter does not."""

from __future__ import annotations

import triton
import triton.language as tl

from wino_kernels.triton import launch

_INTERPRETED = tl.constexpr(launch.INTERPRETED)


@triton.jit
def dot(a, b, accumulator):
    """``accumulator + a @ b``: exact products (no tf32), summed in float32."""
    if _INTERPRETED:  # which multiplies the bits of bfloat16 as if they were integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 ``x``, each rounded to the nearest number of ``dtype``, ties to even; float32 again."""
    if dtype == tl.float32:
        return x
    elif dtype == tl.bfloat16 and _INTERPRETED:  # which cuts digits off
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return tl.where(x != x, x, bits.to(tl.float32, bitcast=True))
    else:
        return x.to(dtype).to(tl.float32)


@triton.jit
def multiply_add(a, b, total):
    """total + a @ b, accumulated in the type of ``total``."""
    if total.dtype == tl.float64:  # tl.dot knows it in newer Tritons only
        return total + tl.sum(a[:, :, None] * b[None, :, :], 1)
    else:
        return dot(a, b, total)


@triton.jit
def narrowed(x, DTYPE: tl.constexpr):
    """x, rounded to DTYPE."""
    if x.dtype == tl.float64:
        return x
    else:
        return rounded(x, DTYPE).to(DTYPE)
