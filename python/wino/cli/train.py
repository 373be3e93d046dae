"""``wino train`` and ``wino merge``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from .errors import BadInputError
from .session import require


def run_train(config: str, model: str | None, output: Path | None) -> None:
    """Run or resume a recipe."""
    quiet_training()
    from ..plus.recipe import packaged, read_recipe
    from ..plus.train import train

    if not Path(config).exists() and config not in packaged():
        raise BadInputError(
            f"--config: no file {config}, and not one of the package's recipes: {', '.join(packaged())}"
        )
    overrides: dict[str, Any] = {"model": model, "output": output}
    recipe = read_recipe(config, {name: value for name, value in overrides.items() if value is not None})
    print(f"trained: {train(recipe)}")


def run_merge(base: str, adapter: Path, out: Path) -> None:
    quiet_training()
    from ..plus.identity import is_trained_here
    from ..plus.merge import merge

    merged = merge(base, adapter, out)
    if not is_trained_here(adapter):
        print(f"{adapter} does not say which model it was trained on; that it fits {base} was checked", file=sys.stderr)
    print(f"merged: {merged}")


def quiet_training() -> None:
    """Ask for the libraries of training, and keep theirs quiet."""
    require("plus", "accelerate", "peft", "pydantic", "yaml")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
