"""``python -m wino`` is ``wino``."""

from __future__ import annotations

from wino.cli import main

if __name__ == "__main__":
    main()
