"""Published answers with known verdicts against the graders.

    python benchmarks/graders.py --gsm8k FILE --humaneval FILE

FILE is ``grade_school_math/data/example_model_solutions.jsonl`` of github.com/openai/grade-school-math and
``data/HumanEval.jsonl.gz`` of github.com/openai/human-eval. Prints every disagreement; exits 1 if there is one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wino.tasks import get_task
from wino.tasks.text import CodeTask


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def shapes(prompt: str, body: str, name: str) -> dict[str, str]:
    """Replies that all give one solution."""
    whole = f"{prompt}{body}"
    return {
        "body": body,
        "body without its first spaces": body.strip(),
        "body in a fence": f"```python\n{body}```\nIt works.",
        "body, fence closed": f"{body}\n```\nHere is why it works.",
        "whole in a fence": f"```python\n{whole}\n```",
        "whole in prose": f"Here is the code:\n\n{whole}\n\nThis returns the result.",
        "whole, usage, output": f"Sure.\n```Python\n{whole}\n```\nUse:\n```python\nprint({name}(1))\n```\n```\n1\n```",
    }


def gsm8k(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """(which answer, verdict, published verdict)."""
    task = get_task("gsm8k")
    for number, row in enumerate(rows(path), 1):
        gold = row["ground_truth"].rpartition("A:")[2]
        item = task.item({"question": row["question"], "answer": f"####{gold}"})
        for model, answer in row.items():
            if isinstance(answer, dict):
                yield f"line {number}, {model}", task.grade(item, answer["solution"]), answer["is_correct"]


def humaneval(path: Path) -> Iterator[tuple[str, bool, bool]]:
    task = get_task("humaneval")
    assert isinstance(task, CodeTask)
    task.allow_code_execution()
    for row in rows(path):
        item = task.item(row)
        for shape, reply in shapes(row["prompt"], row["canonical_solution"], row["entry_point"]).items():
            yield f"{row['task_id']}, {shape}", task.grade(item, reply), True
        yield f"{row['task_id']}, None", task.grade(item, f"{row['prompt']}    return None\n"), False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    graders = {"gsm8k": gsm8k, "humaneval": humaneval}
    for name in graders:
        parser.add_argument(f"--{name}", type=Path)
    given = {name: path for name, path in vars(parser.parse_args()).items() if path is not None}
    if not given:
        parser.error("name a file with " + " or ".join(f"--{name}" for name in graders))
    wrong = 0
    for name, path in given.items():
        verdicts = list(graders[name](path))
        differ = [where for where, verdict, published in verdicts if verdict is not published]
        print("\n".join([*differ, f"{name}: {len(verdicts)} answers, {len(differ)} disagreements"]))
        wrong += len(differ)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
