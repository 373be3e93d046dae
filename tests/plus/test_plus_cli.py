"""The commands of WINO+, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from plus_records import make_record
from test_train import make_recipe
from typer.testing import CliRunner, Result

from wino.cli import app
from wino.cli.errors import describe
from wino.plus.records import read_trajectories, write_trajectories


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(*arguments: object) -> str:
    """The line on stderr of a command that exits 2."""
    result = run(*arguments)
    if result.exit_code == 2 and result.stderr:
        return result.stderr
    assert result.exception is not None and not isinstance(result.exception, SystemExit), result.output
    return describe(result.exception) or repr(result.exception)


def test_collect_filter_stats_show(tmp_path: Path) -> None:
    out, best = tmp_path / "t.jsonl", tmp_path / "best.jsonl"
    result = run("collect", "--task", "sum", "--items", 6, "--out", out)
    assert result.exit_code == 0 and f"{out}: 6 records, " in result.stdout.replace("\n", "")
    assert run("trajectories", "filter", out, best).exit_code == 0
    assert all(record.correct for record in read_trajectories(best))
    stats = run("trajectories", "stats", best).stdout
    assert "correct at temperature: 0: " in stats and "tokens accepted at step:" in stats
    shown = run("trajectories", "show", best, "--index", 1).stdout.splitlines()
    record = list(read_trajectories(best))[1]
    assert record.unique_id in shown[0]
    assert len(shown) == 1 + len({step for step in record.trajectory_accepted if step >= 0})
    assert shown[-1].count("\u00b7") == 0 and shown[1].count("\u00b7") > 0
    assert record.generated_text in shown[-1].replace(" ", "")
    again = run("collect", "--task", "sum", "--items", 6, "--out", out)
    assert again.exit_code == 0 and len(out.read_text().splitlines()) == 6


def test_show_finds_a_record_by_its_id(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trajectories(path, (make_record(i, metadata={"model": "wino-tiny"}) for i in range(3)))
    assert "item:2" in run("trajectories", "show", path, "--id", "item:2").stdout
    assert "no record with unique_id 'x'" in fails("trajectories", "show", path, "--id", "x")
    assert "no record with index 7" in fails("trajectories", "show", path, "--index", 7)
    write_trajectories(path, [make_record(0)])
    assert "--model" in fails("trajectories", "show", path)


def test_filter_as_asked_and_with_nothing_left(tmp_path: Path) -> None:
    path, out = tmp_path / "t.jsonl", tmp_path / "out.jsonl"
    write_trajectories(path, (make_record(i, correct=i != 0) for i in range(5)))
    options = ("--allow-incorrect", "--max-prompt-length", 5, "--keep-step-ratio", 0.7, "--dedupe-key", "unique_id")
    assert "2 records" in run("trajectories", "filter", path, out, *options).stdout
    assert [record.unique_id for record in read_trajectories(out)] == ["item:0", "item:1"]
    before = out.read_bytes()
    result = run("trajectories", "filter", path, out, "--max-prompt-length", 2)
    assert result.exit_code == 1 and "no record is left" in result.stderr
    assert out.read_bytes() == before
    assert "keep_step_ratio: expected a number in (0, 1]" in fails(
        "trajectories", "filter", path, out, "--keep-step-ratio", 2
    )
    assert "expected another file" in fails("trajectories", "filter", path, path)
    assert "wino trajectories" in run("trajectories", "--help").stdout


def test_merge_of_records(tmp_path: Path) -> None:
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    write_trajectories(a, [make_record(0)])
    write_trajectories(b, [make_record(0), make_record(1)])
    assert "2 records of 2 files" in run("trajectories", "merge", a, b, out).stdout
    assert run("trajectories", "merge", a).exit_code == 2


def test_an_invalid_record_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    path, out = tmp_path / "t.jsonl", tmp_path / "out.jsonl"
    fields = json.loads(make_record(0).to_json()) | {"prompt_length": 99}
    path.write_text(make_record(1).to_json() + "\n" + json.dumps(fields) + "\n")
    for command in (("filter", path, out), ("stats", path), ("merge", path, out)):
        assert "line 2: field prompt_length: expected 3" in fails("trajectories", *command)
    assert not out.exists()


def test_train_and_merge(base: Path, records: Path, tmp_path: Path) -> None:
    recipe = make_recipe(base, records, tmp_path / "run").model_dump(mode="json")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    result = run("train", "--config", path, "--output", tmp_path / "elsewhere")
    assert result.exit_code == 0, result.output
    final = tmp_path / "elsewhere/one/final"
    assert f"trained: {final}" in result.stdout.replace("\n", "")
    result = run("merge", "--base", base, "--adapter", final, "--out", tmp_path / "merged")
    assert result.exit_code == 0 and (tmp_path / "merged/model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("train", "--config", "none"),
            "no file none, and not one of the package's recipes: llada-8b, llada-8b-batch-mean, mmada-8b",
        ),
        (
            ("collect", "--task", "chess", "--out", "x.jsonl"),
            "sudoku, countdown, sum, caption, question, gsm8k",
        ),
        (("collect", "--task", "gsm8k", "--out", "x.jsonl"), "name a file with --data"),
        (("collect", "--task", "mbpp", "--out", "x.jsonl"), "allow it with --allow-code-execution"),
        (("collect", "--task", "sum", "--out", "no/such/folder.jsonl"), "existing folder"),
        (("collect", "--task", "sum", "--out", "x.jsonl", "--temperatures", "hot"), "--temperatures: expected numbers"),
        (("trajectories", "stats", "none.jsonl"), "No such file"),
        (
            ("eval", "--task", "sum", "--decoder", "wino", "--decoder", "prophet"),
            "--decoder: several values need --out",
        ),
        (("eval", "--task", "sum", "--threshold", "0.5,x"), "--threshold: expected numbers such as 0.5,0.7"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(*arguments)
    assert list(tmp_path.iterdir()) == []
