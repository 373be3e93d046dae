"""The Hugging Face ``Trainer`` around ``trajectory_loss``: one loss, whatever the micro-batches and processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers import Trainer

import wino_kernels

from ..models.forward import hidden_forward, logit_scale
from ..models.head import head_of
from ..models.llada import LLaDAModelLM
from .callbacks import COUNT_OF, PARTS
from .recipe import Loss
from .unfold import CANDIDATE, TARGET, mask_answers


class TrajectoryTrainer(Trainer):
    """A ``Trainer`` whose loss is docs/spec.md section 5's over the global batch of an optimiser step.

    Each micro-batch's ``trajectory_loss`` returns sums; they are divided by the counts of all micro-batches of all
    processes. Two of the counts depend on the model's outputs, so with accumulation they come from a forward pass
    without gradients over the step's micro-batches first. With ``reduction="sample_mean"`` the sums are of samples'
    means, and all of them are divided by the number of samples, which is known beforehand.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, loss: Loss, checkpointing: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._loss = loss
        weights = (loss.cross_entropy, loss.unmask, -loss.remask, loss.llada)
        self._weights = torch.tensor(weights, device=self.args.device)
        self._logged = torch.zeros(3, len(PARTS), dtype=torch.float64, device=self.args.device)
        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        _check_head(base)
        # On the instance, so that wrappers (PEFT, DDP, FSDP) call it and saving knows nothing of it.
        base.forward = partial(sums_and_counts, base, loss, _call_checkpointed if checkpointing else call_block)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The step's micro-batches and, if there are several, the parts' global counts."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.gradient_accumulation_steps == 1:
            return batches, None
        if self._loss.reduction == "sample_mean":
            return batches, self._reduced(self._samples(sum(len(batch["tokens"]) for batch in batches)))
        with torch.no_grad(), torch.random.fork_rng():  # dropout draws the same again in the pass that counts
            self.model_wrapped.train()
            return batches, self._reduced(sum(self._forward(self.model_wrapped, batch)[1] for batch in batches))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This micro-batch's share of the global loss, times the number of processes: DDP averages gradients."""
        sums, own_counts = self._forward(model, inputs)
        by_sample = self._loss.reduction == "sample_mean"
        own = self._samples(len(inputs["tokens"])) if by_sample else own_counts
        counts = self._reduced(own) if num_items_in_batch is None else num_items_in_batch
        loss = (self._weights * sums / counts.clamp(min=1)).sum() * self.accelerator.num_processes
        self._logged += torch.stack((sums.detach().double(), own.double(), own_counts.double()))
        return (loss, {"sums": sums, "counts": own_counts}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts' means since the last line, and how many rows they are means of."""
        if "loss" in logs:
            sums, denominators, counts = self._reduced(self._logged)
            self._logged = torch.zeros_like(self._logged)
            rows = zip(PARTS, sums.tolist(), denominators.tolist(), counts.tolist(), strict=True)
            for part, total, of, count in rows:
                logs[part] = total / of if of else 0.0
                logs[COUNT_OF[part]] = int(count)
        super().log(logs, start_time)

    def _forward(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = self._prepare_inputs(batch)
        if self._loss.llada:
            mask_id = getattr(self.model, "config").mask_token_id  # noqa: B009 - typed as a module
            noisy, masked = mask_answers(inputs, mask_id, f"{self.args.seed}/{self.state.global_step}")
            inputs = {**inputs, "noisy_ids": noisy, "noisy_mask": masked}
        with self.compute_loss_context_manager():
            return model(inputs)

    def _samples(self, number: int) -> Tensor:
        """(4,): the number of samples as the denominator of every part."""
        return torch.full((len(PARTS),), number, device=self.args.device)

    def _reduced(self, counts: Any) -> Tensor:
        return self.accelerator.reduce(counts, "sum") if self.accelerator.num_processes > 1 else counts


def sums_and_counts(
    model: LLaDAModelLM, loss: Loss, run: Callable[..., Tensor], batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Sums and counts (4,) of the loss's parts on one micro-batch; the last is LLaDA's, counted in samples.

    Sums are over rows, or with ``reduction="sample_mean"`` of the samples' means over their rows.
    """
    noisy = "noisy_ids" in batch
    input_ids = torch.cat((batch["input_ids"], batch["noisy_ids"])) if noisy else batch["input_ids"]
    mask = batch["attention_mask"].repeat(2, 1) if noisy else batch["attention_mask"]
    hidden = model.model.transformer.ln_f(hidden_forward(model, input_ids, mask, run=run))
    transformer = model.model.transformer
    weight = transformer.wte.weight if model.config.weight_tying else transformer.ff_out.weight
    dtype = (
        torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else weight.dtype
    )
    hidden, weight = (hidden * logit_scale(model.config)).to(dtype), weight.to(dtype)
    rows, tokens, roles = len(batch["tokens"]), batch["tokens"], batch["roles"]
    of, targets, candidates = hidden[:rows], roles == TARGET, roles == CANDIDATE
    thresholds: Any = {"threshold": loss.threshold, "threshold_back": loss.threshold_back}
    if loss.reduction == "batch_mean":
        parts = wino_kernels.trajectory_loss(of, weight, tokens, targets, candidates, **thresholds)
        own, counts = parts.sums, parts.counts
    else:
        each = [
            wino_kernels.trajectory_loss(*sample[:1], weight, *sample[1:], **thresholds)
            for sample in zip(of, tokens, targets, candidates, strict=True)
        ]
        own = torch.stack([part.sums / part.counts.clamp(min=1) for part in each]).sum(0)
        counts = torch.stack([part.counts for part in each]).sum(0)
    llada = _llada_sum(hidden[rows:], weight, tokens, batch["noisy_mask"]) if noisy else hidden.new_zeros(1).float()
    samples = torch.tensor([rows if noisy else 0], device=hidden.device)
    return torch.cat((own, llada)), torch.cat((counts, samples))


def _llada_sum(hidden: Tensor, weight: Tensor, tokens: Tensor, masked: Tensor) -> Tensor:
    """(1,): each row's mean cross entropy over its masked tokens, summed over the rows; its own LM head, in chunks."""
    none = torch.zeros_like(masked[0])
    sums = []
    for row, labels, chosen in zip(hidden, tokens, masked, strict=True):
        part = wino_kernels.trajectory_loss(row, weight, labels, chosen, none, threshold=1.0, threshold_back=0.0)
        sums.append(part.sums[0] / part.counts[0])
    return torch.stack(sums).sum()[None]


def _check_head(model: LLaDAModelLM) -> None:
    """Before anything wraps the model for several processes: the loss multiplies by the head's weight itself."""
    head = head_of(model)
    if head.weight is None:
        raise ValueError(
            "trajectory_loss: the LM head must be a plain nn.Linear, but something wraps, watches or replaces it; "
            "leave it out of the adapter's target_modules and modules_to_save, and remove its hooks"
        )
    if head.bias is not None:
        raise ValueError("trajectory_loss: an LM head with a bias is not supported")


def call_block(block: nn.Module, x: Tensor, *others: Any) -> Tensor:
    # On the CPU the fused attention's backward pass is several times slower than that of plain matrix products.
    with sdpa_kernel(SDPBackend.MATH) if x.device.type == "cpu" else contextlib.nullcontext():
        return block(x, *others)


def _call_checkpointed(block: nn.Module, x: Tensor, *others: Any) -> Tensor:
    return checkpoint(call_block, block, x, *others, use_reentrant=False)
