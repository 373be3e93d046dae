"""linear_score_tokens, the definition (docs/spec.md section 6): the LM head, then score_tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wino_kernels.eager.score_tokens import score_tokens


def linear_score_tokens(
    hidden: Tensor,
    weight: Tensor,
    candidate_ids: Tensor,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    seed: Tensor | None = None,
    round_to: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    if round_to is None or round_to == hidden.dtype:
        logits = F.linear(hidden, weight, bias)
    else:
        logits = F.linear(hidden.float(), weight.float(), None if bias is None else bias.float()).to(round_to)
    return score_tokens(logits, candidate_ids, temperature, seed)
