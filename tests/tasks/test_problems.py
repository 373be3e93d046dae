"""Generators, splits and graders."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wino.pretrain import build_tokenizer
from wino.tasks import SPLITS, TASKS, Item, Task, get_task, split_of
from wino.tasks.base import published_hashes
from wino.tasks.countdown import solutions
from wino.tasks.sudoku import is_valid_grid, solved_grids
from wino.tasks.sums import worked

task_of_each_family = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())

ARABIC = str.maketrans("0123456789", "".join(chr(0x660 + digit) for digit in range(10)))
HOSTILE = ("", " ", "\x00", ";", "=", "9" * 5000 + "+1=2", "\N{SUPERSCRIPT TWO}" * 16, "\ud800")


def sample(task: Task, split: str = "heldout", count: int = 60, seed: int = 0) -> list[Item]:
    return list(islice(task.items(split, seed), count))


@task_of_each_family
def test_items_belong_to_their_split_and_repeat_with_the_seed(task: Task) -> None:
    for split in SPLITS:
        items = sample(task, split)
        assert all(split_of(item.key) == split for item in items)
        assert items == sample(task, split)
        assert items != sample(task, split, seed=1)


@task_of_each_family
def test_heldout_items_are_distinct_and_in_no_other_split(task: Task) -> None:
    keys = {split: {item.key for item in sample(task, split, 150)} for split in SPLITS}
    assert len(keys["heldout"]) == len(keys["validation"]) == 150
    assert not keys["heldout"] & (keys["validation"] | keys["train"]) and not keys["validation"] & keys["train"]


def test_an_unknown_split_or_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"split: expected one of .*'test'"):
        next(get_task("sudoku").items("test"))
    with pytest.raises(ValueError, match=r"task: expected one of .*sudoku.*'chess'"):
        get_task("chess")


# A few items of the published test sets, in the key format whose hashes are listed.
PUBLISHED = (
    "countdown:30,93,100=23",
    "countdown:43,90,90=43",
    "countdown:21,39,89=71",
    "sudoku:3102200002100320",
    "sudoku:0140432014020000",
)


def test_published_items_are_recognised_by_their_key() -> None:
    assert sum(name == "sudoku" for name, _ in published_hashes()) == 500
    assert sum(name == "countdown" for name, _ in published_hashes()) == 256
    for key in PUBLISHED:
        assert (key.partition(":")[0], hashlib.sha256(key.encode()).hexdigest()[:16]) in published_hashes()
        assert split_of(key) == "published"
    assert split_of("countdown:30,93,100=24") in SPLITS


@pytest.mark.parametrize("split", SPLITS)
def test_no_split_yields_a_published_item(monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    task = get_task("countdown")
    free = [key for n in range(99) if split_of(key := f"countdown:1,2,{n}=5") == split][:2]
    queue = itertools.cycle([PUBLISHED[0], free[0], PUBLISHED[1], free[1]])
    monkeypatch.setattr(task, "draw", lambda rng: Item(next(queue), "", ""))
    assert [item.key for item in islice(task.items(split), 2)] == free


def test_published_sudokus_can_be_drawn_so_that_excluding_them_matters() -> None:
    rng = random.Random(0)
    drawn = {get_task("sudoku").draw(rng).key for _ in range(20_000)}
    assert any(split_of(key) == "published" for key in drawn)


@task_of_each_family
def test_own_answers_are_right_and_fit(task: Task) -> None:
    for item in sample(task):
        assert task.grade(item, item.answer)
        assert task.grade(item, f" {item.answer}\n")
        assert len(item.answer) <= task.max_new_tokens


@task_of_each_family
def test_a_changed_answer_is_wrong(task: Task) -> None:
    rng = random.Random(1)
    for item in sample(task):
        at = rng.choice([i for i, c in enumerate(item.answer) if c.isdigit()])
        digit = rng.choice([d for d in "0123456789" if d != item.answer[at]])
        assert not task.grade(item, item.answer[:at] + digit + item.answer[at + 1 :])
        for text in (item.answer[:-1], item.answer + "0", item.answer + ";" + item.answer, item.prompt):
            assert not task.grade(item, text)


@task_of_each_family
def test_another_item_s_answer_is_wrong(task: Task) -> None:
    first, second = (item for item in sample(task, count=2))
    assert first.answer != second.answer and not task.grade(first, second.answer)


@pytest.mark.parametrize("text", HOSTILE)
@task_of_each_family
def test_hostile_text_is_wrong(task: Task, text: str) -> None:
    assert task.grade(sample(task, count=1)[0], text) is False


@task_of_each_family
def test_digits_of_other_scripts_are_wrong(task: Task) -> None:
    item = sample(task, count=1)[0]
    assert not task.grade(item, item.answer.translate(ARABIC))


@given(text=st.one_of(st.text(), st.text(alphabet="0123456789+-=;:, ")))
@example(text="030+093=123;123-100=023")
@task_of_each_family
def test_no_text_makes_a_grader_raise(task: Task, text: str) -> None:
    assert task.grade(sample(task, count=1)[0], text) in (True, False)


def test_countdown_accepts_every_order_and_nothing_else() -> None:
    item = Item("countdown:30,93,100=23", "", "")
    grade = get_task("countdown").grade
    for text in ("030+093=123;123-100=023", "93+30=123;123-100=23", "100-93=7;30-7=23", "100-30=070;093-070=023"):
        assert grade(item, text)
    for text in (
        "093+030=123;123-100=024",  # wrong result
        "093+030=122;122-100=022",  # wrong sum, wrong target
        "093+030=123;100-123=023",  # negative written as positive
        "093+030=123;093-070=023",  # does not go on from its first line
        "100-077=023",  # one line
        "093+030=123;123-100=023;023+000=023",  # three
        "093+093=186;186-163=023",  # numbers not asked for
        "093*001=093;093-070=023",
    ):
        assert not grade(item, text)


@given(numbers=st.lists(st.integers(0, 999), min_size=3, max_size=3), target=st.integers(0, 2997))
def test_countdown_solutions_are_all_that_plus_and_minus_reach(numbers: list[int], target: int) -> None:
    numbers.sort()
    reachable = {
        sum(s * n for s, n in zip(signs, numbers, strict=True)) for signs in itertools.product((1, -1), repeat=3)
    }
    found = solutions(numbers)
    assert set(found) == {value for value in reachable if value >= 0}
    key = f"countdown:{','.join(map(str, numbers))}="
    assert all(get_task("countdown").grade(Item(f"{key}{value}", "", ""), text) for value, text in found.items())


def test_all_288_grids_and_no_others() -> None:
    assert len(solved_grids()) == 288 and all(map(is_valid_grid, solved_grids()))
    assert not any(
        map(is_valid_grid, ("", "1" * 16, "1234" * 4, solved_grids()[0] + "1", solved_grids()[0][:-1] + "0"))
    )


def test_sudoku_is_graded_by_validity_and_givens() -> None:
    task = get_task("sudoku")
    puzzle = "0" * 15 + "1"
    item = Item(f"sudoku:{puzzle}", f"sudoku {puzzle}", "")
    verdicts = [task.grade(item, grid) for grid in solved_grids()]
    assert verdicts == [grid[-1] == "1" for grid in solved_grids()] and sum(verdicts) == 72
    item = sample(task, count=1)[0]
    assert 8 <= item.prompt.count("0") <= 12


def test_sums_go_on_from_line_to_line() -> None:
    assert worked("34+08-15+27-01") == "034+08=042;042-15=027;027+27=054;054-01=053"
    for wrong in ("34+08-15+27", "34+8-15+27-01", "10-20+30+40+50", "", "34+08-15+27-01".translate(ARABIC)):
        with pytest.raises(ValueError, match="sum: "):
            worked(wrong)
    for item in sample(get_task("sum")):
        assert eval_lines(item.answer) == eval_sum(item.prompt.split()[1])


def eval_sum(text: str) -> int:
    return sum(int(sign + number) for sign, number in re.findall(r"([+-]?)(\d\d)", text))


def eval_lines(text: str) -> int:
    previous = None
    for line in text.split(";"):
        left, sign, number, result = re.fullmatch(r"(\d{3})([+-])(\d\d)=(\d{3})", line).groups()  # type: ignore[union-attr]
        assert int(left) + int(sign + number) == int(result) and previous in (None, left)
        previous = result
    return int(str(previous))


@task_of_each_family
def test_prompts_and_answers_pass_through_the_tokenizer(task: Task) -> None:
    tokenizer = build_tokenizer()
    for item in sample(task):
        ids = tokenizer(item.answer, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(item.answer) and tokenizer.decode(ids) == item.answer
        ids = tokenizer(item.prompt, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids and tokenizer.mask_token_id not in ids
        assert tokenizer.decode(ids) == item.prompt.replace(" ", "")
        assert tokenizer.convert_ids_to_tokens(ids[0]) == task.name
