"""``wino train`` and ``wino merge``."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

from .errors import BadInputError


def run_train(config: str, model: str | None, output: Path | None) -> None:
    """Run or resume a recipe."""
    with_plus()
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
    with_plus()
    from ..plus.merge import merge

    print(f"merged: {merge(base, adapter, out)}")


def with_plus() -> None:
    """Say what to install if the libraries for training are missing; keep theirs quiet."""
    try:
        for name in ("accelerate", "peft", "pydantic", "yaml"):
            importlib.import_module(name)
    except ImportError as error:
        raise BadInputError(f"{error.name} is not installed: pip install 'wino-kernels[plus]'") from None
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
