"""What a WINO+ training run does: a YAML file with a base model, a loss, an adapter and stages.

docs/spec.md section 5.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

#: Names of the projections each LoRA preset adapts, always inside ``blocks.*`` and never the LM head.
PRESETS = {
    "published": ("q_proj", "k_proj", "v_proj", "up_proj"),
    "full": ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"),
}


_LARGEST_FILE = 1 << 20
_APath = Annotated[Path, Field(strict=False)]
_MANY = 1 << 31
_Beta = Annotated[float, Field(ge=0, lt=1, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), strict=True, allow_inf_nan=False)


class Adapter(_Strict):
    """LoRA: ``preset`` names the adapted projections, see ``PRESETS``."""

    preset: Literal["published", "full"] = "published"
    rank: int = Field(default=128, gt=0, le=1 << 16)
    alpha: int = Field(default=128, gt=0, le=1 << 16)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Loss(_Strict):
    """Weights and thresholds of ``wino_kernels.trajectory_loss``; ``llada`` weighs LLaDA's own objective beside it.

    Attributes:
        reduction: ``"batch_mean"``: each part is a mean over all its rows in the global batch of an optimiser step.
            ``"sample_mean"``, as the authors' trainers have it with one sample a forward: each part is a mean over a
            sample's rows, and the loss is the mean over the samples.
    """

    reduction: Literal["batch_mean", "sample_mean"] = "batch_mean"
    cross_entropy: float = Field(default=1.0, ge=0)
    unmask: float = Field(default=0.1, ge=0)
    remask: float = Field(default=1.0, ge=0)
    threshold: float = Field(default=0.6, ge=0, le=1)
    threshold_back: float = Field(default=0.9, ge=0, le=1)
    llada: float = Field(default=0.0, ge=0)


class Stage(_Strict):
    """One pass of training; the next stage starts from its result.

    Attributes:
        trajectories: files of records; relative paths are relative to the recipe.
        order: ``"random"`` is the ablation with the order taken away.
        block_length: for records that name none.
        allow_incorrect: train on records whose answer is not correct too; else they are left out.
        max_prompt_length, max_length: records with a longer prompt, or longer with their answer, are left out.
        pad_to_max_length: every sample is filled up to ``max_length`` with end tokens that the model sees, as the
            authors' LLaDA trainer does; else padding is hidden.
        end_at_eos: an answer ends with its first end token, as the authors' IconQA records do.
        first_share: only this share of the samples, the first ones, is trained on; with records sorted by
            ``wino trajectories filter`` those are the easy ones.
        epochs, steps: how long; exactly one of them.
        batch_size: samples of one process in one forward; ``accumulation`` of them make an optimiser step.
        learning_rate_floor: the share of ``learning_rate`` at which the cosine ends.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=100)
    trajectories: list[_APath] = Field(min_length=1)
    order: Literal["wino", "random"] = "wino"
    block_length: int | None = Field(default=None, gt=0, le=_MANY)
    allow_incorrect: bool = False
    max_prompt_length: int | None = Field(default=None, gt=0, le=_MANY)
    max_length: int | None = Field(default=None, gt=0, le=_MANY)
    pad_to_max_length: bool = False
    end_at_eos: bool = False
    first_share: float = Field(default=1.0, gt=0, le=1)
    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0, le=_MANY)
    batch_size: int = Field(default=8, gt=0, le=_MANY)
    accumulation: int = Field(default=1, gt=0, le=_MANY)
    learning_rate: float = Field(default=2e-5, gt=0)
    schedule: Literal["constant", "linear", "cosine", "constant_with_warmup"] = "constant"
    learning_rate_floor: float = Field(default=0.0, ge=0, le=1)
    warmup_steps: int = Field(default=0, ge=0, le=_MANY)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_betas: Annotated[tuple[_Beta, _Beta], Field(strict=False)] = (0.9, 0.999)
    max_grad_norm: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _one_length(self) -> Stage:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("expected exactly one of epochs and steps")
        if self.pad_to_max_length and self.max_length is None:
            raise ValueError("pad_to_max_length needs max_length")
        if self.learning_rate_floor and self.schedule != "cosine":
            raise ValueError(f"learning_rate_floor needs the schedule cosine, got {self.schedule}")
        if self.warmup_steps and self.schedule == "constant":
            raise ValueError("warmup_steps needs another schedule than constant, such as constant_with_warmup")
        return self


class Recipe(_Strict):
    """A whole run.

    Attributes:
        model: the base, as :func:`wino.load` takes it.
        output: folder of checkpoints, logs and results; relative to the working directory.
        adapter: LoRA; null: all parameters are trained.
        dtype: of the frozen base under an adapter; without one parameters are float32.
        bf16: autocast to bfloat16.
        logging_steps, save_steps: optimiser steps between lines of ``loss.csv`` and between checkpoints.
        report_to: integrations of the Hugging Face trainer, e.g. ``[tensorboard]``.
    """

    model: str
    output: _APath
    adapter: Adapter | None = Adapter()
    loss: Loss = Loss()
    stages: list[Stage] = Field(min_length=1)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    bf16: bool = True
    seed: int = Field(default=0, ge=0, le=_MANY)
    gradient_checkpointing: bool = False
    logging_steps: int = Field(default=10, gt=0, le=_MANY)
    save_steps: int = Field(default=100, gt=0, le=_MANY)
    report_to: list[str] = []

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.save_steps % self.logging_steps:
            raise ValueError(f"save_steps: expected a multiple of logging_steps ({self.logging_steps})")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages: expected distinct names, got {names}")
        return self


def packaged() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def read_recipe(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read and check a recipe: a path, or the name of one that comes with the package.

    Args:
        overrides: top-level fields to replace, e.g. ``{"model": "./LLaDA-8B-Instruct"}``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or a field is unknown, missing or has a wrong value (all of them named).
    """
    file = Path(path)
    text = (_folder() / f"{path}.yaml").read_text() if str(path) in packaged() and not file.exists() else None
    base = Path() if text is not None else file.parent
    fields = _parse(_read(file) if text is None else text, str(path))
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a mapping with the fields of a recipe, got {type(fields).__name__}")
    try:
        recipe = Recipe.model_validate({**fields, **(overrides or {})})
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {_message(e)}" for e in error.errors())
        raise ValueError(f"{path}: " + "; ".join(problems)) from None
    stages = [s.model_copy(update={"trajectories": [base / p for p in s.trajectories]}) for s in recipe.stages]
    return recipe.model_copy(update={"stages": stages})


class _Plain(yaml.SafeLoader):
    """YAML without what makes a short text a large value, or one of two values: aliases, and keys that come twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: aliases (*name) are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        value = super().construct_mapping(node, deep)
        if len(value) < len(node.value):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a key comes twice in one mapping")
        return value


def _read(file: Path) -> str:
    with open(file, "rb") as opened:
        content = opened.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"{file}: expected at most {_LARGEST_FILE} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}: line {line} has the byte 0x{content[error.start]:02x}, which is not UTF-8") from None


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Plain)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: not YAML: {' '.join(str(error).split()):.300}") from None
    except RecursionError:
        raise ValueError(f"{name}: not YAML: nested too deeply") from None


def _message(error: Any) -> str:
    return error["msg"] if error["type"] == "missing" else f"{error['msg']}, got {str(error['input'])[:80]!r}"


def _folder() -> Any:
    return resources.files("wino.plus") / "recipes"
