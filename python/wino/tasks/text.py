"""The eight text tasks of the WINO papers, for real checkpoints: items come from published files (docs/tasks.md).

Prompts ask for the answer in the form the graders read: ours, or the papers' (:meth:`TextTask.ask`). Settings are the
papers' for LLaDA-8B-Instruct: 256 tokens in blocks of 128, WINO thresholds by task and 0.9.
"""

from __future__ import annotations

import ast
import json
import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from . import answers, execution, programs, published
from .base import Item, Task
from .execution.sandbox import Means, choose_means
from .mathematics import check_installed, same_mathematics
from .sudoku import puzzle_of, solves

_BOXED = "Solve it step by step. Wrap the final answer in a \\boxed{}."


class TextTask(Task):
    """A task whose items are only read from files.

    Attributes:
        runs_code: whether grading executes the answer, which has to be allowed.
        threshold: of WINO, as published; plus_threshold: of confidence_threshold on WINO+ models, None: not published.
    """

    max_new_tokens = 256
    runs_code: ClassVar[bool] = False
    prompt_styles: ClassVar[tuple[str, ...]] = ("own",)
    _published = False
    threshold: ClassVar[float]
    plus_threshold: ClassVar[float | None] = None

    def __init__(self) -> None:
        shared = {"block_length": 128}
        self.presets = {
            "wino": {**shared, "threshold": self.threshold, "threshold_back": 0.9},
            "confidence_threshold": {**shared, "threshold": 0.9},
            "low_confidence": shared,
            "prophet": shared,
        }

    def draw(self, rng: random.Random) -> Item:
        raise ValueError(f"task {self.name}: its items are not generated, name a file with --data")

    def ask(
        self, *, prompt_style: str = "own", question_column: str | None = None, answer_column: str | None = None
    ) -> None:
        """Choose how items read from now on ask.

        Args:
            prompt_style: "own" prompts, or as "published" by the papers (:mod:`wino.tasks.published`).
            question_column: of the task ``exact``, as ``answer_column``.

        Raises:
            ValueError: the task has no such style, or columns of its own.
        """
        if prompt_style not in self.prompt_styles:
            styles = " or ".join(self.prompt_styles)
            raise ValueError(f"prompt_style: task {self.name} has {styles}, got {prompt_style!r}")
        if question_column or answer_column:
            raise ValueError(
                f"question_column, answer_column: task {self.name} has columns of its own; they are for exact"
            )
        self._published = prompt_style == "published"

    def _item(self, prompt: str, answer: str, /, **metadata: Any) -> Item:
        return Item("", prompt, answer, metadata)


class _PaperTask(TextTask):
    """One whose published prompt is known."""

    prompt_styles = ("own", "published")

    def _asked(self, item: Item, prompt: str, opening: str = published.REASONING) -> Item:
        return replace(item, prompt=prompt, opening=opening) if self._published else item


class Gsm8k(_PaperTask):
    name, title, threshold = "gsm8k", "GSM8K, grade-school mathematics", 0.6
    plus_threshold = 0.65
    columns = ("question", "answer")

    def item(self, row: dict[str, Any]) -> Item:
        _, mark, result = str(row["answer"]).rpartition("####")
        if not mark or answers.number(result) is None:
            raise ValueError(f"answer: expected a solution that ends in '#### number', got {row['answer'][-40:]!r}")
        question = str(row["question"])
        return self._asked(self._item(f"{question}\n{_BOXED}", result.strip()), published.gsm8k(question))

    def grade(self, item: Item, text: str) -> bool:
        found = answers.final_number(text)
        return found is not None and found == answers.number(item.answer)


class Math500(_PaperTask):
    name, title, threshold = "math500", "MATH-500, competition mathematics", 0.7
    plus_threshold = 0.8
    columns = ("problem", "answer")

    def __init__(self) -> None:
        super().__init__()
        check_installed()

    def item(self, row: dict[str, Any]) -> Item:
        problem = str(row["problem"])
        return self._asked(self._item(f"{problem}\n{_BOXED}", str(row["answer"])), published.math500(problem))

    def grade(self, item: Item, text: str) -> bool:
        found = answers.boxed(text)
        return found is not None and same_mathematics(found, item.answer)


class CountdownText(_PaperTask):
    name, title, threshold = "countdown-text", "Countdown, all four operations", 0.5
    plus_threshold = 0.6
    columns = ("input", "output")
    aliases: ClassVar[dict[str, str]] = {"nums": "input", "target": "output"}

    def item(self, row: dict[str, Any]) -> Item:
        numbers = [int(n) for n in str(row["input"]).strip("[]").split(",")]
        prompt = (
            f"Using only the numbers {numbers}, create an arithmetic expression that evaluates to exactly "
            f"{int(row['output'])}. You may use the operations +, -, *, and / as needed, but each number must be used "
            "exactly once. Think step by step, then give only the final expression inside \\boxed{}, without an "
            "equals sign or the target number. For example: \\boxed{a + b * c}"
        )
        item = self._item(prompt, "", numbers=numbers, target=int(row["output"]))
        return self._asked(item, published.countdown(numbers, int(row["output"])))

    def grade(self, item: Item, text: str) -> bool:
        found = answers.boxed(text) or answers.tagged(text) or ""
        return answers.reaches(found, item.metadata["numbers"], item.metadata["target"])


class SudokuText(_PaperTask):
    name, title, threshold = "sudoku-text", "4x4 Sudoku in words", 0.7
    plus_threshold = 0.6
    columns = ("Puzzle", "Solution")

    def item(self, row: dict[str, Any]) -> Item:
        puzzle, solution = puzzle_of(row)
        prompt = (
            "Solve this 4x4 Sudoku puzzle. It is given as a 16-character string, row by row, where '0' is an empty "
            "cell. Fill every empty cell with a digit from 1 to 4, so that each row, each column and each 2x2 box "
            f"holds 1 to 4 once.\n\nPuzzle: {puzzle}\n\nGive the complete solution as 16 digits without spaces between "
            "<answer> and </answer>."
        )
        return self._asked(self._item(prompt, solution, puzzle=puzzle), published.sudoku(puzzle))

    def grade(self, item: Item, text: str) -> bool:
        found = answers.grid(text)
        return found is not None and solves(found, item.metadata["puzzle"])

    def scores(self, items: Sequence[Item], texts: Sequence[str]) -> dict[str, float]:
        """The share of the empty cells that are filled as in the solution, of all grids together; of a grid that is
        right in another way, all."""
        right = empty = 0
        for item, text in zip(items, texts, strict=True):
            puzzle, found = item.metadata["puzzle"], answers.grid(text) or ""
            wanted = found if solves(found, puzzle) else item.answer
            empty += puzzle.count("0")
            right += sum(given == "0" and a == b for given, a, b in zip(puzzle, found, wanted, strict=False))
        return {"cells": right / empty if empty else 0.0}


class Arc(_PaperTask):
    threshold = 0.5
    plus_threshold = 0.5
    columns = ("question", "choices", "answerKey")

    def item(self, row: dict[str, Any]) -> Item:
        choices = row["choices"]
        if isinstance(choices, str):  # as CSV files hold it
            choices = json.loads(choices)
        labels, texts, answer = list(choices["label"]), list(choices["text"]), str(row["answerKey"])
        if answer not in labels or len(labels) != len(texts):
            raise ValueError(f"answerKey: expected one of {', '.join(labels)}, got {answer!r}")
        options = "\n".join(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))
        prompt = (
            f"{row['question']}\n{options}\nThink briefly, then answer with the letter of the option in \\boxed{{}}."
        )
        texts = [str(text) for text in texts]
        item = self._item(prompt, answer, labels=labels, options=texts)
        return self._asked(item, published.arc(str(row["question"]), labels, texts))

    def grade(self, item: Item, text: str) -> bool:
        return answers.letter(text, item.metadata["labels"], item.metadata["options"]) == item.answer


class ArcEasy(Arc):
    name, title = "arc-e", "ARC-Easy, science questions"


class ArcChallenge(Arc):
    name, title = "arc-c", "ARC-Challenge, science questions"


class CodeTask(_PaperTask):
    """Graded by running the answer's program against tests, once :meth:`allow_code_execution` was called."""

    runs_code = True
    _allowed = False
    _means: Means | None = None

    def allow_code_execution(self, unsandboxed: bool = False) -> None:
        """Programs that a model wrote may be run on this machine, in the sandbox of :mod:`wino.tasks.execution`.

        ``unsandboxed``: where this machine has none, they may run without one, as this user.
        """
        self._allowed = True
        self._means = choose_means(unsandboxed)

    def check_allowed(self) -> None:
        """Raise ``ValueError`` unless running programs was allowed."""
        if not self._allowed:
            raise ValueError(
                f"task {self.name}: grading runs programs that the model wrote; allow it with --allow-code-execution"
            )

    def grade(self, item: Item, text: str) -> bool:
        self.check_allowed()
        return self.passes(item, programs.extract(text, item.metadata["entry_point"]))

    @abstractmethod
    def passes(self, item: Item, code: str) -> bool:
        """Whether a program passes the item's tests."""


class HumanEval(CodeTask):
    name, title, threshold = "humaneval", "HumanEval, Python functions", 0.7
    plus_threshold = 0.9
    columns = ("task_id", "prompt", "test", "entry_point")

    def item(self, row: dict[str, Any]) -> Item:
        for name in self.columns:
            if not isinstance(row[name], str):
                raise ValueError(f"{name}: expected text, got {row[name]!r}")
        if not row["entry_point"].isidentifier():
            raise ValueError(f"entry_point: expected a function's name, got {row['entry_point']!r}")
        prompt = f"Complete this Python function. Answer with the whole function in a code block.\n\n{row['prompt']}"
        own = {name: row[name] for name in ("prompt", "test", "entry_point")}
        item = self._item(prompt, str(row.get("canonical_solution") or ""), **own)
        return self._asked(item, *published.humaneval(row["prompt"]))

    def passes(self, item: Item, code: str) -> bool:
        head, name = item.metadata["prompt"], item.metadata["entry_point"]
        return execution.passes(
            programs.complete(head, code, name),
            f"{item.metadata['test']}\n\ncheck({name})\n",
            names=[name],
            helpers=[f"{head.rstrip()}\n    pass\n"],
            means=self._means,
        )


class Mbpp(CodeTask):
    name, title, threshold = "mbpp", "MBPP, short Python programs", 0.8
    plus_threshold = 0.9
    columns = ("test_list",)

    def item(self, row: dict[str, Any]) -> Item:
        question, tests = row.get("text") or row.get("prompt"), row["test_list"]
        if isinstance(tests, str):
            tests = json.loads(tests)
        if not isinstance(question, str) or not tests or not all(isinstance(test, str) for test in tests):
            raise ValueError("expected a question in text or prompt, and assertions in test_list")
        imported = "\n".join(row.get("test_imports") or [])
        setup = str(row.get("test_setup_code") or "")
        prompt = (
            f"{question}\nYour code should pass these tests:\n\n" + "\n".join(tests) + "\n\nAnswer with a code block."
        )
        solution = str(row.get("code") or "")
        own = {"tests": list(tests), "setup": setup, "imports": imported}
        item = self._item(prompt, solution, **own, entry_point=programs.entry_point_of(tests, solution))
        return self._asked(item, *published.mbpp(question, tests))

    def passes(self, item: Item, code: str) -> bool:
        imports, setup, tests = (item.metadata[name] for name in ("imports", "setup", "tests"))
        names, own_imports = _published(item.answer, "\n".join([setup, *tests]))
        return execution.passes(
            programs.future_first(code),
            "\n".join([setup, *tests]) + "\n",
            names=names,
            helpers=[imports, own_imports],
            before=[imports, setup],
            means=self._means,
        )


def _published(solution: str, tests: str) -> tuple[list[str] | None, str]:
    """The names of a published solution that its tests use (``None`` without one), and its imports."""
    try:
        body, used = ast.parse(solution).body, ast.walk(ast.parse(tests))
    except (SyntaxError, ValueError):
        return None, ""
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {
        name.id for node in body if isinstance(node, ast.Assign) for name in node.targets if isinstance(name, ast.Name)
    }
    loaded = {node.id for node in used if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    imports = "\n".join(ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    return sorted(defined & loaded) or None, imports


TEXT_TASKS: tuple[type[TextTask], ...] = (
    Gsm8k,
    Math500,
    HumanEval,
    Mbpp,
    CountdownText,
    SudokuText,
    ArcEasy,
    ArcChallenge,
)
