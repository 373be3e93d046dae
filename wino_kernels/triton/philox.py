"""Philox-4x32-10 (Salmon et al., SC 2011) and the Gumbel noise of docs/spec.md section 6, as device functions."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox_4x32(seed, counter):
    """The four output words of counter ``(counter, 0, 0, 0)``. seed: int64, counter: int; shapes broadcast."""
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = counter.to(tl.uint32) ^ (k0 & 0)
    c1 = c0 & 0
    c2 = c1
    c3 = c1
    for _ in tl.static_range(10):
        high_0 = tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32))
        low_0 = c0 * tl.full(c0.shape, 0xD2511F53, tl.uint32)
        high_1 = tl.umulhi(c2, tl.full(c2.shape, 0xCD9E8D57, tl.uint32))
        low_1 = c2 * tl.full(c2.shape, 0xCD9E8D57, tl.uint32)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0 = k0 + tl.full(k0.shape, 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full(k1.shape, 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def random_words(seed, first, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Words of vocabulary indices ``first ... first + WIDTH - 1``: uint32 ``[ROWS, WIDTH]``.

    seed: int64 ``[ROWS, 1]``. first: a multiple of 4. WIDTH: a power of two, at least 4.
    """
    counter = first // 4 + tl.arange(0, WIDTH // 4)[None, :]  # [1, WIDTH / 4]
    w0, w1, w2, w3 = philox_4x32(seed, counter)  # [ROWS, WIDTH / 4]
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [..., 2, 2], in the order w0 w1 w2 w3
    return tl.reshape(words, (ROWS, WIDTH))


@triton.jit
def gumbel(word):
    """-log(-log1p(-x)) of x = (word + 0.5) / 2**32, in float32, accurate where x is small and g is large."""
    x = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    x = tl.minimum(x, 0.99999994)  # the largest float32 below 1
    # log1p(-x) = -2 atanh(x / (2 - x)): a logarithm near 1 would lose the digits that decide.
    s = x / (2.0 - x)
    q = s * s
    series = 2.0 * s * (1.0 + q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9)))))
    exponential = tl.where(x < 0.25, series, -tl.log(1.0 - x))
    return -tl.log(exponential)
