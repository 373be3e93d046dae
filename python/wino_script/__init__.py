"""What the script ``wino`` runs: importable without the extra 'decode', where ``import wino`` raises."""

from __future__ import annotations

import sys
from importlib.util import find_spec

_NEEDED = ("transformers", "tokenizers", "safetensors", "numpy", "jinja2", "typer", "rich")


def main() -> None:
    """Entry point of the ``wino`` script: :func:`wino.cli.main`, or one line and exit code 2 without the extra."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"wino: needs the extra 'decode' ({', '.join(missing)} missing): pip install 'wino-kernels[decode]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from wino.cli import main as run

    run()
