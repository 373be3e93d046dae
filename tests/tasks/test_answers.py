r"""Tables of (gold, answer, verdict) for numbers, expressions, grids and letters, both verdicts."""

from __future__ import annotations

import time
from typing import Any

import pytest

from wino.tasks import answers, get_task

#: Gold number -> answers that are right, answers that are wrong.
NUMBERS: dict[str, tuple[list[str], list[str]]] = {
    "18": (
        [
            "\\boxed{18}",
            "\\boxed{18 dollars}",
            "\\boxed{\\$18.00}",
            "\\boxed{$18$}",
            "\\boxed{\\text{18 eggs}}",
            "\\boxed{\\frac{36}{2}}",
            "\\boxed{\\dfrac{36}{2} \\text{ cm}}",
            "\\boxed{36/2}",
            "\\boxed{9 + 9}",
            "\\boxed{9 \\times 2 = 18}",
            "\\boxed{x = 18}",
            "\\boxed{18.}",
            "\\boxed{\\mathbf{18}}",
            "\\fbox{18}",
            "\\boxed {18}",
            "\\boxed{9} and then \\boxed{18}",
            "\\boxed{18\\%}",
            "\\boxed{18 \\text{ km/h}}",
            "\\boxed{18 \\text{ (18 in all)}}",
            "#### 18",
            "####\n18",
            "####\n\n  18 dollars",
            "#### $18",
            "#### 18 (9 eggs at 2 dollars)",
            "9 * 2 = $<<9*2=18>>18 a day.\n#### 18",
            "The answer is 18.",
            "She makes $18.00 a day.",
            "so 16 - 3 = 13, and 13 + 5 = 18",
            "A: 18",
            "\\boxed{1.8 \\times 10^1}",
            "\\boxed{1.8e1}",
            "\\boxed{+18}",
            "\\boxed{\\(18\\)}",
            "\\boxed{18 €}",
            "**18**",
        ],
        [
            "",
            "\\boxed{}",
            "\\boxed{-18}",
            "\\boxed{\u221218}",
            "\\boxed{1 or 18}",
            "\\boxed{9, 18}",
            "\\boxed{(9, 18)}",
            "\\boxed{\\frac{18}{2}}",
            "\\boxed{18.5}",
            "\\boxed{1{,}800}",
            "\\boxed{18,5}",
            "\\boxed{18} but no, \\boxed{19}",
            "\\boxed{x} 18",
            "18 is not it\n#### 19",
            "#### none",
            "eighteen",
            "18 + 1 = 19",
            "\\boxed{18^2}",
            "\\boxed{180\\%}",
        ],
    ),
    "1,500": (
        [
            "\\boxed{1{,}500}",
            "\\boxed{1,500}",
            "\\boxed{1\\,500}",
            "\\boxed{1\\,500 \\text{ m}}",
            "\\boxed{1,\\!500}",
            "\\boxed{1 500}",
            "\\boxed{1500.00}",
            "\\boxed{1.5 \\times 10^{3}}",
            "\\boxed{1.5 \u00d7 10^3}",
            "#### 1,500",
            "It costs $1,500.",
            "1500 litres.",
        ],
        [
            "\\boxed{500}",
            "\\boxed{1.500,00}",
            "It costs 1.500,00",
            "\\boxed{1.5}",
            "\\boxed{15{,}00}",
            "\\boxed{1, 500}",
        ],
    ),
    "10000": (
        ["\\boxed{10\\,000}", "\\boxed{10,000}", "\\boxed{10^{4}}"],
        ["\\boxed{0}", "\\boxed{10}", "\\boxed{1\\,000}"],
    ),
    "64": (
        [
            "\\boxed{64\\text{ cm}^2}",
            "\\boxed{64 cm^2}",
            "\\boxed{64\\text{ m}^{2}}",
            "\\boxed{64 \\mbox{ in}^3}",
            "64 cm\u00b2",
        ],
        ["\\boxed{2\\text{ cm}^2}", "\\boxed{46 \\text{ cm}^2}", "\\boxed{6.4}"],
    ),
    "-7": (
        [
            "\\boxed{-7}",
            "\\boxed{\u22127}",
            "\\boxed{- 7}",
            "\\boxed{-\\frac{14}{2}}",
            "#### -7",
            "it is -$7",
            "= \u22127",
        ],
        ["\\boxed{7}", "\\boxed{5-7}", "10-7", "\\boxed{--}"],
    ),
    "2.5": (
        [
            "\\boxed{2\\frac{1}{2}}",
            "\\boxed{2 1/2}",
            "\\boxed{\\frac52}",
            "\\boxed{2.50}",
            "\\boxed{5/2}",
            "it is 2 1/2",
        ],
        ["\\boxed{1}", "\\boxed{25}", "\\boxed{\\frac25}", "\\boxed{2}"],
    ),
}

COUNTDOWN: dict[tuple[tuple[int, ...], int], tuple[list[str], list[str]]] = {
    ((3, 5, 8), 64): (
        [
            "8*(3+5)",
            "8(3+5)",
            "(3+5)8",
            "(3+5)(8)",
            "8 \\times (3+5)",
            "8 \\cdot \\left(3+5\\right)",
            "8 \u22c5 (3 + 5)",
            "8 \u00d7 (5 + 3)",
            "$8(3+5)$",
            "\\(8(3+5)\\)",
            "8\\,(3+5)",
            "8 \\; \\times\\;(3+5)",
            "64 = 8(3+5)",
            "8(3+5) = 64",
            "8 \\times 8 = 8(3+5) = 64",
            "8*[3+5]",
            "8 \\times {(3+5)}",
            "8 \\ast (3 + 5).",
            "8 \u2217 (3+5)",
            "\\displaystyle 8(3+5)",
            "8*(+3+5)",
        ],
        [
            "",
            "64",
            "64 = 64",
            "8*3+5",
            "8(3+5)+0",
            "8(3+3)",
            "8*8",
            "83+5",
            "8(3+5",
            "8**(3+5)",
            "8//(3+5)",
            "(3+5)^2",
            "8(3+5) = 65",
            "63 = 8(3+5)",
            "8(3+5) or 8*8",
            "eight times (3+5)",
            "8*(3+5)*1",
            "f(8)(3+5)",
            "8.0*(3+5)",
            "[8*(3+5)][0]",
            "__import__('os')",
            "8*(3+5) if 1 else 0",
            "9" * 300,
            "(" * 150 + "8*(3+5)" + ")" * 150,
            "\\frac{" * 60,
        ],
    ),
    ((2, 6, 12), 4): (
        [
            "\\frac{12}{6}*2",
            "\\dfrac{12}{6} \\times 2",
            "\\frac{12 \\cdot 2}{6}",
            "12 \\div 6 \\times 2",
            "12 \u00f7 6 \u00d7 2",
            "12/6*2",
            "2\\left(\\frac{12}{6}\\right)",
            "\\frac{2}{\\frac{6}{12}}",
            "{12 \\over 6} * 2",
            "4 = \\frac{12}{6} \\cdot 2",
            "12 \u2212 6 \u2212 2",
            "12 - 2 - 6 = 4",
        ],
        [
            "\\frac{6}{12}*2",
            "\\frac{12}{6}",
            "\\frac{12}{0}*2*6",
            "12/6/2",
            "12/6*2 = 4 = 5",
            "\\frac12*2*6",
            "\\sqrt{12}*2*6",
        ],
    ),
}

PUZZLE, SOLUTION, OTHER = "0431134030240000", "2431134231244213", "2431134231244231"
ROWS = ["2431", "1342", "3124", "4213"]
SUDOKU: tuple[list[str], list[str]] = (
    [
        "<answer>2431134231244213</answer>",
        "<answer>\n2431134231244213\n</answer>",
        "<answer>2431 1342 3124 4213</answer>",
        "<answer>2431\n1342\n3124\n4213</answer>",
        "<answer>2 4 3 1\n1 3 4 2\n3 1 2 4\n4 2 1 3</answer>",
        "<answer>2,4,3,1,1,3,4,2,3,1,2,4,4,2,1,3</answer>",
        "<answer>[[2,4,3,1],[1,3,4,2],[3,1,2,4],[4,2,1,3]]</answer>",
        "[[2, 4, 3, 1],\n [1, 3, 4, 2],\n [3, 1, 2, 4],\n [4, 2, 1, 3]]",
        "<answer>| 2 | 4 | 3 | 1 |\n| 1 | 3 | 4 | 2 |\n| 3 | 1 | 2 | 4 |\n| 4 | 2 | 1 | 3 |</answer>",
        "2 4 | 3 1\n1 3 | 4 2\n----+----\n3 1 | 2 4\n4 2 | 1 3",
        "|2|4|3|1|\n|---|---|---|---|\n|1|3|4|2|\n|3|1|2|4|\n|4|2|1|3|",
        "<answer>```\n2431134231244213\n```</answer>",
        "<answer>'2431134231244213'</answer>",
        "<answer>**2431134231244213**</answer>",
        "<answer>\\boxed{2431134231244213}</answer>",
        "\\boxed{2431134231244213}",
        "it is 2431134231244213",
        "it is 2431134231244213.",
        f"Puzzle: {PUZZLE}\nSolution: {SOLUTION}",
        f"{PUZZLE}\n{SOLUTION}",
        f"<answer>{OTHER}</answer> no, <answer>{SOLUTION}</answer>",
        "Row 1: 2 4 3 1\nRow 2: 1 3 4 2\nRow 3: 3 1 2 4\nRow 4: 4 2 1 3",
        "<answer>Row 1: 2431 Row 2: 1342 Row 3: 3124 Row 4: 4213</answer>",
        "\\begin{array}{cccc} 2 & 4 & 3 & 1 \\\\ 1 & 3 & 4 & 2 \\\\ 3 & 1 & 2 & 4 \\\\ 4 & 2 & 1 & 3 \\end{array}",
        "\\begin{bmatrix} 2&4&3&1\\\\1&3&4&2\\\\ \\hline 3&1&2&4\\\\4&2&1&3 \\end{bmatrix}",
        "(2,4,3,1),(1,3,4,2),(3,1,2,4),(4,2,1,3)",
        "{2,4,3,1},{1,3,4,2},{3,1,2,4},{4,2,1,3}",
        "2;4;3;1;1;3;4;2;3;1;2;4;4;2;1;3",
        "2-4-3-1 1-3-4-2 3-1-2-4 4-2-1-3",
        "<answer>2431134231244213",
        "<answer>\r\n2431\r\n1342\r\n3124\r\n4213\r\n</answer>",
    ],
    [
        "",
        "<answer></answer>",
        f"<answer>{OTHER}</answer>",
        "<answer>1431134231244213</answer>",
        "<answer>2431134231244214</answer>",
        "<answer>243113423124421</answer>",
        "<answer>24311342312442130</answer>",
        f"<answer>{PUZZLE}</answer>",
        f"{SOLUTION} is wrong, <answer>{OTHER}</answer>",
        f"{SOLUTION}\n{OTHER}",
        "[[2,4,3,1],[1,3,4,2],[3,1,2,4]]",
        "[[2,4,3,1],[1,3,4,2],[3,1,2,4],[4,2,1,3],[1,1,1,1]]",
        "[[4,2,1,3],[2,4,3,1],[1,3,4,2],[3,1,2,4]]",
        "2431 then 1342 then 3124 then 4213",
        "2431.1342.3124.4213",
        "4213 3124 1342 2431",
        "1" * 16,
        "0" * 16,
        "2" * 40,
        "\u0662\u0664\u0663\u0661" * 4,
        "the grid has 16 cells",
        "2431134231244213" * 2,
        "2431 1342 3124 42 13 1",
        "| 2 | 4 | 3 | 1 |",
        "1234 1234 1234 1234",
        "1234341221434321",
        "2431x1342x3124x4213",
        "243113423124421x",
        "3412 1243 4321 2134",
        "<answer>none</answer>",
    ],
)

VITAMINS = (("A", "B", "C", "D"), ("Vitamin A", "Vitamin B", "Vitamin D", "Vitamin C"))
MOONS = (("1", "2", "3", "4"), ("4 moons", "2 moons", "no moon", "1 moon"))
ANIMALS = (("A", "B", "C"), ("fox", "a rabbit", "an owl"))
#: Labels and options -> gold label -> answers that are right, answers that are wrong.
LETTERS: list[tuple[tuple[tuple[str, ...], tuple[str, ...]], str, list[str], list[str]]] = [
    (
        VITAMINS,
        "C",
        [
            "\\boxed{C}",
            "\\boxed{c}",
            "\\boxed{(C)}",
            "\\boxed{C.}",
            "\\boxed{C. Vitamin D}",
            "\\boxed{C) Vitamin D}",
            "\\boxed{C: Vitamin D}",
            "\\boxed{(C) Vitamin D}",
            "\\boxed{C Vitamin D}",
            "\\boxed{\\text{(C)}}",
            "\\boxed{\\text{C. Vitamin D}}",
            "\\boxed{\\mathbf{C}}",
            "\\boxed{Vitamin D}",
            "\\boxed{vitamin d}",
            "\\boxed{Option C}",
            "\\boxed{Answer: C}",
            "\\boxed{The answer is C}",
            "\\boxed{Vitamin D (C)}",
            "\\boxed{C, because D is wrong}",
            "\\boxed{D} no, \\boxed{C}",
            "<answer>C</answer>",
            "<answer>(c)</answer>",
            "<answer>\\boxed{C}</answer>",
            "<answer>C. Vitamin D</answer>",
            "Answer: C",
            "Answer: (C)",
            "Answer:\nC",
            "**Answer:** C",
            "answer: c.",
            "The answer is C.",
            "The answer is: C",
            "The answer is **C**.",
            "The answer is (C) because D is wrong",
            "The answer is C because D is wrong",
            "The answer is therefore C.",
            "The correct option is C.",
            "The correct answer is option C",
            "The correct answer is Vitamin D.",
            "The answer is A. Wait, the answer is C.",
            "C",
            "C.",
            "(C)",
            "C. Vitamin D",
            "C) Vitamin D, as skin makes it",
            "Vitamin D",
            "Skin makes it in the sun.\nC. Vitamin D",
            "I would choose C here",
            "The answer is $\\text{C}$",
            "So \\(\\boxed{\\text{C}}\\).",
        ],
        [
            "",
            "\\boxed{}",
            "\\boxed{D}",
            "\\boxed{D. Vitamin C}",
            "\\boxed{Vitamin C}",
            "\\boxed{C or D}",
            "\\boxed{C and D}",
            "\\boxed{C, D}",
            "\\boxed{C/D}",
            "\\boxed{A, B, C}",
            "\\boxed{CD}",
            "\\boxed{E}",
            "\\boxed{Vitamin}",
            "\\boxed{cat}",
            "\\boxed{C} but \\boxed{D}",
            "<answer>C or D</answer>",
            "<answer>D</answer> C",
            "The answer is C or D.",
            "The answer is D because C is wrong",
            "The answer is not C",
            "The answer is vitamin C.",
            "It is vitamin C, clearly",
            "It could be C or D",
            "A. no\nC. yes\nD. no",
            "C\u00e9sium",
            "D",
            "Because C, and because D",
            "not sure",
        ],
    ),
    (
        MOONS,
        "1",
        [
            "\\boxed{1. 4 moons}",
            "\\boxed{1}",
            "\\boxed{(1)}",
            "\\boxed{4 moons}",
            "Answer: 1",
            "The answer is 1.",
            "1) 4 moons",
        ],
        [
            "\\boxed{4}",
            "\\boxed{4. 1 moon}",
            "\\boxed{1 moon}",
            "\\boxed{1.5}",
            "\\boxed{1 or 4}",
            "It has 1 or 4 moons",
            "The planet has 1 moon",
            "\\boxed{14}",
        ],
    ),
    (
        ANIMALS,
        "A",
        [
            "\\boxed{A}",
            "\\boxed{a}",
            "\\boxed{a.}",
            "a",
            "\\boxed{fox}",
            "\\boxed{A fox}",
            "A",
            "I pick A here",
            "A. fox",
            "The answer is A",
        ],
        [
            "\\boxed{a cat}",
            "\\boxed{A cat}",
            "\\boxed{a rabbit}",
            "\\boxed{A rabbit}",
            "A rabbit eats grass",
            "A fox eats it. It is B",
            "The answer is a rabbit",
            "The answer is a cat",
            "\\boxed{B. fox}",
        ],
    ),
    (
        ANIMALS,
        "B",
        [
            "\\boxed{a rabbit}",
            "\\boxed{A rabbit}",
            "The answer is a rabbit.",
            "A rabbit",
            "A fox eats it. It is B",
            "I think B",
        ],
        ["\\boxed{rabbits}", "\\boxed{an owl}", "\\boxed{A}", "A or B", "Not A, not B", "B's"],
    ),
]


def verdicts(task: Any, item: Any, texts: list[str]) -> dict[str, bool]:
    return {text: task.grade(item, text) for text in texts}


def test_numbers() -> None:
    task = get_task("gsm8k")
    for gold, (right, wrong) in NUMBERS.items():
        item = task.item({"question": "?", "answer": f"#### {gold}"})
        assert verdicts(task, item, right + wrong) == dict.fromkeys(right, True) | dict.fromkeys(wrong, False)
    assert sum(len(right) for right, _ in NUMBERS.values()) >= 60 and sum(len(w) for _, w in NUMBERS.values()) >= 30


def test_digits_of_full_width_and_x_as_a_sign() -> None:
    assert answers.final_number("\\boxed{\uff11\uff12}") == 12
    for text, right in {
        "3x5+7": True,
        "3 x 5 + 7": True,
        r"\text{3*5+7}": True,
        "x3*5+7": False,
        "3x5+8": False,
    }.items():
        assert answers.reaches(text, [3, 5, 7], 22) == right, text


def test_countdown() -> None:
    task = get_task("countdown-text")
    for (numbers, target), (right, wrong) in COUNTDOWN.items():
        item = task.item({"input": ",".join(map(str, numbers)), "output": target})
        for shape in ("\\boxed{%s}", "<answer>%s</answer>", "<answer>\\boxed{%s}</answer>"):
            texts = {shape % text: text in right for text in right + wrong}
            assert verdicts(task, item, list(texts)) == texts
    assert sum(map(len, (texts for both in COUNTDOWN.values() for texts in both))) >= 60


def test_sudoku() -> None:
    task = get_task("sudoku-text")
    item = task.item({"Puzzle": PUZZLE, "Solution": SOLUTION})
    right, wrong = SUDOKU
    assert verdicts(task, item, right + wrong) == dict.fromkeys(right, True) | dict.fromkeys(wrong, False)
    assert len(right) + len(wrong) >= 60


def test_cells_of_a_sudoku_are_counted() -> None:
    task = get_task("sudoku-text")
    item = task.item({"Puzzle": PUZZLE, "Solution": SOLUTION})
    assert PUZZLE.count("0") == 7
    for text, cells in ((SOLUTION, 7), (OTHER, 5), ("", 0), ("2" * 16, 3), ("2431 1342", 0)):
        assert task.scores([item], [text]) == {"cells": cells / 7}, text
    assert task.scores([item, item], [SOLUTION, ""]) == {"cells": 0.5}
    empty = task.item({"Puzzle": "1" + "0" * 15, "Solution": "1234341221434321"})
    assert task.scores([empty], ["1234341243212143"]) == {"cells": 1.0}


@pytest.mark.parametrize(("choices", "gold", "right", "wrong"), LETTERS)
def test_letters(
    choices: tuple[tuple[str, ...], tuple[str, ...]], gold: str, right: list[str], wrong: list[str]
) -> None:
    labels, options = choices
    task = get_task("arc-c")
    row = {"question": "?", "choices": {"label": list(labels), "text": list(options)}, "answerKey": gold}
    item = task.item(row)
    assert verdicts(task, item, right + wrong) == dict.fromkeys(right, True) | dict.fromkeys(wrong, False)


def test_a_letter_that_is_denied_is_no_answer() -> None:
    said = {
        "B": ["B\n\nExplanation: A is wrong because C", "It's B, definitely not D.", "Not A, so B", "(B)\n\nA isn't"],
        "D": ["Not B but D", "B is wrong. It must be D"],
        None: [
            "It cannot be B",
            "The answer isn't B",
            "B is wrong.",
            "B is clearly incorrect",
            "All except B",
            "It is not B",
            "Neither B nor D",
            "\\boxed{B is wrong}",
            "Rule out B",
            "B can't be",
        ],
    }
    for label, texts in said.items():
        for text in texts:
            assert answers.letter(text, "ABCD", ["a cat", "ore", "both", "iron"]) == label, text


def test_letters_are_enough() -> None:
    assert sum(len(right) for *_, right, _ in LETTERS) >= 60 and sum(len(wrong) for *_, wrong in LETTERS) >= 40


@pytest.mark.parametrize(
    "piece",
    ["1,", "1 ", "- ", "-", "1/", "e1", "\\frac", "\\frac{1}", "\\text{", "{", "}", "A or ", "A. ", "answer is ",
     "\n", "1 \\,", "| 1 ", "Row 1: ", "$", "\\", "[", "10^", "= ", "\\boxed{1", "2 1/2 ", "(A) ", "'", "* ", "####"],
)  # fmt: skip
def test_time_is_linear(piece: str) -> None:
    text = (piece * 20_000)[: answers.LONGEST]
    began = time.process_time()
    for whole in (text, f"\\boxed{{{text}}}", f"<answer>{text}", f"#### {text}"):
        answers.final_number(whole)
        answers.letter(whole, *VITAMINS)
        answers.letter(whole, *MOONS)
        answers.grid(whole)
        answers.expression(whole)
        answers.reaches(whole, [1], 1)
    assert time.process_time() - began < 3
