"""docs/spec.md section 3, 3a, 4 and "Random draws" on plain lists, written from the text, not from the code."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction

RUNNING, DONE, NAN_MET = 0, 1, 2


def float32(value: float) -> float:
    """``value`` rounded to the nearest float32."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:  # nearer to 2^128 than to the largest float32
        return math.copysign(math.inf, value)


@dataclass
class Block:
    """One sequence's block: x, M, U and `last`."""

    tokens: list[int]
    masked: set[int]
    revocable: set[int]
    last: int
    branches: set[str] = field(default_factory=set)  # which parts of the rule the last step went through


def first(positions: set[int], count: int, key) -> set[int]:
    """The `count` positions with the smallest key; of equal keys the lowest position."""
    return set(sorted(positions, key=lambda i: (key(i), i))[: max(count, 0)])


def wino_step(
    block: Block,
    token_ids: list[int],
    confidence: list[float],
    mask_id: int,
    threshold: float,
    threshold_back: float,
    fraction: Fraction = Fraction(7, 10),
    min_accept: int = 5,
    max_accept: int = 20,
    verify_last: bool = False,
) -> tuple[int, int, int]:
    """Changes `block`; returns (accepted, re-masked, status)."""
    block.branches = set()
    threshold, threshold_back = float32(threshold), float32(threshold_back)
    if not block.masked:
        if not verify_last or block.last <= 1:
            block.branches.add("done before")
            return 0, 0, DONE
        return _verify_full_block(block, confidence, mask_id, threshold_back)

    m = len(block.masked)
    limit = min(max(math.floor(fraction * m), min_accept), max_accept)
    if any(math.isnan(confidence[i]) for i in block.masked):
        block.branches.add("NaN")
        return 0, 0, NAN_MET

    accepted = {i for i in block.masked if float32(confidence[i]) > threshold}
    if len(accepted) > limit:
        block.branches.add("cap")
        accepted = first(accepted, limit, lambda i: -confidence[i])
    if not accepted:
        block.branches.add("none above threshold")
        accepted = first(block.masked, 1, lambda i: -confidence[i])
    n = len(accepted)

    remasked: set[int] = set()
    if n > 1:
        if any(math.isnan(confidence[j]) for j in block.revocable):
            block.branches.add("NaN")
            return 0, 0, NAN_MET
        remasked = _doubtful(block, confidence, threshold_back)
    else:
        block.branches.add("n = 1")

    for i in accepted:
        block.tokens[i] = token_ids[i]
    for j in remasked:
        block.tokens[j] = mask_id
    block.masked = (block.masked - accepted) | remasked
    block.revocable = (block.revocable | accepted) - remasked
    block.last = n
    done = not block.masked and not (verify_last and block.last > 1)
    return n, len(remasked), DONE if done else RUNNING


def _doubtful(block: Block, confidence: list[float], threshold_back: float) -> set[int]:
    remasked = {j for j in block.revocable if float32(confidence[j]) < threshold_back}
    if len(remasked) >= block.last:
        block.branches.add("last - 1 cut")
        remasked = first(block.revocable, block.last - 1, lambda j: confidence[j])
    if remasked:
        block.branches.add("re-mask")
    return remasked


def _verify_full_block(
    block: Block, confidence: list[float], mask_id: int, threshold_back: float
) -> tuple[int, int, int]:
    if any(math.isnan(confidence[j]) for j in block.revocable):
        block.branches.add("NaN")
        return 0, 0, NAN_MET
    block.branches.add("final pass")
    remasked = _doubtful(block, confidence, threshold_back)
    if not remasked:
        block.last = 0
        return 0, 0, DONE
    for j in remasked:
        block.tokens[j] = mask_id
    block.masked = set(remasked)
    block.revocable -= remasked
    block.last -= len(remasked)
    return 0, len(remasked), RUNNING


def accept(
    tokens: list[int],
    masked: set[int],
    token_ids: list[int],
    confidence: list[float],
    threshold: float | None = None,
    count: int | None = None,
) -> tuple[int, int]:
    """Section 4. Changes `tokens` and `masked`; returns (accepted, status)."""
    if any(math.isnan(confidence[i]) for i in masked):
        return 0, NAN_MET
    if threshold is not None:
        accepted = {i for i in masked if float32(confidence[i]) >= float32(threshold)}
        accepted = accepted or first(masked, 1, lambda i: -confidence[i])
    else:
        accepted = first(masked, count, lambda i: -confidence[i])
    for i in accepted:
        tokens[i] = token_ids[i]
    masked -= accepted
    return len(accepted), RUNNING if masked else DONE


def philox_4x32_10(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """As Salmon et al. (2011) print it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return tuple(c)


def words(seed: int, vocabulary: int) -> list[int]:
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    blocks = [philox_4x32_10((block, 0, 0, 0), key) for block in range((vocabulary + 3) // 4)]
    return [blocks[v // 4][v % 4] for v in range(vocabulary)]


def uniform(word: int) -> float:
    """x of a word, every operation rounded to float32, and kept below 1."""
    return min(float32(float32(float32(word) + 0.5) * 2.0**-32), 1.0 - 2.0**-24)


def gumbel(word: int) -> float:
    return -math.log(-math.log1p(-uniform(word)))


def splitmix64(value: int) -> int:
    mask = (1 << 64) - 1
    z = (value + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
