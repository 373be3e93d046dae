"""``wino eval`` and ``wino collect`` on files as people bring them: bad rows, reports, two processes at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

import wino.plus.collect
from wino.cli import app
from wino.models import LLaDAConfig, LLaDAModelLM
from wino.plus.records import read_trajectories
from wino.tasks import evaluation

SPECIAL = ["<|endoftext|>", "<|mdm_mask|>", "<|eot_id|>"]
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|eot_id|>' }}{% endfor %}assistant: "
SHORT = ("--max-new-tokens", "8", "--block-length", "8", "--decoder", "wino")
FAST = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def m0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random LLaDA with a byte tokenizer, of 256 positions."""
    folder = tmp_path_factory.mktemp("m0")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, *alphabet])}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=SPECIAL[0], mask_token=SPECIAL[1], additional_special_tokens=SPECIAL[2:]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 32, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 48, "init_std": 0.3}
    ids: dict[str, Any] = {"mask_token_id": 1, "eos_token_id": [0, 2], "pad_token_id": 0}
    config = LLaDAConfig(**shape, **ids, vocab_size=len(SPECIAL) + 256, max_sequence_length=256)
    LLaDAModelLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def problem(question: str, answer: str = "#### 7") -> bytes:
    return json.dumps({"question": question, "answer": answer}).encode() + b"\n"


GOOD = problem("one and one?") + problem("two and two?")
BAD = {
    "over-long": (problem("x" * 200), "positions, the model's limit is 256"),
    "mask token": (problem("a <|mdm_mask|> b"), "the mask token (1) is in the prompt"),
    "empty": (problem(""), "column question: expected a value, got an empty text"),
    "not UTF-8": (b'{"question": "caf\xe9", "answer": "#### 7"}\n', "expected UTF-8 text, got the byte 0xe9"),
    "null": (b'{"question": null, "answer": "#### 7"}\n', "column question: expected a value, got null"),
    "cut off": (b'{"question": "ab', "not JSON"),
}


def run(command: str, model: Path, data: Path, *options: str | Path) -> Result:
    settings = SHORT if command == "eval" else SHORT[:4]
    arguments = [command, "--task", "gsm8k", "--data", data, "--model", model, *settings, *options]
    return CliRunner().invoke(app, [str(a) for a in arguments])


def output(command: str, folder: Path) -> tuple[str | Path, ...]:
    return (
        ("--json", folder / "out.json") if command == "eval" else ("--out", folder / "out.jsonl", "--temperatures", "0")
    )


@pytest.mark.parametrize("command", ["eval", "collect"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_last_row_is_named_before_any_decoding(
    m0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, command: str
) -> None:
    data, (row, told) = tmp_path / "d.jsonl", BAD[kind]
    data.write_bytes(GOOD + row)
    with monkeypatch.context() as patch:
        for module in (evaluation, wino.plus.collect):
            patch.setattr(module, "generate", None)
        refused = run(command, m0, data, *output(command, tmp_path))
    assert refused.exit_code == 2 and refused.stdout == "", refused.output
    assert re.fullmatch(rf"wino: {data}, line 3: .*{re.escape(told)}.*--skip-invalid.*\n", refused.stderr)
    taken = run(command, m0, data, *output(command, tmp_path), "--skip-invalid")
    assert taken.exit_code == 0, taken.output
    placed = rf"{m0} on .*, kernels: .*\n"
    assert re.fullmatch(rf"1 row was left out\n  {data}, line 3: .*{re.escape(told)}.*\n{placed}", taken.stderr)
    if command == "eval":
        report = json.loads((tmp_path / "out.json").read_text())
        assert report["n"] == len(report["results"][0]["texts"]) == 2
        assert report["skipped"]["count"] == 1 and told in report["skipped"]["reasons"][0]
    else:
        assert len(list(read_trajectories(tmp_path / "out.jsonl"))) == 2
        again = run(command, m0, data, *output(command, tmp_path), "--skip-invalid")
        assert again.exit_code == 0 and "2 records" in again.stdout
    assert sorted(os.listdir(tmp_path)) == sorted(["d.jsonl", "out.json" if command == "eval" else "out.jsonl"])


def test_a_file_of_bad_rows_alone(m0: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_bytes(BAD["null"][0] * 3)
    result = run("eval", m0, data, "--skip-invalid")
    assert result.exit_code == 2 and "no items in it (3 rows were left out, the first: " in result.stderr
    data.write_bytes(BAD["over-long"][0])
    result = run("eval", m0, data, "--skip-invalid")
    assert result.exit_code == 2 and "no items in it (1 row was left out, the first: " in result.stderr


def test_the_curve_leaves_out_bad_rows_too(m0: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "curve"
    data.write_bytes(GOOD + BAD["over-long"][0])
    refused = run("eval", m0, data, "--out", out)
    assert refused.exit_code == 2 and f"{data}, line 3: " in refused.stderr and os.listdir(out) == []
    taken = run("eval", m0, data, "--out", out, "--skip-invalid")
    assert taken.exit_code == 0 and "1 row was left out\n" in taken.stderr, taken.output
    assert json.loads((out / "eval.json").read_text())["skipped"]["count"] == 1
    assert "1 row was left out" in (out / "eval.md").read_text()


# --- what was decoded stays


@pytest.mark.parametrize("where", ["--json", "--out"])
def test_what_was_decoded_before_a_failure_is_kept_and_gone_on_with(
    m0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "out"
    data.write_bytes(b"".join(problem(f"{i} and {i}?") for i in range(6)))
    straight = run("eval", m0, data, where, tmp_path / "straight", "--batch-size", "2")
    assert straight.exit_code == 0, straight.output
    real, batches = evaluation.generate, []

    def third_fails(model: Any, ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
        batches.append(len(ids))
        if len(batches) == 3:
            raise FloatingPointError("logits are NaN")
        return real(model, ids, *rest, **named)

    monkeypatch.setattr(evaluation, "generate", third_fails)
    failed = run("eval", m0, data, where, out, "--batch-size", "2")
    assert failed.exit_code == 2 and "NaN" in failed.stderr
    again = run("eval", m0, data, where, out, "--batch-size", "2")
    assert again.exit_code == 0, again.output
    assert batches == [2, 2, 2, 2]  # the third batch was decoded again, the first two were not
    results = [_results(path, where) for path in (tmp_path / "straight", out)]
    assert results[0] == results[1]
    if where == "--json":
        assert f"{out}.partial keeps what was decoded" in failed.stderr
        assert sorted(os.listdir(tmp_path)) == ["d.jsonl", "out", "straight"]


def _results(path: Path, where: str) -> list[Any]:
    report = json.loads((path if where == "--json" else path / "eval.json").read_text())
    rows = report["results" if where == "--json" else "rows"]
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]


# --- whose report it is


@pytest.fixture
def m1(m0: Path, tmp_path: Path) -> Path:
    """Another model's weights."""
    folder = Path(shutil.copytree(m0, tmp_path / "m1"))
    model, _ = wino.load(folder)
    with torch.no_grad():
        next(model.parameters()).view(-1)[-1] += 1
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("where", ["--json", "--out"])
def test_a_report_is_never_replaced_by_another_model_s(m0: Path, m1: Path, tmp_path: Path, where: str) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "out"
    data.write_bytes(GOOD)
    report, at = (out, "") if where == "--json" else (out / "eval.json", " at 0.6")
    assert run("eval", m0, data, where, out).exit_code == 0
    first = report.read_bytes()
    refused = run("eval", m1, data, where, out)
    assert refused.exit_code == 2 and f"{report}: holds {m0} + wino{at} on gsm8k" in refused.stderr, refused.output
    data.write_bytes(GOOD + problem("more?"))
    assert "of other weights, items or settings" in run("eval", m0, data, where, out).stderr
    data.write_bytes(GOOD)
    assert run("eval", m0, data, where, out, "--temperature", "0.5").exit_code == 2
    assert report.read_bytes() == first
    assert run("eval", m0, data, where, out).exit_code == 0  # the same again
    if where == "--out":  # one that has all of it and more
        both = run("eval", m0, data, "--model", m1, where, out)
        assert both.exit_code == 0, both.output
        assert len(json.loads(report.read_text())["rows"]) == 2
    report.write_text("notes")
    notes = run("eval", m0, data, where, out)
    assert notes.exit_code == 2 and "is there and is no report of wino eval" in notes.stderr
    assert report.read_text() == "notes"


def test_two_models_of_one_label_are_refused(m0: Path, m1: Path, tmp_path: Path) -> None:
    arguments = ["eval", "--task", "sum", "--model", f"a={m0}", "--model", f"a={m1}", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "--model: expected a label of its own for each, got a, a" in result.stderr


# --- whose records they are


def test_files_of_one_task_do_not_lose_each_other_s_records(m0: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_bytes(GOOD + problem("one and one?"))  # a row that repeats another
    b.write_bytes(problem("three?") + problem("two and two?") + problem("one and one?", "#### 8"))
    for data in (a, b):
        result = run("collect", m0, data, "--out", tmp_path / f"{data.stem}.records", "--temperatures", "0")
        assert result.exit_code == 0, result.output
        assert ("1 rows repeat others" in result.stderr) is (data == a)
    merged = tmp_path / "all.records"
    sources = [str(tmp_path / f"{name}.records") for name in "ab"]
    assert CliRunner().invoke(app, ["trajectories", "merge", *sources, str(merged)]).exit_code == 0
    records = list(read_trajectories(merged))
    assert len(records) == len({record.unique_id for record in records}) == 4
    assert {record.metadata["answer"] for record in records} == {"7", "8"}


def test_edited_data_are_noticed_and_longer_data_are_gone_on_with(m0: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "out.jsonl"
    options = ("--out", out, "--temperatures", "0")
    data.write_bytes(GOOD)
    assert run("collect", m0, data, *options).exit_code == 0
    before = out.read_bytes()
    data.write_bytes(GOOD.replace(b"two?", b"two!"))
    edited = run("collect", m0, data, *options)
    assert edited.exit_code == 2 and f"{out}: holds records of other data than these: 'gsm8k:" in edited.stderr
    assert out.read_bytes() == before
    data.write_bytes(problem("first?") + GOOD)  # every row has another number
    assert run("collect", m0, data, *options).exit_code == 0
    assert out.read_bytes().startswith(before) and len(list(read_trajectories(out))) == 3
    assert run("collect", m0, data, *options, "--items", "1").exit_code == 0  # fewer are there already


def test_records_under_row_numbers_are_read_and_kept_apart_but_not_gone_on_with(m0: Path, tmp_path: Path) -> None:
    """What an earlier version wrote: two files whose first rows are both gsm8k:0."""
    old = []
    for name, question in (("a", "one and one?"), ("b", "three?")):
        data, out = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.records"
        data.write_bytes(problem(question))
        assert run("collect", m0, data, "--out", out, "--temperatures", "0").exit_code == 0
        out.write_text(re.sub(r'"unique_id":"[^"]*"', '"unique_id":"gsm8k:0"', out.read_text()))
        old.append(out)
    result = run("collect", m0, tmp_path / "a.jsonl", "--out", old[0], "--temperatures", "0")
    assert result.exit_code == 2 and "'gsm8k:0' is the number of a row" in result.stderr
    merged = tmp_path / "all.records"
    assert CliRunner().invoke(app, ["trajectories", "merge", *map(str, [*old, old[0]]), str(merged)]).exit_code == 0
    assert [record.unique_id for record in read_trajectories(merged)] == ["gsm8k:0"] * 2


# --- two processes


def test_two_processes_never_write_one_output(m0: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "out.jsonl"
    data.write_bytes(b"".join(problem(f"{i} and {i}?") for i in range(300)))
    arguments = ["collect", "--task", "gsm8k", "--data", data, "--model", m0, *SHORT[:4], "--out", out]
    command = [sys.executable, "-m", "wino", *map(str, arguments), "--batch-size", "2"]
    first = subprocess.Popen(command, env=FAST, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    second = run("collect", m0, data, "--out", out)
    assert second.exit_code == 2
    assert re.search(rf"{out}: process {first.pid} on \S+, since .*, is writing it", second.stderr), second.stderr
    merged = CliRunner().invoke(app, ["trajectories", "merge", str(out), str(out)])
    assert merged.exit_code == 2 and f"process {first.pid}" in merged.stderr
    first.send_signal(signal.SIGKILL)
    first.communicate()
    kept = [line for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    third = run("collect", m0, data, "--out", out, "--temperatures", "0", "--items", str(len(kept) + 3))
    assert third.exit_code == 0, third.output
    lines = out.read_bytes().splitlines(keepends=True)
    assert lines[: len(kept)] == kept
    ids = [record.unique_id for record in read_trajectories(out)]
    assert len(ids) == len(set(ids)) == len(kept) + 3
    assert sorted(os.listdir(tmp_path)) == ["d.jsonl", "out.jsonl"]
