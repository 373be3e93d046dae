"""``wino doctor``: what this machine has, for a person and for a bug report."""

from __future__ import annotations

import runpy
from importlib import metadata, resources

_PACKAGES = ("transformers", "tokenizers", "safetensors")


def run_doctor() -> None:
    """Print the kernels' own report, then what the decoders add to it."""
    runpy.run_module("wino_kernels.env_report", run_name="__main__")
    for name in _PACKAGES:
        print(f"{name:<13}{metadata.version(name)}")
    print(f"{'model':<13}{_bundled_model()}")


def _bundled_model() -> str:
    from ..models.loading import BUNDLED
    from ..tasks.presets import PRESETS_FILE

    folder = resources.files("wino") / "assets" / BUNDLED
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return f"{BUNDLED} has no weights here ({weights}); train it with: make tiny"
    thresholds = "with" if (folder / PRESETS_FILE).is_file() else "without"
    return f"{BUNDLED}, {len(weights.read_bytes()) / 1e6:.1f} MB, {thresholds} chosen thresholds ({folder})"
