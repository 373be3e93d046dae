"""What a decoder decides: which rows a step scores, and how their scores become the next tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import wino_kernels

from ..config import GenerationConfig, PerRequest
from ..models.head import Head


@dataclass
class BlockState:
    """The current block of every sequence; sequences may be in different blocks.

    Attributes:
        tokens: (B, K) int64.
        masked: (B, K) bool, still to be filled.
        revocable: (B, K) bool, written by an earlier step and open to re-masking.
        last_accepted: (B,) int32, tokens accepted by the block's previous step (30 at its start).
        block_step: (B,) int64, forward passes spent on the block so far.
        row_seeds: (B, K) int64, this step's seed of each row's random draws.
    """

    tokens: Tensor
    masked: Tensor
    revocable: Tensor
    last_accepted: Tensor
    block_step: Tensor
    row_seeds: Tensor


class Decoder(ABC):
    """One per decode; holds the settings as run-time tensors, every one with a row a sequence, changed in place.

    ``uses_shadow`` says whether filled positions are scored in the shadow block (docs/spec.md section 2).
    """

    uses_shadow: ClassVar[bool] = False

    def __init__(self, config: GenerationConfig, mask_id: int, batch: int, device: torch.device) -> None:
        self.config = config
        self.mask_id = mask_id

    def start_blocks(self, state: BlockState, starting: Tensor) -> None:  # noqa: B027 - most decoders need nothing
        """Called when the sequences ``starting`` (B,) bool have just entered a block."""

    def candidate_ids(self, state: BlockState) -> Tensor:
        """(B, K) what each row is scored for: -1 draft, >= 0 verify that token, -2 nothing."""
        return torch.where(state.masked, -1, -2)

    def observe(self, state: BlockState, head: Head, hidden: Tensor) -> None:  # noqa: B027 - most go by scores alone
        """Called before :meth:`update` with the block's rows, (B, K) of them in the shape that ``head`` takes."""

    def keep(self, rows: Tensor) -> None:
        """Only ``rows`` (int64) of the sequences go on."""
        keep_rows(self, rows)

    @abstractmethod
    def update(self, state: BlockState, token_ids: Tensor, confidence: Tensor) -> Tensor:
        """Write the next tokens in place; returns the status (B,) int32 of docs/spec.md section 6."""


def per_request(value: PerRequest, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``value`` as a tensor (B,); integers are taken modulo 2**64, as seeds are."""
    values = list(value) if isinstance(value, Sequence) else [value]
    if dtype == torch.int64:
        values = [(int(v) + (1 << 63)) % (1 << 64) - (1 << 63) for v in values]
    return torch.tensor(values, dtype=dtype).to(device).expand(batch).contiguous()


def uniform_draws(row_seeds: Tensor) -> Tensor:
    """A float32 in [0, 1) from a hash of each row's seed, apart from the words its Gumbel noise uses."""
    return ((wino_kernels.splitmix64(row_seeds) >> 40) & 0xFFFFFF).float() * 2.0**-24


def keep_rows(holder: object, rows: Tensor, shared: Sequence[str] = ()) -> None:
    """Replace every tensor attribute of ``holder`` but ``shared`` ones by these rows of it."""
    for name, value in vars(holder).items():
        if isinstance(value, Tensor) and name not in shared:
            setattr(holder, name, value.index_select(0, rows))
