"""The packaged recipes against the released ones, and against the table that compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wino.plus.recipe import packaged, read_recipe

TABLE = Path(__file__).parents[2] / "docs" / "wino_plus_recipes.md"

#: Literals of the released YAML files.
RELEASED: dict[str, dict[str, Any]] = {
    "llada-8b": {
        "adapter.rank": 128,
        "adapter.alpha": 128,
        "adapter.dropout": 0.0,
        "loss.cross_entropy": 1.0,
        "loss.unmask": 0.1,
        "loss.remask": 1.0,
        "loss.threshold": 0.6,
        "loss.threshold_back": 0.9,
        "block_length": 128,
        "max_prompt_length": 192,
        "max_length": 448,
        "first_share": 0.6,
        "epochs": 6,
        "batch_size": 1,
        "accumulation": 8,
        "learning_rate": 2e-5,
        "schedule": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 1,
        "bf16": True,
        "dtype": "bfloat16",
    },
    "mmada-8b": {
        "adapter.rank": 128,
        "adapter.alpha": 128,
        "adapter.dropout": 0.05,
        "loss.cross_entropy": 1.0,
        "loss.unmask": 0.1,
        "loss.remask": 1.0,
        "loss.threshold": 0.6,
        "loss.threshold_back": 0.9,
        "block_length": 128,
        "max_length": 2048,
        "steps": 1500,
        "batch_size": 1,
        "accumulation": 16,
        "learning_rate": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 500,
        "learning_rate_floor": 0.1,
        "weight_decay": 0.05,
        "adam_betas": (0.9, 0.999),
        "max_grad_norm": 1.0,
        "seed": 10086,
        "logging_steps": 10,
        "save_steps": 500,
        "gradient_checkpointing": False,
        "bf16": True,
    },
}


def values(name: str, field: str) -> list[Any]:
    """A field of the recipe, or of each of its stages."""
    recipe = read_recipe(name)
    part, _, rest = field.rpartition(".")
    if part:
        return [getattr(getattr(recipe, part), rest)]
    return [getattr(recipe, field)] if hasattr(recipe, field) else [getattr(stage, field) for stage in recipe.stages]


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_values(name: str) -> None:
    assert read_recipe(name).loss.reduction == "sample_mean"
    for field, expected in RELEASED[name].items():
        assert set(values(name, field)) == {expected}, field


def test_stages() -> None:
    assert packaged() == ["llada-8b", "llada-8b-batch-mean", "mmada-8b", "mmada-8b-batch-mean"]
    for name in packaged():
        recipe = read_recipe(name)
        names = ["gsm8k", "countdown"] if name.startswith("llada") else ["iconqa"]
        assert [stage.name for stage in recipe.stages] == names
        assert [path.name for stage in recipe.stages for path in stage.trajectories] == [f"{n}.jsonl" for n in names]
        assert recipe.adapter is not None and recipe.adapter.preset == "published"
    assert len({read_recipe(name).output for name in packaged()}) == 4


def shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if value == 6 else str(value)


def test_the_table_says_what_the_files_say() -> None:
    first, _, _ = TABLE.read_text().partition("\n\nWhere a cell")
    lines = [line for line in first.splitlines() if line.startswith("| ")]
    header, *rows = ([cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines)
    columns = {name: header.index(name) for name in packaged()}
    fields = [row[0] for row in rows]
    assert len(fields) == len(set(fields))
    recipe = read_recipe("llada-8b")
    assert recipe.adapter is not None
    own = {f"adapter.{n}" for n in type(recipe.adapter).model_fields} | {
        f"loss.{n}" for n in type(recipe.loss).model_fields
    }
    own |= {*type(recipe).model_fields, *type(recipe.stages[0]).model_fields}
    named_elsewhere = {"adapter.preset", "loss.llada", "adapter", "loss", "stages", "model", "output", "report_to"}
    named_elsewhere |= {"name", "trajectories", "order"}
    assert set(fields) == own - named_elsewhere
    for row in rows:
        for name, column in columns.items():
            assert {shown(value) for value in values(name, row[0])} == {row[column]}, (row[0], name)
    for released, name in (("released, LLaDA", "llada-8b"), ("released, MMaDA", "mmada-8b")):
        for row in rows:
            theirs, ours = row[header.index(released)], row[columns[name]]
            assert theirs.partition(" (")[0] == ours or row[0] == "save_steps", (row[0], name)
