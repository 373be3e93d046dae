"""score_tokens on the CPU (docs/spec.md section 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from wino_kernels import _C
from wino_kernels.cpu.addresses import DTYPES, address, per_row
from wino_kernels.strides import collapse


def score_tokens(
    logits: Tensor, candidate_ids: Tensor, temperature: Tensor | None = None, seed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    token_ids = torch.empty_like(candidate_ids)
    confidence = torch.empty_like(candidate_ids, dtype=torch.float64)
    if candidate_ids.numel():
        _score(logits, candidate_ids, temperature, seed, token_ids, confidence)
    return token_ids, confidence


def _score(
    logits: Tensor,
    candidate_ids: Tensor,
    temperature: Tensor | None,
    seed: Tensor | None,
    token_ids: Tensor,
    confidence: Tensor,
) -> None:
    rows = collapse(logits)
    if rows is None:  # three or more strides that do not combine: one slice of the first dimension at a time
        for i in range(logits.shape[0]):
            heat = temperature[i] if temperature is not None and temperature.dim() else temperature
            _score(logits[i], candidate_ids[i], heat, None if seed is None else seed[i], token_ids[i], confidence[i])
        return
    outer, inner, outer_stride, inner_stride = rows
    _C.score_tokens(
        logits.data_ptr(),
        DTYPES[logits.dtype],
        outer,
        inner,
        logits.shape[-1],
        outer_stride,
        inner_stride,
        candidate_ids.data_ptr(),
        *per_row(temperature),
        address(seed),
        token_ids.data_ptr(),
        confidence.data_ptr(),
        torch.get_num_threads(),
    )
