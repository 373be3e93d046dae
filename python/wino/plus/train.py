"""Train a model to follow the order WINO found, stage by stage.

A stage's folder holds ``recipe.json``, checkpoints, ``loss.csv`` and, once it is finished, ``final``: an adapter, or a
whole model where the recipe has none. Launched under ``accelerate launch`` or ``torchrun`` the global batch is spread
over the processes; the loss is the same function of the global batch, whatever its micro-batches and processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..files import locked, write_atomically
from ..foreign import read_json
from ..models.llada import LLaDAModelLM
from ..models.loading import checkpoint_folder, load
from .adapters import check_adapter
from .callbacks import LossTable, ProgressLine, StopAfterStep
from .identity import Identity, check_records, identify, read_identity, write_identity
from .outcome import complete
from .recipe import PRESETS, Adapter, Recipe, Stage
from .records import read_trajectories
from .trainer import TrajectoryTrainer
from .unfold import Limits, TrajectorySamples, collate, within


def train(recipe: Recipe, *, show_progress: bool = True) -> Path:
    """Run or resume every stage of ``recipe`` and return the folder of the last stage's result.

    Raises:
        ValueError: trajectories of another model or tokenizer, a stage's folder holds another recipe's run, or another
            process trains into ``recipe.output`` (:func:`wino.files.locked`).
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written; the same call goes on from there.
    """
    previous: Path | None = None
    with _own_output(recipe.output):
        for number, stage in enumerate(recipe.stages):
            final = recipe.output / stage.name / "final"
            _claim(recipe, number)
            if not final.is_dir():
                _train_stage(recipe, stage, previous, show_progress)
            previous = final
    assert previous is not None
    return previous


def _own_output(folder: Path) -> AbstractContextManager[None]:
    """Hold the folder for this run; of its processes the first does."""
    if int(os.environ.get("RANK", "0")) != 0:
        return nullcontext()
    folder.mkdir(parents=True, exist_ok=True)
    return locked(folder)


def _claim(recipe: Recipe, number: int) -> None:
    """Write down, or check, what the stage's folder is the result of: everything up to and including this stage."""
    folder = recipe.output / recipe.stages[number].name
    described = recipe.model_copy(update={"stages": recipe.stages[: number + 1]}).model_dump(mode="json")
    for field in ("output", "logging_steps", "save_steps", "report_to", "gradient_checkpointing"):
        del described[field]
    files = (path for stage in recipe.stages[: number + 1] for path in stage.trajectories)
    described["trajectories_sha256"] = [_digest(path) for path in files]
    path = folder / "recipe.json"
    if path.exists():
        if read_json(path) != described:
            raise ValueError(
                f"{folder} holds the run of another recipe or of other trajectories; remove it or choose another output"
            )
    elif int(os.environ.get("RANK", "0")) == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(described, indent=2) + "\n")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _train_stage(recipe: Recipe, stage: Stage, previous: Path | None, show_progress: bool) -> None:
    folder = recipe.output / stage.name
    model, tokenizer, identity = _open_model(recipe, previous)
    files = (check_records(read_trajectories(path), identity, path) for path in stage.trajectories)
    end_id = tokenizer.eos_token_id
    limits = Limits(stage.allow_incorrect, stage.max_prompt_length, stage.max_length)
    left_out: Counter[str] = Counter()
    kept = list(within(chain.from_iterable(files), limits, left_out, end_id if stage.end_at_eos else None))
    if left_out and int(os.environ.get("RANK", "0")) == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        print(f"{stage.name}: {len(kept)} records to train on; left out: {reasons}", file=sys.stderr)
    samples = TrajectorySamples(
        kept,
        model.config.mask_token_id,
        block_length=stage.block_length,
        order=stage.order,
        seed=recipe.seed,
        first_share=stage.first_share,
    )
    arguments = _arguments(recipe, stage, folder)
    torch.manual_seed(recipe.seed)  # an adapter's first values
    pad_id = end_id if stage.pad_to_max_length or tokenizer.pad_token_id is None else tokenizer.pad_token_id
    visible_length = stage.max_length if stage.pad_to_max_length else None
    interrupt = StopAfterStep()
    resumed = _last_complete_checkpoint(folder)
    trainer = TrajectoryTrainer(
        model=adapted_model(model, recipe.adapter, previous),
        args=arguments,
        train_dataset=samples,
        data_collator=partial(collate, pad_id=pad_id, visible_length=visible_length),
        callbacks=[interrupt, LossTable(folder / "loss.csv")],
        loss=recipe.loss,
        checkpointing=recipe.gradient_checkpointing,
    )
    for silent in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(silent)
    if show_progress:
        trainer.add_callback(ProgressLine(stage.name))
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


def adapted_model(model: LLaDAModelLM, adapter: Adapter | None, previous: Path | None) -> nn.Module:
    if adapter is None:
        return model
    if previous is not None:
        check_adapter(previous)
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
        lr_scheduler_type="cosine_with_min_lr" if stage.learning_rate_floor else stage.schedule,
        lr_scheduler_kwargs={"min_lr_rate": stage.learning_rate_floor} if stage.learning_rate_floor else None,
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
            read_json(Path(found) / "trainer_state.json")
            return Path(found)
        except (OSError, ValueError):
            shutil.rmtree(found, ignore_errors=True)  # another process may be doing the same
            if Path(found).exists():
                raise ValueError(f"{found} was not written to its end and cannot be removed") from None
    return None


def _save_final(trainer: Trainer, folder: Path, identity: Identity, recipe: Recipe) -> None:
    """``final`` appears whole or not at all; every process takes part in gathering a sharded model."""
    partial_folder = folder / "final.partial"
    if trainer.is_world_process_zero():  # what a process left that was killed here
        shutil.rmtree(partial_folder, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial_folder))
    if trainer.is_world_process_zero():
        (partial_folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to open
        if recipe.adapter is None:
            done = f"The weights are those of `{recipe.model}`, trained further by `wino train`."
            complete(partial_folder, checkpoint_folder(recipe.model), recipe.model, done)
        write_identity(identity, partial_folder)
        partial_folder.rename(folder / "final")
    trainer.accelerator.wait_for_everyone()
