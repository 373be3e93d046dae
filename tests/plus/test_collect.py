"""Collecting: one record an item, graded, resumed after any death, spread over processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import wino
from wino.config import GenerationConfig
from wino.plus.collect import Shard, collect, merge_if_complete, training_items
from wino.plus.records import Trajectory, read_trajectories
from wino.tasks import get_task
from wino.tasks.base import split_of
from wino.tasks.evaluation import evaluate

TASK = get_task("sum")
CONFIG = GenerationConfig(max_new_tokens=TASK.max_new_tokens, threshold=0.5, threshold_back=0.8)
FAST = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return wino.load("wino-tiny")


def run(tiny: tuple[Any, Any], out: Path, n: int, **options: Any) -> bool:
    options = {"name": "wino-tiny", "batch_size": 8, **options}
    return collect(*tiny, TASK, training_items(TASK, n, 3), out, options.pop("config", CONFIG), **options)


def by_key(path: Path) -> dict[str, Trajectory]:
    records = list(read_trajectories(path))
    keys = [record.unique_id for record in records]
    assert len(set(keys)) == len(keys)
    return {record.unique_id: record for record in records}


def test_records_are_what_was_decoded(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    items = training_items(TASK, 24, 3)
    assert run(tiny, tmp_path / "t.jsonl", 24, temperatures=(0.0,))
    records = by_key(tmp_path / "t.jsonl")
    assert list(records) == [item.key for item in items]
    expected = evaluate(*tiny, TASK, items, CONFIG)
    assert [r.generated_text for r in records.values()] == expected.texts
    assert [r.correct for r in records.values()] == expected.correct
    assert [r.decoding_steps for r in records.values()] == expected.steps
    for item, record in zip(items, records.values(), strict=True):
        assert tiny[1].decode(record.prompt_ids).replace(" ", "").count(item.prompt.replace(" ", "")) == 1
        assert min(record.trajectory_accepted) == 0
        assert record.metadata["answer"] == item.answer
        assert record.metadata["mask_token_id"] == 1
    assert any(max(r.trajectory_accepted) < r.decoding_steps - 1 or r.decoding_steps > 4 for r in records.values())


def test_wrong_answers_are_tried_again_and_the_first_correct_one_is_kept(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    assert run(tiny, tmp_path / "cold.jsonl", 120, temperatures=(0.0,), batch_size=60)
    assert run(tiny, tmp_path / "warm.jsonl", 120, temperatures=(0.0, 0.5, 1.0), batch_size=60)
    cold, warm = by_key(tmp_path / "cold.jsonl"), by_key(tmp_path / "warm.jsonl")
    retried = [key for key, record in warm.items() if record.used_temperature > 0]
    assert retried and set(retried) == {key for key, record in cold.items() if not record.correct}
    saved = [key for key in retried if warm[key].correct]
    assert saved
    for key in retried:
        attempts = {0.5: 2, 1.0: 3}[warm[key].used_temperature]
        assert warm[key].metadata["attempts"] == attempts
        assert warm[key].correct or attempts == 3


def test_a_record_does_not_depend_on_its_batch(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    assert run(tiny, tmp_path / "a.jsonl", 30, temperatures=(0.7,), batch_size=30)
    assert run(tiny, tmp_path / "b.jsonl", 30, temperatures=(0.7,), batch_size=7)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_resumed_run_writes_what_is_missing(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    assert run(tiny, tmp_path / "straight.jsonl", 40)
    path = tmp_path / "t.jsonl"
    assert run(tiny, path, 16)
    data = path.read_bytes()
    path.write_bytes(data[:-25])
    told: list[int] = []
    assert run(tiny, path, 40, on_items=told.append)
    assert told[0] == 15 and sum(told) == 40
    assert by_key(path) == by_key(tmp_path / "straight.jsonl")


def test_other_settings_or_another_decoder_are_refused(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    assert run(tiny, path, 8)
    before = path.read_bytes()
    other = GenerationConfig(max_new_tokens=TASK.max_new_tokens, threshold=0.6, threshold_back=0.8)
    with pytest.raises(ValueError, match=r"record 1 was made with threshold 0.5, this run has 0.6"):
        run(tiny, path, 16, config=other)
    fixed = GenerationConfig(decoder="confidence_threshold", max_new_tokens=TASK.max_new_tokens)
    with pytest.raises(ValueError, match=r"expected decoder 'wino', got 'confidence_threshold'"):
        run(tiny, path, 16, config=fixed)
    with pytest.raises(ValueError, match=r"items: expected distinct keys, got 1 repeated"):
        item = training_items(TASK, 1)[0]
        collect(*tiny, TASK, [item, item], path, CONFIG, name="wino-tiny")
    assert path.read_bytes() == before


def test_shards_are_merged_by_whoever_is_last(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    assert run(tiny, tmp_path / "straight.jsonl", 20)
    out = tmp_path / "t.jsonl"
    assert not run(tiny, out, 20, shard=Shard(1, 3))
    assert not run(tiny, out, 20, shard=Shard(0, 3))
    with pytest.raises(ValueError, match=r"t.jsonl.rank0of3 is left of a run with several processes"):
        run(tiny, out, 20)
    # Two processes go on with what three began.
    assert not run(tiny, out, 20, shard=Shard(0, 2))
    assert run(tiny, out, 20, shard=Shard(1, 2))
    assert by_key(out) == by_key(tmp_path / "straight.jsonl")
    assert sorted(os.listdir(tmp_path)) == ["straight.jsonl", "t.jsonl"]
    assert not run(tiny, out, 30, shard=Shard(0, 2))
    assert run(tiny, out, 30, shard=Shard(1, 2))
    assert set(by_key(out)) == {item.key for item in training_items(TASK, 30, 3)}


def test_processes_that_finish_together_merge_once(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    items = training_items(TASK, 6, 3)
    keys = [item.key for item in items]
    assert not run(tiny, tmp_path / "t.jsonl", 6, shard=Shard(1, 2))
    (tmp_path / "t.jsonl.rank1of2").rename(tmp_path / "one")
    assert not run(tiny, tmp_path / "t.jsonl", 6, shard=Shard(0, 2))
    (tmp_path / "t.jsonl.rank0of2").rename(tmp_path / "zero")
    for attempt in range(20):
        out = tmp_path / str(attempt) / "t.jsonl"
        out.parent.mkdir()
        for rank, name in enumerate(("zero", "one")):
            (out.parent / f"t.jsonl.rank{rank}of2").write_bytes((tmp_path / name).read_bytes())
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(merge_if_complete, out, Shard(rank % 2, 2), keys, set()) for rank in range(4)]
        assert [one.result() for one in waiting] == [True] * 4
        assert set(by_key(out)) == set(keys)
        assert os.listdir(out.parent) == ["t.jsonl"]


def test_training_items_are_of_the_training_split_and_distinct() -> None:
    for name in ("sudoku", "countdown", "sum"):
        items = training_items(get_task(name), 1500, 1)
        assert len({item.key for item in items}) == len(items) == 1500
        assert {split_of(item.key) for item in items} == {"train"}
        held_out = {item.key for item in islice(get_task(name).items("heldout"), 500)}
        assert not held_out & {item.key for item in items}


def command(out: Path, n: int) -> list[str]:
    return ["-m", "wino", "collect", "--task", "sum", "--out", str(out), "--items", str(n), "--batch-size", "4"]


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= count):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_stopped_process_loses_nothing(tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "t.jsonl"
    process = subprocess.Popen([sys.executable, *command(out, 5000)], env=FAST, stderr=subprocess.PIPE)
    wait_for_lines(out, 8, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in stderr
    kept = [line for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 8 <= len(kept) < 5000
    n = len(kept) + 6
    subprocess.run([sys.executable, *command(out, n)], env=FAST, check=True, capture_output=True)
    assert out.read_bytes().splitlines(keepends=True)[: len(kept)] == kept
    assert set(by_key(out)) == {item.key for item in training_items(TASK, n)}


def test_a_full_disk_is_one_line_and_a_clean_resume(tmp_path: Path) -> None:
    """A limit on the file's size stands in for the disk."""
    out = tmp_path / "t.jsonl"
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); sys.argv = ['wino'] + sys.argv[1:]; "
        "from wino.cli import main; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", limited, *command(out, 40)[2:]], env=FAST, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("wino: ") and "File too large" in run.stderr
    assert "Traceback" not in run.stderr
    assert out.read_bytes().endswith(b"\n") and 0 < len(by_key(out)) < 40
    subprocess.run([sys.executable, *command(out, 40)], env=FAST, check=True, capture_output=True)
    assert set(by_key(out)) == {item.key for item in training_items(TASK, 40)}


def test_torchrun_spreads_the_items(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run([*launcher, *command(out, 30)], env=FAST, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert set(by_key(out)) == {item.key for item in training_items(TASK, 30)}
    assert os.listdir(tmp_path) == ["t.jsonl"]
