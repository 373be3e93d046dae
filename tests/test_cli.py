"""The command line: what each command prints, into a pipe and on a terminal, and how it fails."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from safetensors.torch import load_file, save_file
from small_mmada import save_small_mmada
from typer.testing import CliRunner, Result

import wino_kernels
from wino import device
from wino.cli import app, gallery, report
from wino.cli import demo as demo_module
from wino.cli.board import TAKEN_BACK, Board, Glyphs, LiveDecode, half_blocks
from wino.cli.errors import describe, one_line
from wino.cli.evaluate import select_configs
from wino.cli.generate import config_for, read_prompts
from wino.cli.session import Session, open_session
from wino.decoders import DECODERS
from wino.files import write_atomically
from wino.pretrain import Recipe, build_model, build_tokenizer
from wino.tasks import PICTURE_TASKS, TASKS
from wino.tasks.evaluation import Evaluation
from wino.tasks.scenes import render, scene_of
from wino.trace import StepRecord

RECIPE = Recipe(d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=48)
PROMPT = "sudoku 1000200030004000"
FAST = {"OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model whose confidences are spread out, so that thresholds have something to decide."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = build_tokenizer()
    model = build_model(RECIPE, tokenizer)
    with torch.no_grad():
        model.model.transformer["ff_out"].weight.mul_(25)
        model.model.transformer["ff_out"].weight[tokenizer.mask_token_id] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    presets = {name: {"wino": {"threshold": 0.3, "threshold_back": 0.8, "verify_last": True}} for name in TASKS}
    (folder / "presets.json").write_text(json.dumps(presets))
    return folder


@pytest.fixture(scope="session")
def session(checkpoint: Path) -> Session:
    return open_session(str(checkpoint))


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


def wino(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def succeeds(*arguments: str | Path, stdin: str | bytes | None = None) -> str:
    result = wino(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    return result.stdout


def fails(*arguments: str | Path, stdin: str | bytes | None = None) -> str:
    """The message of a run that must end with exit code 2, one line on stderr and nothing on stdout."""
    result = wino(*arguments, stdin=stdin)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"wino: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_version_prints_one() -> None:
    text = succeeds("--help")
    assert succeeds() == text
    assert all(f"  {name} " in text for name in ("demo", "generate", "eval", "doctor"))
    assert re.fullmatch(r"wino \d+\.\d+\.\d+\S*\n", succeeds("--version"))


COMMANDS = ("demo", "generate", "eval", "bench", "collect", "train", "merge", "doctor")


def test_summaries_are_whole_and_every_command_has_an_example() -> None:
    assert not re.search(r"\w\.\.\.", succeeds("--help") + succeeds("trajectories"))
    assert succeeds("trajectories") == succeeds("trajectories", "--help")
    of_records = [("trajectories", name) for name in ("filter", "stats", "show", "merge")]
    for command in [*((name,) for name in COMMANDS), *of_records]:
        assert f"Example: wino {' '.join(command)}" in succeeds(*command, "--help")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "GOMP_SPINCOUNT=10000"),
        ({"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT=7"),
        ({"OMP_WAIT_POLICY": "active"}, "OMP_WAIT_POLICY=active"),
    ],
    ids=["nothing", "its number", "its policy"],
)
def test_waiting_threads_sleep_soon_unless_told_otherwise(given: dict[str, str], told: str) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    command = [sys.executable, "-m", "wino", "doctor"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert re.search(rf"^  waiting +{told}$", ran.stdout, re.MULTILINE), ran.stdout
    library = [sys.executable, "-m", "wino_kernels.env_report"]  # which sets nothing
    ran = subprocess.run(library, env=environment, capture_output=True, text=True, check=True)
    assert re.search(rf"^  waiting +{told if given else 'spinning for long'}", ran.stdout, re.MULTILINE), ran.stdout


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in succeeds("--help")


@pytest.mark.parametrize("command", ["demo", "generate", "eval", "doctor"])
def test_help_of_a_command_explains_each_option(command: str) -> None:
    text = succeeds(command, "--help")
    options = re.findall(r"^  (?:-\w, )?--[\w-]+.*(?:\n {10,}\S.*)*", text, flags=re.MULTILINE)
    assert options and all(len(re.split(r"\s{2,}|\n", option.strip())) >= 2 for option in options)
    if command in ("generate", "eval"):
        assert all(name in text for name in DECODERS)
        for field in ("threshold", "threshold-back", "block-length", "max-new-tokens", "temperature", "seed", "steps"):
            assert f"--{field}" in text
    if command == "eval":
        assert all(name in text for name in TASKS)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, wino.cli\ntry: wino.cli.main()\nfinally: print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, "generate", "--help"], capture_output=True, text=True, check=True)
    assert "--threshold-back" in run.stdout
    assert not {"torch", "transformers", "tokenizers", "numpy"} & set(run.stdout.splitlines()[-1].split())


def test_the_version_imports_nothing_heavy() -> None:
    code = "import sys, wino.cli\ntry: wino.cli.main()\nfinally: print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"wino {wino_kernels.__version__}\n")
    assert not {"torch", "transformers", "numpy"} & set(run.stdout.splitlines()[-1].split())


# --- generate ---------------------------------------------------------------------------------------------------------


def test_generate_prints_the_text_alone(checkpoint: Path) -> None:
    text = succeeds("generate", PROMPT, "--model", checkpoint)
    record = json.loads(succeeds("generate", PROMPT, "--model", checkpoint, "--json"))
    assert text == record["text"] + "\n"


def test_a_prompt_is_a_line_and_a_line_ends_at_a_newline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "one\u2028two\x85three\x0cfour\rfive"
    path = tmp_path / "prompts.txt"
    path.write_bytes(f"\ufeff{odd}\r\nsecond\n".encode())
    assert read_prompts(None, str(path)) == [odd, "second"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert read_prompts("-", None) == [odd, "second"]
    path.write_bytes(b"one\n\xff\n")
    assert f"{path}, line 2: expected UTF-8 text, got the byte 0xff" in fails("generate", "--file", path)


def test_generate_json_lines(checkpoint: Path) -> None:
    arguments = ("--model", checkpoint, "--max-new-tokens", "16", "--block-length", "8", "--json")
    record = json.loads(succeeds("generate", PROMPT, *arguments))
    assert list(record) == ["prompt", "text", "steps", "tokens", "generated_ids", "accepted_at"]
    assert record["prompt"] == PROMPT and len(record["generated_ids"]) == len(record["accepted_at"]) == 16
    assert 1 <= record["tokens"] <= 16 and max(record["accepted_at"]) < record["steps"]
    traced = json.loads(succeeds("generate", PROMPT, *arguments, "--trace"))
    trace = traced.pop("trace")
    assert traced == record and len(trace) == record["steps"]
    tokens: dict[int, int] = {}
    for step in trace:
        tokens |= dict(zip(step["accepted_positions"], step["accepted_tokens"], strict=True))
        for position in step["remasked_positions"]:
            del tokens[position]
    assert [tokens[i] for i in range(16)] == record["generated_ids"]


def test_generate_reads_prompts_from_a_file_and_from_standard_input(checkpoint: Path, tmp_path: Path) -> None:
    """Prompts of three lengths and two tasks, in batches that cut across both, give what each gives alone."""
    prompts = [PROMPT, "sum 12+34", "sum 1+2+3", "sudoku 1", "sudoku 12341234"]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts) + "\n")
    arguments = ("--model", checkpoint, "--json", "--batch-size", "2")
    lines = succeeds("generate", "--file", file, *arguments)
    assert succeeds("generate", "-", *arguments, stdin=file.read_text()) == lines
    assert succeeds("generate", "--file", "-", *arguments, stdin=file.read_bytes()) == lines
    records = [json.loads(line) for line in lines.splitlines()]
    assert [record["prompt"] for record in records] == prompts
    assert [len(record["generated_ids"]) for record in records] == [20, 44, 44, 20, 20]
    alone = [json.loads(succeeds("generate", prompt, "--model", checkpoint, "--json")) for prompt in prompts]
    assert records == alone
    texts = succeeds("generate", "--file", file, "--model", checkpoint)
    assert texts.splitlines() == [record["text"] for record in records]


@pytest.mark.parametrize("decoder", DECODERS)
def test_generate_with_every_decoder(checkpoint: Path, decoder: str) -> None:
    arguments = ("generate", "12+34", "--model", checkpoint, "--max-new-tokens", "12", "--decoder", decoder, "--json")
    record = json.loads(succeeds(*arguments, "--temperature", "1", "--seed", "7"))
    assert record == json.loads(succeeds(*arguments, "--temperature", "1", "--seed", "7"))
    assert record != json.loads(succeeds(*arguments, "--temperature", "1", "--seed", "8"))
    if decoder == "low_confidence":
        assert record["steps"] == 12
        assert json.loads(succeeds(*arguments, "--steps", "3"))["steps"] == 3


def test_settings_come_from_the_command_line_then_the_preset_then_the_defaults() -> None:
    presets = {"sum": {"wino": {"threshold": 0.7, "block_length": 11}}}
    assert config_for("sum 1+2", {}, presets).threshold == 0.7
    assert config_for("sum 1+2", {"threshold": 0.2}, presets).threshold == 0.2
    assert config_for("sum 1+2", {}, presets).block_size == 11
    assert config_for("sum 1+2", {"max_new_tokens": 64}, presets).block_size == 64
    assert config_for("sum 1+2", {"decoder": "low_confidence"}, presets).block_size == 44
    assert config_for("sum 1+2", {}, {}).max_new_tokens == config_for("hello", {}, presets).max_new_tokens == 256


GENERATE_ERRORS = [
    (("--decoder", "greedy"), "decoder: expected one of wino"),
    (("--remasking", "lowest"), "remasking: expected one of"),
    (("--threshold", "0"), "threshold: expected in (0, 1], got 0.0"),
    (("--threshold", "1.5"), "threshold: expected in (0, 1], got 1.5"),
    (("--threshold", "nan"), "threshold: expected in (0, 1], got nan"),
    (("--threshold-back", "-0.1"), "threshold_back: expected in (0, 1], got -0.1"),
    (("--threshold", "high"), "Invalid value for '--threshold'"),
    (("--block-length", "7"), "block_length: must divide max_new_tokens = 20, got 7"),
    (("--max-new-tokens", "32", "--block-length", "7"), "block_length: must divide max_new_tokens = 32, got 7"),
    (("--max-new-tokens", "0"), "max_new_tokens: expected an integer >= 1"),
    (("--max-new-tokens", "250"), "the model's limit is 256"),
    (("--block-length", "5", "--steps", "3"), "steps: must be a multiple of the 4 blocks"),
    (("--temperature", "-1"), "temperature: expected a finite number >= 0"),
    (("--cfg-scale", "inf"), "cfg_scale: expected a finite number >= 0"),
    (("--accept-fraction", "0"), "accept_fraction: expected in (0, 1]"),
    (("--min-accept", "0"), "min_accept: expected an integer >= 1"),
    (("--cache", "duel"), "cache: expected one of none, prefix, dual, got 'duel'"),
    (("--cache-refresh", "2"), "cache_refresh: needs cache to be prefix or dual"),
    (("--cache", "dual", "--cache-refresh", "0"), "cache_refresh: expected an integer >= 1"),
    (("--batch-size", "0"), "--batch-size"),
    (("--device", "nowhere"), "device: 'nowhere' cannot be used here"),
    (("--trace",), "--trace adds to JSON lines"),
    (("--stream",), "--stream needs a terminal"),
    (("--stream", "--json"), "exclude each other"),
    (("--file", "prompts.txt"), "expected a prompt or --file, got both"),
    (("--treshold", "0.5"), "No such option: --treshold"),
]


@pytest.mark.parametrize(
    ("options", "told"), GENERATE_ERRORS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_bad_settings_are_one_line(checkpoint: Path, options: tuple[str, ...], told: str) -> None:
    assert told in fails("generate", PROMPT, "--model", checkpoint, *options)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("", "prompt: expected a prompt, got an empty one"),
        (" \t", "prompt: expected a prompt, got an empty one"),
        ("sudoku 1<|mdm_mask|>2", "the mask token (1) is in the prompt"),
        ("sum 1+2 = \N{SNOWMAN}?", "cannot encode '\N{SNOWMAN}?'"),
        ("sum 1\n+x\n", "cannot encode 'x'"),
        ("sum \udcff", "prompt: expected UTF-8 text"),
        ("sum " + "1" * 300, "the model's limit is 256"),
    ],
)
def test_bad_prompts_are_one_line(checkpoint: Path, prompt: str, told: str) -> None:
    assert told in fails("generate", prompt, "--model", checkpoint)


def test_bad_prompt_files_are_one_line(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "gap").write_text("sum 1\n\nsum 2\n")
    (tmp_path / "late").write_text("sum 1\n" * 40 + "sum x\n")
    (tmp_path / "latin").write_bytes("sum é".encode("latin-1"))
    for name, told in {
        "absent": "absent: No such file or directory",
        ".": "Is a directory",
        "empty": "empty: expected one prompt a line, got nothing",
        "gap": "gap, line 2: expected a prompt, got an empty one",
        "late": "cannot encode 'x' in 'sum x'",
        "latin": "latin, line 1: expected UTF-8 text, got the byte 0xe9",
    }.items():
        assert told in fails("generate", "--file", tmp_path / name, "--model", checkpoint)
    assert "expected a prompt or --file, got neither" in fails("generate", "--model", checkpoint)
    assert "standard input: expected one prompt a line" in fails("generate", "-", "--model", checkpoint, stdin="")
    assert "standard input, line 1: expected UTF-8" in fails("generate", "-", "--model", checkpoint, stdin=b"\xff\n")


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("sum " + "1" * 300, "the model's limit is 256"),
        ("sum 1<|mdm_mask|>", "the mask token (1) is in the prompt"),
        ("sum x", "cannot encode 'x' in 'sum x'"),
    ],
)
@pytest.mark.parametrize("output", [(), ("--json",)])
def test_no_answer_comes_before_a_later_prompts_fault(
    checkpoint: Path, tmp_path: Path, last: str, told: str, output: tuple[str, ...]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"{PROMPT}\nsum 1+2\n{last}\n")
    assert told in fails("generate", "--file", file, "--model", checkpoint, "--batch-size", "1", *output)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def other_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def unknown_preset(folder: Path) -> None:
    (folder / "presets.json").write_text('{"sudoku": {"wino": {"threshold": 2}}}')


def change_weights(folder: Path, change: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.transformer.blocks.0.q_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "misshapen":
        tensors[name] = tensors[name][:-1].contiguous()
    else:
        tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (spoil_config, "config.json is not valid JSON"),
        (other_model, "expected model_type 'llada' or 'mmada', got 'bert'"),
        (no_config, "has no config.json"),
        (no_weights, "has no model.safetensors"),
        (no_tokenizer, "tokenizer"),
        (truncate, "is not a readable safetensors file"),
        (lambda folder: (folder / "presets.json").write_text("{]"), "presets.json is not valid JSON"),
        (lambda folder: (folder / "presets.json").write_text('{"sum": 3}'), "expected task -> decoder -> settings"),
        (unknown_preset, "threshold: expected in (0, 1], got 2"),
        (lambda folder: change_weights(folder, "missing"), "misses tensors model.transformer.blocks.0.q_proj.weight"),
        (
            lambda folder: change_weights(folder, "misshapen"),
            "misshapen tensors model.transformer.blocks.0.q_proj.weight",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_checkpoints_are_one_line(broken: Path, damage: object, told: str) -> None:
    damage(broken)  # type: ignore[operator]
    assert told in fails("generate", PROMPT, "--model", broken)


def test_nan_in_the_weights_is_one_line_after_where_it_decodes(broken: Path) -> None:
    change_weights(broken, "nan")
    result = wino("generate", PROMPT, "--model", broken)
    where, told = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (2, "")
    assert where.startswith(f"{broken} on ") and "the model's logits are NaN or infinite for sequence 0" in told


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    for command in (("generate", PROMPT), ("eval", "--task", "sum"), ("demo",)):
        assert "no such folder" in fails(*command, "--model", tmp_path / "absent")


# --- eval -------------------------------------------------------------------------------------------------------------


def test_eval_compares_every_decoder_in_a_plain_table(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    text = succeeds("eval", "--task", "sudoku", "--n", "6", "--model", checkpoint, "--json", out)
    assert text.isascii()
    figures = json.loads(out.read_text())
    assert figures["source"] == {"split": "heldout", "item_seed": 0} and figures["n"] == len(figures["items"]) == 6
    assert [result["decoder"] for result in figures["results"]] == [
        "low_confidence", "low_confidence, 2 a step", "low_confidence, 4 a step", "confidence_threshold", "wino",
    ]  # fmt: skip
    for result in figures["results"]:
        assert {"accuracy", "ci_low", "ci_high", "mean_steps", "step_reduction", "tokens_per_forward"} <= set(result)
        assert len(result["texts"]) == len(result["correct"]) == len(result["steps"]) == len(result["tokens"]) == 6
        assert result["step_reduction"] == pytest.approx(sum(result["tokens"]) / sum(result["steps"]))
        line = next(line for line in text.splitlines() if line.startswith(f"{result['decoder']}  "))
        assert f"{result['mean_steps']:.1f}" in line and f"{result['step_reduction']:.2f}x" in line
    assert figures["results"][-1]["settings"]["threshold"] == 0.3
    widths = {len(line) for line in text.splitlines()[1:7]}
    assert len(widths) == 1 and max(widths) <= 80
    assert os.listdir(tmp_path) == ["figures.json"]


def test_eval_of_one_decoder_with_its_own_settings(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ("--split", "validation", "--n", "3", "--decoder", "wino", "--threshold", "0.5", "--block-length", "11")
    succeeds("eval", "--task", "sum", "--model", checkpoint, "--json", out, *options)
    (result,) = json.loads(out.read_text())["results"]
    assert result["settings"]["threshold"] == 0.5 and result["settings"]["block_length"] == 11
    assert result["settings"]["threshold_back"] == 0.8 and result["settings"]["max_new_tokens"] == 44


def test_eval_gives_every_decoder_the_settings_they_share(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ("--n", "2", "--temperature", "0.5", "--seed", "3", "--cfg-scale", "0.1", "--block-length", "5")
    options += ("--cache", "dual", "--stop-at-eos")
    succeeds("eval", "--task", "sudoku", "--model", checkpoint, "--json", out, *options)
    settings = [result["settings"] for result in json.loads(out.read_text())["results"]]
    assert len(settings) == 5
    for chosen in settings:
        assert (chosen["temperature"], chosen["seed"], chosen["cfg_scale"], chosen["block_length"]) == (0.5, 3, 0.1, 5)
        assert (chosen["cache"], chosen["stop_at_eos"]) == ("dual", True)
    assert settings[-1]["threshold"] == 0.3 and settings[-1]["verify_last"]


def test_shared_settings_keep_the_tokens_a_step_of_the_baselines() -> None:
    def steps(**settings: int) -> list[int | None]:
        return [config.steps for config in select_configs(TASKS["sum"], settings, presets).values()][:3]

    presets = {"sum": {"wino": {"block_length": 11}}}
    assert steps(seed=1) == [44, 22, 11]
    assert steps(max_new_tokens=32) == [32, 16, 8]
    assert steps(block_length=11) == [44, 24, 12]
    assert steps(max_new_tokens=32, block_length=8) == [32, 16, 8]
    configs = select_configs(TASKS["sum"], {"max_new_tokens": 32}, presets)
    assert {config.block_size for config in configs.values()} == {32}
    assert select_configs(TASKS["sum"], {"seed": 1}, presets)["wino"].block_size == 11


def test_eval_of_published_files(checkpoint: Path, tmp_path: Path) -> None:
    countdown, sudoku, out = tmp_path / "c.jsonl", tmp_path / "s.csv", tmp_path / "out.json"
    countdown.write_text('{"input": "30,100,93", "output": "23"}\n{"input": "9,9,9", "output": "1"}\n')
    sudoku.write_text("Puzzle,Solution\n3102200002100320,3142243142131324\n")
    one = ("--decoder", "confidence_threshold", "--model", checkpoint, "--json", out)
    text = succeeds("eval", "--task", "countdown", "--data", countdown, *one)
    assert "countdown: 2 items" in text
    assert "1 of 2 items cannot be answered with plus and minus; they count as wrong." in text
    figures = json.loads(out.read_text())
    assert figures["unanswerable"] == 1 and figures["source"] == {"data": str(countdown)}
    assert figures["items"][0]["prompt"] == "countdown 030,093,100:023"
    text = succeeds("eval", "--task", "sudoku", "--data", sudoku, *one[:-1], tmp_path / "s.json")
    assert "sudoku: 1 items" in text and "count as wrong" not in text
    assert json.loads((tmp_path / "s.json").read_text())["items"][0]["answer"] == "3142243142131324"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "Missing option '--task'"),
        (("--task", "chess"), "task: expected one of sudoku"),
        (("--task", "sum", "--split", "train"), "split: expected one of validation, heldout, got 'train'"),
        (("--task", "sum", "--n", "0"), "--n"),
        (("--task", "sum", "--threshold", "0.5"), "--threshold belongs to one decoder"),
        (("--task", "sum", "--seed", "3", "--no-verify-last"), "--verify-last belongs to one decoder"),
        (("--task", "sum", "--block-length", "7"), "block_length: must divide max_new_tokens = 44, got 7"),
        (("--task", "sum", "--decoder", "best"), "decoder: expected one of"),
        (("--task", "sum", "--data", "absent.jsonl"), "absent.jsonl: No such file or directory"),
        (("--task", "sum", "--data", "/dev/null"), "no items in it"),
        (("--task", "sudoku", "--data", "/dev/null"), "no items in it"),
        (
            ("--task", "sum", "--json", "/absent/out.json"),
            "/absent/out.json: expected a file name in an existing folder",
        ),
        (("--task", "sum", "--json", "/tmp"), "/tmp: expected a file name"),
    ],
)
def test_bad_evaluations_are_one_line(checkpoint: Path, options: tuple[str, ...], told: str) -> None:
    assert told in fails("eval", "--model", checkpoint, *options)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    write_atomically(path, "old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out.json"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o022))


# --- demo -------------------------------------------------------------------------------------------------------------


def test_demo_into_a_pipe_is_plain_text(checkpoint: Path, tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    text = succeeds("demo", "--model", checkpoint, "--items", "2", "--record", picture)
    assert text.isascii()
    for task in TASKS.values():
        assert f"{task.name}: {task.title}, 2 held-out problems" in text
        assert re.search(rf"^{task.name}: WINO \d+\.\d % in .* \(95 % interval", text, flags=re.MULTILINE)
    assert len(re.findall(r"^decoder  .*\n(?:.+\n){5}", text, flags=re.MULTILINE)) == len(TASKS)
    assert all(text.count(f"  {title}: ") == len(TASKS) for title in demo_module.SHOWN.values())
    svg = picture.read_text()
    xml.etree.ElementTree.fromstring(svg)
    assert "@font-face" not in svg and "url(https" not in svg and "WINO" in svg


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_tables_fit_the_terminal(width: int) -> None:
    figures = Evaluation(["a"] * 100, [True] * 50 + [False] * 50, [20] * 100, [3] * 100, 0.01, scores={"cider": 1.234})
    labels = ("low_confidence, 4 a step", "confidence_threshold", "wino")
    console = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)
    report.print_table(console, dict.fromkeys(labels, figures))
    lines = plain(console.file.getvalue())  # type: ignore[attr-defined]
    assert max(map(cell_len, lines)) <= width
    screen = "\n".join(lines)
    assert all(re.search(rf"^{label[:14]}.* 50\.0 ", screen, re.MULTILINE) for label in labels)
    assert ("tok/s" in lines[0]) == (width >= 88) and ("A wider terminal shows" in screen) == (width < 88)


def plain(frame: str) -> list[str]:
    return Text.from_ansi(frame).plain.splitlines()


@pytest.mark.parametrize("width", [40, 80, 100])
def test_demo_on_a_terminal_fits_and_is_short(session: Session, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    now = [0.0]
    monkeypatch.setattr(demo_module.time, "monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(demo_module.time, "sleep", sleep)
    for task in TASKS.values():
        console = Console(file=io.StringIO(), force_terminal=True, width=width, height=40, highlight=False)
        show = demo_module.prepare(session, task, seed=0)
        demo_module.play(console, session, show, animate=True, speed=1.0)
        lines = plain(console.file.getvalue())  # type: ignore[attr-defined]
        assert max(map(cell_len, lines)) <= width
        screen = "\n".join(lines)
        assert (
            "passes" in screen
            and not re.search(r"\b1 passes", screen)
            and "tok/s" in screen
            and ("solved" in screen or "wrong" in screen)
        )
    assert 5 < sum(slept) < 45


def test_a_stage_replays_both_decodes_to_their_final_tokens(session: Session) -> None:
    for task in TASKS.values():
        show = demo_module.prepare(session, task, seed=1)
        stage = demo_module.Stage(Console(file=io.StringIO()), session, show)
        assert stage.ticks == task.max_new_tokens
        stage.move_to(stage.ticks)
        for board, decode in zip(stage.boards, show.decodes, strict=True):
            assert None not in board.tokens
            assert session.tokenizer.decode(board.tokens[: decode.length], skip_special_tokens=True) == decode.text
            positions = [part for line in board.lines for part in line if isinstance(part, int)]
            assert sorted(positions) == list(range(task.max_new_tokens))


def record(accepted: dict[int, int], remasked: dict[int, int] | None = None) -> StepRecord:
    remasked = remasked or {}
    return StepRecord(
        0, 0, list(accepted), list(accepted.values()), [1.0] * len(accepted), list(remasked), list(remasked.values()),
        [0.1] * len(remasked),
    )  # fmt: skip


def test_a_token_taken_back_flashes_red_and_becomes_a_mask(session: Session) -> None:
    one, two = session.tokenizer.convert_tokens_to_ids(["1", "2"])
    board = Board(Glyphs(session.tokenizer, session.ends, Console(file=io.StringIO())), 4)
    mask = board.glyphs.mask
    assert board.text(flash=False).plain == mask * 4
    board.apply(record({0: one, 2: two}))
    assert board.text(flash=True).plain == f"1{mask}2{mask}"
    board.apply(record({1: two}, {2: two}))
    flash = board.text(flash=True)
    assert flash.plain == f"122{mask}"
    assert [span.style for span in flash.spans if span.start <= 2 < span.end] == [TAKEN_BACK]
    assert board.text(flash=False).plain == f"12{mask}{mask}"


def test_streaming_draws_each_step(session: Session) -> None:
    one, two = session.tokenizer.convert_tokens_to_ids(["1", "2"])
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with LiveDecode(console, session.tokenizer, session.ends, 2) as live:
        live.put(torch.tensor([[5]]))
        live.put_step(0, None, [record({0: one})])
        live.put_step(1, None, [record({1: two}, {0: one})])
        live.put_step(2, None, [None])
        live.end()
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[1;37;41m1" in drawn  # white on red
    assert plain(drawn)[-1].endswith("2")


def test_a_console_without_unicode_gets_ascii(session: Session) -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), force_terminal=True, width=80)
    show = demo_module.prepare(session, TASKS["sudoku"], seed=0)
    demo_module.play(console, session, show, animate=False, speed=1.0)
    console.file.flush()


@pytest.mark.parametrize(
    ("options", "told"),
    [(("--items", "0"), "--items"), (("--record", "/absent/x.svg"), "expected a file name in an existing folder")],
)
def test_bad_demos_are_one_line(checkpoint: Path, options: tuple[str, ...], told: str) -> None:
    assert told in fails("demo", "--model", checkpoint, *options)


# --- demo of pictures -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained MMaDA with its image tokenizer."""
    return save_small_mmada(tmp_path_factory.mktemp("mmada"))


def test_picture_demo_into_a_pipe_is_plain_text(seeing: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    text = succeeds("demo", "--multimodal", "--model", seeing, "--items", "2", "--record", sheet)
    assert text.isascii()
    for task in PICTURE_TASKS.values():
        assert f"{task.name}: {task.title}, 2 held-out problems" in text
        assert re.search(rf"^{task.name}: WINO \d+\.\d % in ", text, flags=re.MULTILINE)
    assert re.search(r"^decoder +acc % +95 % CI +cider +steps", text, flags=re.MULTILINE)
    assert re.search(r"^caption: .* CIDER: WINO \d+\.\d{3}, one token a pass", text, flags=re.MULTILINE)
    for title in demo_module.SHOWN.values():
        assert text.count(f"  {title}: ") == len(PICTURE_TASKS)
    assert len(re.findall(r"\d of \d objects drawn as asked", text)) == 4
    with Image.open(sheet) as image:
        assert image.format == "PNG" and image.width == 1000 and image.height > 9 * 144
        task = PICTURE_TASKS["caption"]
        first = task.picture(next(task.items("heldout", 0))).resize((144, 144), Image.Resampling.NEAREST)
        shown = np.asarray(image)
        places = [y for y in range(90) if np.array_equal(shown[y : y + 144, 16:160], np.asarray(first))]
    assert len(places) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_picture_demo_on_a_terminal_fits(seeing: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module.time, "sleep", lambda seconds: None)
    session = open_session(str(seeing), pictures=True)
    task = PICTURE_TASKS["caption"]
    drawn_on = io.StringIO()
    console = Console(file=drawn_on, force_terminal=True, width=width, height=50, highlight=False)
    show = demo_module.prepare(session, task, 0)
    demo_module.play(console, session, show, animate=False, speed=1.0)
    drawn, config = gallery.draw_captions(session, 4, 0)
    gallery.print_drawn(console, drawn, config)
    lines = plain(drawn_on.getvalue())
    assert max(map(cell_len, lines)) <= width and sum("\u2580" in line for line in lines) >= 16 + 12
    screen = "\n".join(lines)
    assert all(title in screen for title in demo_module.SHOWN.values())
    assert screen.count("\u2500 solved \u2500") + screen.count("\u2500 wrong \u2500") == len(show.decodes)
    assert config.seed == 0 and config.decoder == "maskgit"


def test_a_heading_in_a_pipe_is_one_line() -> None:
    written = io.StringIO()
    demo_module.heading(Console(file=written, width=80), "question", "long " * 30)
    assert written.getvalue() == f"\nquestion: {'long ' * 30}\n"


def test_drawn_objects_are_counted(seeing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(str(seeing), pictures=True)
    scenes = [scene_of(item) for item in islice(PICTURE_TASKS["caption"].items("heldout", 0), 3)]
    pictures = [render(scenes[0]), render(scenes[1][1:]), render(())]
    monkeypatch.setattr(gallery, "from_pixels", lambda pixels: pictures)
    drawn, _ = gallery.draw_captions(session, 3, 0)
    assert [one.found for one in drawn] == [len(scenes[0]), len(scenes[1]) - 1, 0]
    assert drawn[1].caption == f"{len(scenes[1]) - 1} of {len(scenes[1])} objects drawn as asked"


def test_half_blocks_are_the_pixels() -> None:
    picture = Image.new("RGB", (2, 2))
    picture.putdata([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)])
    text = half_blocks(picture, 2)
    assert text.plain == "\u2580\u2580\n"
    assert [str(span.style) for span in text.spans] == ["#ff0000 on #0000ff", "#00ff00 on #090909"]


def test_masks_are_as_wide_as_what_comes(session: Session) -> None:
    board = Board(Glyphs(session.tokenizer, session.ends, Console(file=io.StringIO())), 2, widths=[3, 1])
    assert board.text(flash=False).plain == board.glyphs.mask * 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--record", "sheet.svg"), "--record: with --multimodal expected a PNG file, got sheet.svg"),
        (("--model", "wino-tiny"), "wino-tiny: expected a MMaDA, got model_type 'llada'"),
    ],
)
def test_bad_picture_demos_are_one_line(seeing: Path, options: tuple[str, ...], told: str) -> None:
    assert told in fails("demo", "--multimodal", "--model", seeing, *options)


# --- doctor and errors ------------------------------------------------------------------------------------------------


def test_doctor_reports_kernels_packages_and_model() -> None:
    text = succeeds("doctor")
    for name in ("torch", "backends", "transformers", "tokenizers", "safetensors", "wino-tiny"):
        assert name in text


def test_unknown_commands_suggest() -> None:
    assert "No such command 'genrate'" in fails("genrate")


def test_messages_are_one_printable_line() -> None:
    assert one_line("a\nb\r\n\x1b[31mc\t d") == "a b [31mc d"
    assert len(one_line("x" * 10_000)) == 500
    assert describe(FileNotFoundError(2, "No such file", "x\ny")) == "x y: No such file"
    assert describe(KeyError("a bug")) is None and describe(RuntimeError("a bug")) is None


# --- real processes ---------------------------------------------------------------------------------------------------


def start(*arguments: str | Path, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "wino", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | FAST,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def endless(checkpoint: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that prints JSON lines for longer than any test waits."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n" * 20_000)
    process = start("generate", "--file", prompts, "--model", checkpoint, "--json", "--batch-size", "4")
    yield process
    process.kill()
    process.wait()


def test_control_c_is_a_short_line_and_only_whole_lines_are_out(endless: subprocess.Popen[bytes]) -> None:
    assert endless.stdout is not None
    first = endless.stdout.readline()
    endless.send_signal(signal.SIGINT)
    rest, stderr = endless.communicate(timeout=300)
    placed, *told = stderr.splitlines()
    assert (endless.returncode, told) == (130, [b"wino: interrupted"]) and b"kernels: " in placed
    assert (first + rest).endswith(b"\n") and all(json.loads(line) for line in (first + rest).splitlines())


def test_a_closed_pipe_ends_quietly(endless: subprocess.Popen[bytes]) -> None:
    assert endless.stdout is not None and endless.stderr is not None
    endless.stdout.readline()
    endless.stdout.close()
    assert endless.wait(timeout=300) == 141
    (placed,) = endless.stderr.read().splitlines()
    assert b"kernels: " in placed


def script(*arguments: str, options: tuple[str, ...] = (), before: str = "") -> subprocess.CompletedProcess[str]:
    """Runs what the installed script ``wino`` runs."""
    target = re.search(r'^wino = "(\w+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert target is not None
    return subprocess.run(
        [sys.executable, *options, "-c", f"{before}\nfrom {target[1]} import {target[2]} as run\nrun()", *arguments],
        env=os.environ | FAST | {"PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
    )


def test_the_script_without_the_extra_says_what_to_install() -> None:
    """``-S`` hides site-packages: nothing but Python and our own folder is there."""
    bare = script("demo", options=("-S",))
    assert (bare.returncode, bare.stdout) == (2, "")
    assert re.fullmatch(
        r"wino: needs .*transformers.*rich missing\): pip install 'wino-kernels\[decode\]'\n", bare.stderr
    )
    hide = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'rich' else f(n, *a)"
    without_rich = script("--version", before=hide)
    assert (without_rich.returncode, without_rich.stdout) == (2, "")
    assert "(rich missing)" in without_rich.stderr and without_rich.stderr.count("\n") == 1


def test_the_script_with_the_extra_is_the_command_line() -> None:
    ran = script("generate", "--help")
    assert ran.returncode == 0 and "--threshold-back" in ran.stdout and ran.stderr == ""
    assert script("genrate").returncode == 2


def test_bad_input_in_a_real_process() -> None:
    process = start("eval", "--data", "x")
    stdout, stderr = process.communicate(timeout=300)
    assert (process.returncode, stdout, stderr) == (2, b"", b"wino: Missing option '--task'.\n")


def test_streaming_on_a_real_terminal(checkpoint: Path) -> None:
    terminal, other_end = pty.openpty()
    command = [sys.executable, "-m", "wino", "generate", PROMPT, "--model", str(checkpoint), "--stream"]
    environment = os.environ | FAST | {"TERM": "xterm-256color", "COLUMNS": "80"}
    process = subprocess.Popen(command, stdin=other_end, stdout=other_end, stderr=other_end, env=environment)
    os.close(other_end)
    drawn, deadline = b"", time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        drawn += chunk
    os.close(terminal)
    assert process.wait(timeout=10) == 0
    text = drawn.decode()
    assert "\x1b[" in text and PROMPT in text and re.search(r"\d+ tokens in \d+ forward passes", text)


# --- device, length, pictures -----------------------------------------------------------------------------------------


def test_where_the_model_decodes_is_one_line_on_stderr(checkpoint: Path) -> None:
    result = wino("generate", "sum 34+08-15", "--model", checkpoint)
    assert result.exit_code == 0
    threads, isa = torch.get_num_threads(), wino_kernels.backends.cpu_isa()
    expected = f"{checkpoint} on cpu with {threads} thread{'s' * (threads > 1)}, float32, kernels: cpu ({isa})\n"
    assert torch.cuda.is_available() or result.stderr == expected


def test_a_gpu_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def empty(*size: int, device: object) -> torch.Tensor:
        asked.append(device)
        return torch.zeros(0)

    monkeypatch.setattr(device.torch, "empty", empty)
    for available, rank, expected in ((True, None, "cuda:0"), (True, "3", "cuda:3"), (False, "3", "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        monkeypatch.setenv("LOCAL_RANK", rank) if rank else monkeypatch.delenv("LOCAL_RANK", raising=False)
        for given in ("auto", None):
            device.choose_device(given)
            assert asked.pop() == expected
    device.choose_device("cuda:1")
    assert asked == ["cuda:1"]


def test_an_unknown_device_is_one_line(checkpoint: Path) -> None:
    for name in ("cuda:77", "tpu", "cpu:cpu"):
        assert f"device: '{name}' cannot be used here" in fails(
            "generate", "sum 1", "--model", checkpoint, "--device", name
        )


def test_the_length_is_the_checkpoints_or_what_fits(checkpoint: Path, broken: Path) -> None:
    prompt, limit = "34+08-15", 256
    answer = json.loads(succeeds("generate", prompt, "--model", checkpoint, "--json"))
    fitting = len(answer["generated_ids"])
    assert 200 < fitting < limit
    (broken / "generation_config.json").write_text(json.dumps({"max_new_tokens": 12}))
    answer = json.loads(succeeds("generate", prompt, "--model", broken, "--json"))
    assert len(answer["generated_ids"]) == 12
    told = fails("generate", prompt, "--model", checkpoint, "--max-new-tokens", str(fitting + 1))
    assert "--max-new-tokens" in told and f"{fitting} fit" in told and f"limit is {limit}" in told


def test_generate_verbosely_tells_passes(checkpoint: Path) -> None:
    result = wino("generate", "sum 34+08-15", "-v", "--model", checkpoint)
    assert re.search(r"^\d+ tokens in \d+ forward passes$", result.stderr, re.MULTILINE)
    assert "passes" not in result.stdout


def test_generate_about_a_picture(seeing: Path, tmp_path: Path) -> None:
    for name, scene in (("one", 0), ("two", 1)):
        item = next(islice(PICTURE_TASKS["caption"].items("heldout", 0), scene, None))
        PICTURE_TASKS["caption"].picture(item).save(tmp_path / f"{name}.png")
    options = ("--model", seeing, "--max-new-tokens", "8", "--json")
    seen = [
        json.loads(succeeds("generate", "describe the picture", "--image", tmp_path / f"{name}.png", *options))
        for name in ("one", "two")
    ]
    assert all(len(answer["generated_ids"]) == 8 for answer in seen)
    assert "expected a MMaDA" in fails("generate", "sum 1", "--image", tmp_path / "one.png")
    (tmp_path / "not.png").write_text("no picture")
    assert "not.png" in fails("generate", "describe the picture", "--image", tmp_path / "not.png", *options)
