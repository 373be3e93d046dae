# ruff: noqa: E501 - texts as they were published
"""Prompts of the papers, word for word as the released code of WINO asks LLaDA-8B-Instruct.

Source: github.com/Feng-Hong/WINO-DLLM, ``LLaDA/dataset_utils`` and ``prompt_suffix`` of ``LLaDA/configs``. Slips of the
originals (a quotation mark too many, spaces at line ends) are part of what was measured, and are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

#: How a reply begins, which the model is given.
REASONING = "<reasoning>"

_FORMAT = "Respond in the following format:\n<reasoning>\nYour reasoning here\n</reasoning>\n<answer>\n\\boxed{...}\n</answer>"
_EXPERT = "You are a math expert. You will be given a question to solve. Solve it step by step. Wrap the final answer in a \\boxed{}."


def gsm8k(question: str) -> str:
    return f"{_EXPERT} \n{_FORMAT}\n\n{question}"


def math500(problem: str) -> str:
    return f'{_EXPERT}\n{_FORMAT}" \n\n\n{problem}'


def countdown(numbers: Sequence[int], target: int) -> str:
    return (
        "Using only the provided numbers, create an arithmetic expression that evaluates to exactly the provided target "
        "number. You may use the operations +, -, *, and / as needed, but each number must be used exactly once. Think "
        "step-by-step. After reasoning, provide only your final expression inside \\boxed{} tags without including an "
        f"equals sign or the target number. For example: \\boxed{{a + b * c}}{_FORMAT}\n\n"
        f"Numbers: {list(numbers)}\nTarget: {target}"
    )


_EXAMPLES = (
    ("3102200002100320", "3142243142131324"),
    ("0140432014020000", "2143432114323214"),
    ("4310010000303420", "4312214312343421"),
    ("2004001203201003", "2134341243211243"),
)


def sudoku(puzzle: str) -> str:
    examples = "\n\n".join(f"Puzzle: {given}\nAnswer: {solved}" for given, solved in _EXAMPLES)
    return (
        "\nPlease solve the following 4x4 Sudoku puzzle. The puzzle is provided as a 16-character string reading "
        "left-to-right, top-to-bottom, where '0' represents empty cells.\n\nRules:\n- Fill empty cells with digits 1-4\n"
        "- Each row must contain digits 1-4 exactly once\n- Each column must contain digits 1-4 exactly once\n"
        "- Each 2x2 box must contain digits 1-4 exactly once\n\nImportant: Your solution must be a COMPLETE 16-character "
        f"string with only the digits 1-4, representing your final solved grid.\n\nExample:\n{examples}\n\n"
        "Respond in this exact format:\n<reasoning>\nYour step-by-step solving process\n</reasoning>\n<answer>\n"
        "[16-character solution string with no spaces or separators]\n</answer>\n\n\n"
        f"Solve the following Sudoku puzzle: {puzzle}\n"
    )


def arc(question: str, labels: Sequence[str], options: Sequence[str]) -> str:
    listed = "\n".join(f"{label.strip()}. {option.strip()}" for label, option in zip(labels, options, strict=True))
    return (
        "You will be given a multiple choice question and a list of options. You need to first reason step by step, and "
        "then select the correct option (A, B, C, D). Wrap the single letter of the correct option in \\boxed{...}.\n"
        f"{_FORMAT}\n\n\n" + f"{question.strip()}\n{listed}".strip()
    )


def humaneval(head: str) -> tuple[str, str]:
    """Prompt, and how the reply begins."""
    prompt = (
        f"Write a solution to the following problem and make sure that it passes the tests:\n```python\n{head}\n```"
    )
    return prompt, f"Here is the completed function:\n```python\n{head}\n"


def mbpp(question: str, tests: Sequence[str]) -> tuple[str, str]:
    """Prompt, and how the reply begins."""
    listed = "\n".join(tests)
    prompt = (
        "You are an expert Python programmer. Please write a python function to solve the following problem:\n"
        f">>> Problem:\n{question.strip()}\n>>> Test Cases:\n{listed}\n"
    )
    return prompt, ">>> Code:\n```python\n"
