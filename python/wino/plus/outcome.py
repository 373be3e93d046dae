"""What a trained or merged model's folder holds beside its weights: no less than the base's did."""

from __future__ import annotations

from pathlib import Path

from ..models.companions import add_to_card, copy_companions
from ..tasks.presets import PRESETS_FILE, load_presets, plus_presets, write_presets


def complete(folder: Path, source: Path, base: str, done: str) -> None:
    """Put into ``folder`` what lies beside the weights of the checkpoint ``source``, the folder of ``base``.

    ``presets.json`` has the base's settings, or those published for WINO+ models where the base has none, and says
    which. The model card ends with ``done``, a sentence about the weights.

    Raises:
        ValueError: the base's ``presets.json`` is not valid.
    """
    presets = load_presets(source)
    copy_companions(source, folder)
    if (source / PRESETS_FILE).is_file():
        write_presets(folder, presets, f"{base}, for which they were chosen; nothing was tuned after training")
    else:
        write_presets(folder, plus_presets(), "published with WINO+, for its LLaDA-8B and MMaDA-8B; not tuned here")
    add_to_card(folder, "WINO+", f"{done} All other files are the base's, the text above included.")
