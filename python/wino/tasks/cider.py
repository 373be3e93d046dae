"""CIDEr of captions against references (Vedantam et al., arXiv 1411.5726), by the field's own implementation."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What the COCO evaluation's PTB tokenizer removes. That needs Java, and splits words such as "don't" besides.
_PUNCTUATION = re.compile(r"[^\w\s']|_")


def cider(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Corpus CIDEr-D and each text's, on COCO's scale (10 is what a text equal to its only reference gets, about).

    Inverse document frequencies are those of the references given, so a corpus of one picture scores 0.

    Args:
        texts: one caption a picture. Lower-cased, punctuation removed.
        references: for each, one or more.

    Raises:
        ImportError: the extra ``multimodal`` is missing.
        ValueError: another number of lists than of texts, or an empty one.
    """
    if len(texts) != len(references) or not all(references):
        raise ValueError("references: expected one or more for every text")
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ImportError("CIDEr needs pycocoevalcap: pip install 'wino-kernels[multimodal]'") from error
    wanted = {i: [_words(text) for text in of_one] for i, of_one in enumerate(references)}
    score, each = Cider().compute_score(wanted, {i: [_words(text)] for i, text in enumerate(texts)})
    return float(score), [float(value) for value in each]


def _words(text: str) -> str:
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split())
