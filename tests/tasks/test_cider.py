"""CIDEr: the formula of the paper's variant D on a small corpus, and what the wrapper refuses."""

from __future__ import annotations

import math
import sys
from collections import Counter

import pytest

from wino.tasks.cider import cider

REFERENCES = [
    ["a red circle at the top", "there is a red circle at the top"],
    ["a blue square in the center and a red cross", "one blue square and one red cross"],
    ["two green rings at the left"],
]
TEXTS = ["A red circle, at the top!", "a blue circle in the center", "nothing here"]


def by_the_formula(texts: list[str], references: list[list[str]]) -> list[float]:
    """arXiv 1411.5726, equations 1 to 3, CIDEr-D: clipped counts, a Gaussian of the lengths' difference, times 10."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.lower().replace(",", " ").replace("!", " ").split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = []
    for text, own in zip(texts, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            seen_in = Counter(g for of_one in references for g in {g for r in of_one for g in grams(r, n)})
            rarity = {g: math.log(len(references)) - math.log(number) for g, number in seen_in.items()}

            for reference in own:
                ours, theirs = (
                    {g: c * rarity.get(g, math.log(len(references))) for g, c in grams(side, n).items()}
                    for side in (text, reference)
                )
                norms = [math.sqrt(sum(v * v for v in side.values())) for side in (ours, theirs)]
                dot = sum(min(value, theirs.get(g, 0.0)) * theirs.get(g, 0.0) for g, value in ours.items())
                gap = sum(grams(text, 2).values()) - sum(grams(reference, 2).values())
                if all(norms):
                    total += dot / math.prod(norms) * math.exp(-gap * gap / 72) / len(own)
        scores.append(10 * total / 4)
    return scores


def test_the_formula() -> None:
    score, each = cider(TEXTS, REFERENCES)
    assert each == pytest.approx(by_the_formula(TEXTS, REFERENCES), rel=1e-9)
    assert score == pytest.approx(sum(each) / 3) and each[0] > 5 > each[1] > 0 == each[2]


def test_a_caption_equal_to_its_only_reference() -> None:
    texts = ["a red circle at the top", "two blue rings on a table", "green"]
    _, each = cider(texts, [[text] for text in texts])
    assert each[:2] == pytest.approx([10, 10]) and each[2] == pytest.approx(2.5)  # no 2-, 3- and 4-grams
    assert cider([""], [["a"]])[0] == 0


def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for references in ([], [["a"], []], [["a"]] * 3):
        with pytest.raises(ValueError, match="references: expected one or more for every text"):
            cider(["a", "b"], references)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(ImportError, match=r"pip install 'wino-kernels\[multimodal\]'"):
        cider(["a"], [["a"]])
