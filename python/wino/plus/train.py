"""Train a model to follow the order WINO found: Hugging Face ``Trainer`` and PEFT around ``trajectory_loss``.

A stage's folder holds ``recipe.json``, checkpoints, ``loss.csv`` and, once it is finished, ``final``: an adapter, or a
whole model where the recipe has none. Launched under ``accelerate launch`` or ``torchrun`` the global batch is spread
over the processes; the loss is the same function of the global batch, whatever its micro-batches and processes.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import wino_kernels

from ..files import write_atomically
from ..models.llada import LLaDAModelLM, hidden_forward, lm_head, logit_scale
from ..models.loading import load
from .identity import Identity, check_records, identify, read_identity, write_identity
from .recipe import PRESETS, Adapter, Loss, Recipe, Stage
from .records import read_trajectories
from .unfold import CANDIDATE, TARGET, TrajectorySamples, collate, mask_answers

PARTS = ("cross_entropy", "unmask_entropy", "remask_entropy", "llada")
_COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", *PARTS, "targets", "unmasked", "remasked", "samples")
_COUNTS = dict(zip(PARTS, _COLUMNS[-4:], strict=True))


def train(recipe: Recipe, *, show_progress: bool = True) -> Path:
    """Run or resume every stage of ``recipe`` and return the folder of the last stage's result.

    Raises:
        ValueError: trajectories of another model or tokenizer, or a stage's folder holds another recipe's run.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written; the same call goes on from there.
    """
    previous: Path | None = None
    for number, stage in enumerate(recipe.stages):
        final = recipe.output / stage.name / "final"
        _claim(recipe, number)
        if not final.is_dir():
            _train_stage(recipe, stage, previous, show_progress)
        previous = final
    assert previous is not None
    return previous


def _claim(recipe: Recipe, number: int) -> None:
    """Write down, or check, what the stage's folder is the result of: everything up to and including this stage."""
    folder = recipe.output / recipe.stages[number].name
    described = recipe.model_copy(update={"stages": recipe.stages[: number + 1]}).model_dump(mode="json")
    for field in ("output", "logging_steps", "save_steps", "report_to", "gradient_checkpointing"):
        del described[field]
    path = folder / "recipe.json"
    if path.exists():
        if json.loads(path.read_text()) != described:
            raise ValueError(f"{folder} holds the run of another recipe; remove it or choose another output")
    elif int(os.environ.get("RANK", "0")) == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(described, indent=2) + "\n")


def _train_stage(recipe: Recipe, stage: Stage, previous: Path | None, show_progress: bool) -> None:
    folder = recipe.output / stage.name
    model, tokenizer, identity = _open_model(recipe, previous)
    files = (check_records(read_trajectories(path), identity, path) for path in stage.trajectories)
    samples = TrajectorySamples(
        chain.from_iterable(files),
        model.config.mask_token_id,
        block_length=stage.block_length,
        order=stage.order,
        seed=recipe.seed,
    )
    arguments = _arguments(recipe, stage, folder)
    torch.manual_seed(recipe.seed)  # an adapter's first values
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    interrupt = _StopAfterStep()
    resumed = _last_complete_checkpoint(folder)
    trainer = TrajectoryTrainer(
        model=_adapted(model, recipe.adapter, previous),
        args=arguments,
        train_dataset=samples,
        data_collator=partial(collate, pad_id=pad_id),
        callbacks=[interrupt, _LossTable(folder / "loss.csv")],
        loss=recipe.loss,
        checkpointing=recipe.gradient_checkpointing,
    )
    for silent in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(silent)
    if show_progress:
        trainer.add_callback(_Bar(stage.name))
    with interrupt.listening():
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if interrupt.asked:
        raise KeyboardInterrupt
    _save_final(trainer, folder, identity, recipe)


def _open_model(recipe: Recipe, previous: Path | None) -> tuple[LLaDAModelLM, Any, Identity]:
    """The model to train (without its adapter), its tokenizer, and the identity of the base."""
    source = recipe.model if recipe.adapter or previous is None else previous
    dtype = getattr(torch, recipe.dtype) if recipe.adapter else torch.float32
    model, tokenizer = load(source, dtype=dtype)
    identity = identify(model, tokenizer, recipe.model) if source == recipe.model else read_identity(Path(source))
    return model, tokenizer, identity


def _adapted(model: LLaDAModelLM, adapter: Adapter | None, previous: Path | None) -> nn.Module:
    if adapter is None:
        return model
    if previous is not None:
        return PeftModel.from_pretrained(model, str(previous), is_trainable=True)
    names = "|".join(PRESETS[adapter.preset])
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=rf".*\bblocks\.\d+\.({names})",
    )
    return get_peft_model(model, config)


def _arguments(recipe: Recipe, stage: Stage, folder: Path) -> TrainingArguments:
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps or -1,
        num_train_epochs=stage.epochs or 1,
        per_device_train_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.accumulation,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.schedule,
        warmup_steps=stage.warmup_steps,
        weight_decay=stage.weight_decay,
        adam_beta1=stage.adam_betas[0],
        adam_beta2=stage.adam_betas[1],
        max_grad_norm=stage.max_grad_norm,
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="gloo" if distributed and not torch.cuda.is_available() else None,
        ddp_find_unused_parameters=False,
        seed=recipe.seed,
        logging_steps=recipe.logging_steps,
        save_steps=recipe.save_steps,
        save_total_limit=2,
        report_to=recipe.report_to or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=False,
        average_tokens_across_devices=False,
    )


def _last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; torn ones are removed (``trainer_state.json`` comes last)."""
    while found := get_last_checkpoint(str(folder)):
        try:
            json.loads((Path(found) / "trainer_state.json").read_text())
            return Path(found)
        except (OSError, ValueError):
            shutil.rmtree(found, ignore_errors=True)  # another process may be doing the same
            if Path(found).exists():
                raise ValueError(f"{found} was not written to its end and cannot be removed") from None
    return None


def _save_final(trainer: Trainer, folder: Path, identity: Identity, recipe: Recipe) -> None:
    """``final`` appears whole or not at all; every process takes part in gathering a sharded model."""
    partial_folder = folder / "final.partial"
    trainer.save_model(str(partial_folder))
    if trainer.is_world_process_zero():
        if recipe.adapter is None:
            load(recipe.model)[1].save_pretrained(partial_folder)
        write_identity(identity, partial_folder)
        partial_folder.rename(folder / "final")
    trainer.accelerator.wait_for_everyone()


class TrajectoryTrainer(Trainer):
    """A ``Trainer`` whose loss is SPEC section 5's, with means over the global batch of an optimiser step.

    Each micro-batch's ``trajectory_loss`` returns sums; they are divided by the counts of all micro-batches of all
    processes. Two of the counts depend on the model's outputs, so with accumulation they come from a forward pass
    without gradients over the step's micro-batches first.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, loss: Loss, checkpointing: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._loss = loss
        weights = (loss.cross_entropy, loss.unmask, -loss.remask, loss.llada)
        self._weights = torch.tensor(weights, device=self.args.device)
        self._logged = torch.zeros(2, len(PARTS), dtype=torch.float64, device=self.args.device)
        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        # On the instance, so that wrappers (PEFT, DDP, FSDP) call it and saving knows nothing of it.
        base.forward = partial(_sums_and_counts, base, loss, _checkpointed if checkpointing else _called)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The step's micro-batches and, if there are several, the parts' global counts."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.gradient_accumulation_steps == 1:
            return batches, None
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
        counts = self._reduced(own_counts) if num_items_in_batch is None else num_items_in_batch
        loss = (self._weights * sums / counts.clamp(min=1)).sum() * self.accelerator.num_processes
        self._logged += torch.stack((sums.detach().double(), own_counts.double()))
        return (loss, {"sums": sums, "counts": own_counts}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts' means since the last line, and how many rows they are means of."""
        if "loss" in logs:
            sums, counts = self._reduced(self._logged)
            self._logged = torch.zeros_like(self._logged)
            for part, total, count in zip(PARTS, sums.tolist(), counts.tolist(), strict=True):
                logs[part] = total / count if count else 0.0
                logs[_COUNTS[part]] = int(count)
        super().log(logs, start_time)

    def _forward(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = self._prepare_inputs(batch)
        if self._loss.llada:
            mask_id = getattr(self.model, "config").mask_token_id  # noqa: B009 - typed as a module
            noisy, masked = mask_answers(inputs, mask_id, f"{self.args.seed}/{self.state.global_step}")
            inputs = {**inputs, "noisy_ids": noisy, "noisy_mask": masked}
        with self.compute_loss_context_manager():
            return model(inputs)

    def _reduced(self, counts: Any) -> Tensor:
        return self.accelerator.reduce(counts, "sum") if self.accelerator.num_processes > 1 else counts


def _sums_and_counts(
    model: LLaDAModelLM, loss: Loss, run: Callable[..., Tensor], batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Sums and counts (4,) of the loss's parts on one micro-batch; the last is LLaDA's, counted in samples."""
    noisy = "noisy_ids" in batch
    input_ids = torch.cat((batch["input_ids"], batch["noisy_ids"])) if noisy else batch["input_ids"]
    mask = batch["attention_mask"].repeat(2, 1) if noisy else batch["attention_mask"]
    hidden = model.model.transformer.ln_f(hidden_forward(model, input_ids, mask, run=run))
    weight, bias = lm_head(model)
    if bias is not None:
        raise ValueError("trajectory_loss: an LM head with a bias is not supported")
    dtype = (
        torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else weight.dtype
    )
    hidden, weight = (hidden * logit_scale(model.config)).to(dtype), weight.to(dtype)
    rows, tokens, roles = len(batch["tokens"]), batch["tokens"], batch["roles"]
    parts = wino_kernels.trajectory_loss(
        hidden[:rows],
        weight,
        tokens,
        roles == TARGET,
        roles == CANDIDATE,
        threshold=loss.threshold,
        threshold_back=loss.threshold_back,
    )
    llada = _llada_sum(hidden[rows:], weight, tokens, batch["noisy_mask"]) if noisy else hidden.new_zeros(1).float()
    samples = torch.tensor([rows if noisy else 0], device=hidden.device)
    return torch.cat((parts.sums, llada)), torch.cat((parts.counts, samples))


def _llada_sum(hidden: Tensor, weight: Tensor, tokens: Tensor, masked: Tensor) -> Tensor:
    """(1,): each row's mean cross entropy over its masked tokens, summed over the rows; its own LM head, in chunks."""
    none = torch.zeros_like(masked[0])
    sums = []
    for row, labels, chosen in zip(hidden, tokens, masked, strict=True):
        part = wino_kernels.trajectory_loss(row, weight, labels, chosen, none, threshold=1.0, threshold_back=0.0)
        sums.append(part.sums[0] / part.counts[0])
    return torch.stack(sums).sum()[None]


def _called(block: nn.Module, x: Tensor, *others: Any) -> Tensor:
    # On the CPU the fused attention's backward pass is several times slower than that of plain matrix products.
    with sdpa_kernel(SDPBackend.MATH) if x.device.type == "cpu" else contextlib.nullcontext():
        return block(x, *others)


def _checkpointed(block: nn.Module, x: Tensor, *others: Any) -> Tensor:
    return checkpoint(_called, block, x, *others, use_reentrant=False)


class _StopAfterStep(TrainerCallback):
    """The first Ctrl-C ends training after the running step, with a checkpoint; a second one at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        try:
            previous = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if dist.is_initialized():  # all processes stop after the same step
            asked = torch.tensor(float(self.asked), device=args.device)
            dist.all_reduce(asked, dist.ReduceOp.MAX)
            self.asked = bool(asked)
        if self.asked:
            control.should_log = control.should_save = control.should_training_stop = True


class _Bar(TrainerCallback):
    """Steps done and the last logged loss, on stderr."""

    def __init__(self, name: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[loss]}"), console=Console(stderr=True))
        self._name = name

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._progress.disable = not state.is_world_process_zero
        self._progress.start()
        self._bar = self._progress.add_task(self._name, total=state.max_steps, completed=state.global_step, loss="")

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._progress.update(self._bar, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
        if logs and "loss" in logs:
            self._progress.update(self._bar, loss=f"loss {logs['loss']:.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._progress.stop()


class _LossTable(TrainerCallback):
    """``loss.csv``: one line a log; lines past the checkpoint that a run resumes from are dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.is_world_process_zero:
            kept = [line for line in self._lines() if int(line["step"]) <= state.global_step]
            text = io.StringIO()
            writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
            write_atomically(self._path, text.getvalue())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            line = {name: _short(logs.get(name, "")) for name in _COLUMNS} | {"step": state.global_step}
            with open(self._path, "a", newline="") as file:
                csv.DictWriter(file, _COLUMNS, lineterminator="\n").writerow(line)

    def _lines(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        with open(self._path, newline="") as file:
            return [
                line for line in csv.DictReader(file) if (line["step"] or "").isdigit() and None not in line.values()
            ]


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else value
