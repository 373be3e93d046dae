"""The sequences of a decode on the device, in buffers that stay where they are (docs/spec.md section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import wino_kernels
from wino_kernels.eager.norm_qkv_rope import rows_of

from .config import GenerationConfig
from .decoders.base import BlockState, keep_rows, per_request
from .drafts import Scorer
from .models.backbone import Backbone
from .models.forward import rotary_rows

_LAST_ACCEPTED_AT_START = 30


class Passes(NamedTuple):
    """What runs through the layers in a step.

    Attributes:
        whole: all tokens (and their keys and values go into the cache, if there is one); else only those beside the
            cache.
        verify: the shadow block too. A step without it verifies nothing.
        refreshed: (n,) int64 sequences of which all tokens run through the layers as well.
    """

    whole: bool
    verify: bool
    refreshed: Tensor | None = None


class Batch:
    """B sequences, each in a block of its own: P + G real tokens, then the shadow block.

    What a step needs of the layout (embeddings, rotary tables, indices) is built when a block begins; a step rewrites
    the block's embeddings alone. Tensors are changed in place, so that a step can be captured as a graph: only ``keep``
    replaces them, and ``enter`` some when it says so. Prompts are padded on the left. Each tensor has one row a
    sequence; what runs through the model has C copies of it, [B, C, ...]: for classifier-free guidance a second one,
    with masks or ``guide`` in the prompt's place.

    Attributes:
        scorer: makes tokens and confidences of rows.
        tokens: (B, P + G) int64, up to date after ``settle``.
        accepted_at: (B, G) int64, docs/spec.md section 5, up to date after ``settle``.
        state: the current blocks.
        block_positions: (B, K) int64, where in ``tokens`` they lie.
        block_accepted_at: (B, K) int64; of a position that is still masked, the last step so far.
        confidence: (B, K) float64 of the last step.
        end_token_ids: (E,) int64 tokens that end an answer.
        steps: (B,) int64, forward passes so far.
        ended: (B,) int32, with ``stop_at_eos`` whether the block holds nothing but end tokens.
        report: (3, B) int32, what the host reads after a step: the decoder's status (docs/spec.md section 6),
            ``last`` and ``ended``.
        common_start: where in ``tokens`` all blocks begin; None: not all at one place, or a graph or a compiled step is
            to serve any place.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: GenerationConfig,
        prompt: Tensor,
        visible: Tensor,
        generation_ids: Tensor,
        uses_shadow: bool,
        guide: tuple[Tensor, Tensor] | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        self.backbone, self.config = backbone, config
        batch, self.prompt_length = prompt.shape
        self.scorer = Scorer(backbone, config, self.prompt_length)
        self.block_length, device = config.block_size, backbone.device
        self.num_real = self.prompt_length + config.max_new_tokens
        self.num_shadow = self.block_length if uses_shadow else 0
        self.tokens = torch.cat((prompt, generation_ids), dim=1)
        self.accepted_at = torch.full_like(generation_ids, -1)
        self.steps = torch.zeros(batch, dtype=torch.int64, device=device)
        self.temperature = (
            per_request(config.temperature, batch, device, torch.float32)[:, None]
            .expand(batch, self.block_length)
            .contiguous()
        )
        self.seed = per_request(config.seed, batch, device, torch.int64)
        self.end_token_ids = torch.tensor(ends, dtype=torch.int64, device=device)
        self.samples = config.samples  # a compiled step depends on whether, not on the temperature
        self.common_start = self._start_of([0])
        self._start_blocks(batch, device)
        self._lay_out(visible, guide)

    def _start_blocks(self, batch: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(batch, *shape, dtype=dtype, device=device)

        size = self.block_length
        self.state = BlockState(
            tokens=zeros(size),
            masked=zeros(size, dtype=torch.bool),
            revocable=zeros(size, dtype=torch.bool),
            last_accepted=zeros(dtype=torch.int32),
            block_step=zeros(),
            row_seeds=zeros(size),
        )
        self.offsets = torch.arange(size, device=device)
        self.block_start = zeros() + self.prompt_length
        self.block_positions = self.block_start[:, None] + self.offsets
        self.block_accepted_at = zeros(size)
        self.confidence = zeros(size, dtype=torch.float64)
        self.ended = zeros(dtype=torch.int32)
        self.report = torch.zeros(3, batch, dtype=torch.int32, device=device)
        self._read_blocks()

    def _read_blocks(self) -> None:
        """The blocks' tokens as they stand in ``tokens``."""
        self.state.tokens.copy_(self.tokens.gather(1, self.block_positions))
        self.block_accepted_at.copy_(self.accepted_at.gather(1, self.block_positions - self.prompt_length))

    def _lay_out(self, visible: Tensor, guide: tuple[Tensor, Tensor] | None) -> None:
        """What the model sees, but for the block: embeddings, rotary tables, padding, cache."""
        backbone, batch = self.backbone, len(self.tokens)
        mask_id, copies = backbone.mask_token_id, 2 if self.config.cfg_scale > 0 else 1
        shadow = self.tokens.new_full((batch, self.num_shadow), mask_id)
        seen, shown = torch.cat((self.tokens, shadow), dim=1)[:, None], visible[:, None]  # [B, C, L], [B, C, P]
        if copies > 1:
            seen, shown = seen.repeat(1, copies, 1), shown.repeat(1, copies, 1)
            seen[:, 1, : self.prompt_length], shown[:, 1] = (mask_id, visible) if guide is None else guide
        self.embedded = backbone.embed(seen).contiguous()  # [B, C, L, H]
        self.seen = None if backbone.embeds_tokens_apart else seen.clone()
        self.embedded_rows: Tensor | None = None  # [B, C, K], where the blocks' rows are among all that are embedded
        self._find_rows()
        every = torch.arange(self.num_real, device=visible.device)
        positions = every.expand(batch, copies, -1)  # [B, C, P + G]
        self.padding: Tensor | None = None  # [B, C, L]
        if not bool(shown.all()):
            rest = shown.new_ones(batch, copies, self.num_real + self.num_shadow - self.prompt_length)
            self.padding = torch.cat((shown, rest), dim=2)
            hidden = (~shown).sum(2, keepdim=True)  # on the left
            positions = (positions - hidden).clamp(min=0)
        self.positions = positions[:, 0].contiguous()  # [B, P + G]
        placed = torch.cat((positions, positions[:, :, : self.num_shadow]), dim=2)
        # [B, C, 1, L, d]
        self.cos, self.sin = (F.embedding(placed, table[0, 0])[:, :, None] for table in backbone.rotary(every))
        self.part: tuple[Tensor, Tensor, Tensor] | None = None  # indices into L and their rotary tables
        self.cache = None
        if self.config.cache != "none":
            self.cache = backbone.new_cache(batch * copies, self.num_real + self.num_shadow, self.embedded.dtype)

    def enter(self, blocks: Sequence[int | None], entering: Sequence[bool]) -> bool:
        """Put each sequence in its block; those ``entering`` start it. None: the sequence is done and stays idle.

        ``settle`` has been called since the last step. Returns whether tensors that steps use have been replaced.
        """
        self._embed_blocks()  # a sequence that goes on leaves its tokens behind
        state, device = self.state, self.tokens.device
        number = torch.tensor([0 if block is None else block for block in blocks], device=device)
        starting = torch.tensor(entering, device=device)
        idle = torch.tensor([block is None for block in blocks], device=device)
        self.block_start.copy_(self.prompt_length + number * self.block_length)
        self.block_positions.copy_(self.block_start[:, None] + self.offsets)
        self.common_start = self._start_of(blocks)
        self._find_rows()
        self._read_blocks()
        fresh = state.tokens == self.backbone.mask_token_id
        state.masked.copy_(torch.where(starting[:, None], fresh, state.masked) & ~idle[:, None])
        state.revocable.masked_fill_((starting | idle)[:, None], False)
        state.last_accepted.masked_fill_(starting, _LAST_ACCEPTED_AT_START).masked_fill_(idle, 0)
        state.block_step.masked_fill_(starting, 0)
        for table in (self.cos, self.sin) if self.num_shadow else ():
            table[:, :, :, self.num_real :] = self._rows_of_table(table)
        return self.cache is not None and self._choose_part(blocks)

    def _start_of(self, blocks: Sequence[int | None]) -> int | None:
        first = blocks[0]  # None: an idle sequence, whose tokens stay where they are
        if first is None or any(block != first for block in blocks):
            return None
        fixed = self.config.cuda_graph or self.config.compile_step
        return None if fixed else self.prompt_length + first * self.block_length

    def _slice(self, whole: Tensor, dim: int, first: int = 0) -> Tensor | None:
        """The blocks in ``whole``, whose ``dim`` begins with token ``first``, as a view; None: they are not one slice.

        A slice is read and written in a fraction of the time that scattered rows take.
        """
        start = self.common_start
        return None if start is None else whole.narrow(dim, start - first, self.block_length)

    def _rows_of_table(self, table: Tensor) -> Tensor:
        """(B, C, 1, K, d), the blocks' rows of a rotary table."""
        own = self._slice(table, 3)
        if own is not None:
            return own
        rows = self.block_positions[:, None, None, :, None]
        return table.gather(3, rows.expand(*table.shape[:3], -1, table.shape[-1]))

    def _choose_part(self, blocks: Sequence[int | None]) -> bool:
        """The tokens that run through the layers beside the cache: block, with "prefix" all behind it, shadow block."""
        width = self.block_length
        if self.config.cache == "prefix":
            first = min(block for block in blocks if block is not None)
            width = self.config.max_new_tokens - first * self.block_length
        ahead = torch.arange(width, device=self.tokens.device)
        # A sequence that is nearer to its end than another repeats its last token.
        window = (self.block_start[:, None] + ahead).clamp(max=self.num_real - 1)
        shadow = torch.arange(self.num_real, self.num_real + self.num_shadow, device=self.tokens.device)
        part = torch.cat((window, shadow.expand(len(window), -1)), dim=1)
        copies = self.embedded.shape[1]
        part = part[:, None].repeat(1, copies, 1)  # [B, C, width + shadow]
        tables = (self.cos.flatten(0, 1), self.sin.flatten(0, 1))
        cos, sin = (table.unflatten(0, (-1, copies)) for table in rotary_rows(tables, part.flatten(0, 1)))
        fresh = (part, cos, sin)
        moved = self.part is None or self.part[0].shape != part.shape
        if self.part is None or moved:
            self.part = fresh
        else:
            for kept, new in zip(self.part, fresh, strict=True):
                kept.copy_(new)
        return moved

    def settle(self) -> None:
        """Write the blocks' tokens, with their times of acceptance, to where they belong."""
        tokens, accepted_at = self._slice(self.tokens, 1), self._slice(self.accepted_at, 1, self.prompt_length)
        if tokens is not None and accepted_at is not None:
            tokens.copy_(self.state.tokens)
            accepted_at.copy_(self.block_accepted_at)
            return
        self.tokens.scatter_(1, self.block_positions, self.state.tokens)
        self.accepted_at.scatter_(1, self.block_positions - self.prompt_length, self.block_accepted_at)

    def _find_rows(self) -> None:
        if self.common_start is not None:
            return
        batch, copies, length, _ = self.embedded.shape
        first = torch.arange(batch * copies, device=self.embedded.device).view(batch, copies, 1) * length
        rows = first + self.block_positions[:, None]
        if self.embedded_rows is None or self.embedded_rows.shape != rows.shape:
            self.embedded_rows = rows
        else:
            self.embedded_rows.copy_(rows)

    def _embed_blocks(self) -> None:
        if self.seen is not None:  # what is put on the embedding may look at all tokens
            places = self.block_positions[:, None].expand(-1, self.seen.shape[1], -1)
            self.seen.scatter_(2, places, self.state.tokens[:, None].expand_as(places))
            self.embedded.copy_(self.backbone.embed(self.seen.clone()))  # others may keep what they are given
            return
        fresh, own = self.backbone.embed(self.state.tokens)[:, None], self._slice(self.embedded, 2)
        if own is not None:
            own.copy_(fresh)
            return
        assert self.embedded_rows is not None
        fresh = fresh.expand(-1, self.embedded.shape[1], -1, -1).flatten(0, 2)
        self.embedded.view(-1, fresh.shape[-1]).index_copy_(0, self.embedded_rows.view(-1), fresh)

    def draw_seeds(self) -> None:
        """This step's seed of each row's random draws (docs/spec.md section 6, random draws)."""
        positions = self.positions.gather(1, self.block_positions)
        self.state.row_seeds.copy_(wino_kernels.row_seeds(self.seed, self.steps, positions))

    def hidden_rows(self, passes: Passes) -> Tensor:
        """Of a block position its real row if it is masked or nothing is verified, else its shadow row.

        (B, K, H); with guidance (B, K, C, H), of both copies.
        """
        self._embed_blocks()
        hidden = self._whole(None, passes.verify) if passes.whole else self._part(passes.verify)
        if passes.refreshed is not None:
            hidden = hidden.index_copy(0, passes.refreshed, self._whole(passes.refreshed, passes.verify))
        return hidden

    def _whole(self, sequences: Tensor | None, verify: bool) -> Tensor:
        def chosen(tensor: Tensor) -> Tensor:
            return tensor if sequences is None else tensor.index_select(0, sequences)

        stores = None
        if self.cache is not None:
            stores = self.cache.whole(None if sequences is None else self._copies_of(sequences))
        seen = chosen(self.embedded), chosen(self.cos), chosen(self.sin)
        return self._pass(*seen, chosen(self.block_positions), verify, chosen, stores)

    def _part(self, verify: bool) -> Tensor:
        assert self.cache is not None and self.part is not None
        index, cos, sin = self.part
        if not verify:
            index = index[:, :, : index.shape[2] - self.num_shadow]
        part = index.flatten(0, 1)  # [B C, width + shadow]
        embedded = rows_of(self.embedded.flatten(0, 1), part).unflatten(0, index.shape[:2])
        keys = self.num_real + (self.num_shadow if verify else 0)
        return self._pass(embedded, cos, sin, self.offsets, verify, lambda tensor: tensor, self.cache.part(part, keys))

    def _pass(
        self,
        embedded: Tensor,
        cos: Tensor,
        sin: Tensor,
        own: Tensor,
        verify: bool,
        chosen: Callable[[Tensor], Tensor],
        stores: Any,
    ) -> Tensor:
        """Rows of the block, at ``own`` among the real tokens, of each copy.

        Without ``verify`` the shadow block, if it is there, is left away.
        """
        copies, shadow = embedded.shape[1], self.num_shadow if verify else 0

        def each(tensor: Tensor) -> Tensor:  # [n, ...] -> [n C, ...]
            return tensor if copies == 1 else tensor.repeat_interleave(copies, 0)

        masked = chosen(self.state.masked)
        behind = cos.shape[3] - self.num_shadow  # where the shadow block begins
        tokens, keys = behind + shadow, self.num_real + shadow
        rows = torch.where(masked, own, behind + self.offsets) if shadow else own.expand_as(masked)
        hidden = self.backbone.trunk(
            embedded[:, :, :tokens].flatten(0, 1),
            (cos[:, :, :, :tokens].flatten(0, 1), sin[:, :, :, :tokens].flatten(0, 1)),
            each(rows),
            num_shadow=shadow,
            block_start=each(chosen(self.block_start)),
            key_padding_mask=None if self.padding is None else chosen(self.padding)[:, :, :keys].flatten(0, 1),
            stores=stores,
        )
        return hidden if copies == 1 else hidden.unflatten(0, (-1, copies)).transpose(1, 2)

    def _copies_of(self, sequences: Tensor) -> Tensor:
        copies = self.embedded.shape[1]
        return (sequences[:, None] * copies + torch.arange(copies, device=sequences.device)).flatten()

    def keep(self, rows: Tensor) -> None:
        """Only ``rows`` (int64) of the sequences go on."""
        keep_rows(self.state, rows)
        if self.cache is not None:
            self.cache.keep(self._copies_of(rows))
            self.part = None
        self.report = self.report[:, : len(rows)].contiguous()
        keep_rows(self, rows, shared=("offsets", "embedded_rows", "report", "end_token_ids"))
        self._find_rows()
