"""What was measured on the GPUs of this machine: the table that ``python -m wino_kernels.triton.tune`` writes.

A list of rows, each of one operator on one chip: the launch configuration of a shape class (``config``), or the
backend that was the fastest (``backend``).
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import torch


def path() -> Path:
    """Where the table lies: ``WINO_TUNED``, else in the user's cache folder."""
    if chosen := os.environ.get("WINO_TUNED"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wino_kernels" / "tuned.json"


@functools.cache
def rows() -> tuple[dict[str, Any], ...]:
    """The table's rows; none if the tuner was never run.

    Raises:
        ValueError: the file is not such a table; the message names the file and what is wrong.
    """
    if not path().exists():
        return ()
    try:
        found = json.loads(path().read_text(encoding="utf-8"))
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise ValueError("expected a list of objects")
        for row in found:
            if ("config" in row) == ("backend" in row):
                raise ValueError(f"expected either config or backend in {row}")
            row["operator"], row["chip"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path()}: not a table of measurements ({type(error).__name__}: {error})") from error
    return tuple(found)


def chip_of(device: torch.device) -> str:
    """The chip behind a CUDA (or ROCm) device, such as ``"sm_90"`` or ``"gfx942"``."""
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def fastest_backend(operator: str) -> str | None:
    """The backend that was measured as the fastest for ``operator`` on the current GPU, None if none was."""
    measured = {row["chip"]: row["backend"] for row in rows() if "backend" in row and row["operator"] == operator}
    if not measured or not torch.cuda.is_available():
        return None
    return measured.get(chip_of(torch.device("cuda", torch.cuda.current_device())))
