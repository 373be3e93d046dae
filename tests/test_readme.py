"""What README says can be run or looked up: its code, commands, options, make targets, names, versions and figures."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

import wino
import wino_kernels
from wino.cli import app
from wino.decoders import DECODERS
from wino.tasks import get_task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

sys.path.append(str(ROOT / "benchmarks"))
import tables  # noqa: E402


def fenced(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def support(row: str) -> str:
    [found] = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", README, re.MULTILINE)
    return found


def test_the_ten_lines_decode_a_sum(capsys: pytest.CaptureFixture[str]) -> None:
    lines, *_ = fenced("python")
    exec(compile(lines, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"=053 in \d+ forward passes\n", printed), printed
    assert "StepRecord" in printed


def test_the_operators_alone() -> None:
    _, lines = fenced("python")
    block, vocabulary, mask_id = 8, 126464, 126336
    masked = torch.arange(block)[None] >= 3
    names: dict[str, Any] = {
        "logits": torch.randn(1, block, vocabulary, generator=torch.Generator().manual_seed(0)) * 4,
        "tokens": torch.where(masked, mask_id, 5),
        "masked": masked,
        "revocable": ~masked,
        "last_accepted": torch.tensor([3], dtype=torch.int32),
    }
    names["candidate_ids"] = torch.where(masked, -1, names["tokens"])
    exec(compile(lines, "README.md", "exec"), names)
    assert int(names["num_accepted"]) >= 1


def commands() -> list[list[str]]:
    """Every ``wino ...`` of a code block or between backticks, as words."""
    blocks = re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(wino [^`]+)`", README)
    found = []
    for line in lines:
        if not line.startswith(("wino ", "accelerate ")):
            continue
        words = shlex.split(line, comments=True)
        if words[:2] == ["accelerate", "launch"]:
            words = words[words.index("-m") + 1 :]
        found.append(words[1:])
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_and_their_options_exist(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    words = list(words)
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known
    for option, value in pairwise(words):
        if option == "--task":
            assert get_task(value).name == value
        if option == "--decoder":
            assert value in DECODERS


def test_the_commands_are_found() -> None:
    assert len(commands()) >= 15


def test_make_targets_exist() -> None:
    named = set(re.findall(r"`make ([a-z0-9-]+)", README)) | set(re.findall(r"^make ([a-z0-9-]+)", README, re.M))
    assert {"demo", "test", "bench", "quality", "plus"} <= named
    assert not {target for target in named if not re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE)}


def test_extras_exist() -> None:
    named = {extra for found in re.findall(r"\.\[([a-z,]+)\]", README) for extra in found.split(",")}
    named |= set(re.findall(r"[Ee]xtra `([a-z]+)`", README))
    assert "decode" in named
    assert named <= set(PYPROJECT["project"]["optional-dependencies"])


def test_the_table_of_decoders_is_whole() -> None:
    named = set(re.findall(r"`([a-z_]+)`", support("decoders")))
    assert named - {"verify_last"} == set(DECODERS)


def test_versions_are_those_of_the_package() -> None:
    project = PYPROJECT["project"]
    assert f">={support('Python').split()[0]}" == project["requires-python"]
    assert f"torch>={support('Torch').split()[0]}" in project["dependencies"]
    triton = re.search(r"Triton (\S+) to (\S+) ", support("GPU kernels"))
    assert triton is not None
    assert f"triton=={triton[1]}." in MAKEFILE
    tested = next(name for name in project["optional-dependencies"]["test"] if name.startswith("triton"))
    major, minor = map(int, triton[2].split("."))
    assert tested.startswith(f"triton>={triton[1]},<{major}.{minor + 1};")


def test_public_names_exist() -> None:
    for name in re.findall(r"`wino\.([a-z_]+)(?:\([^`]*\))?`", README):
        assert hasattr(wino, name) or name == "multimodal", name
    for name in re.findall(r"`([a-z]+(?:_[a-z]+)+_?)`", README):
        if name.split("_")[0] in ("score", "accept", "linear", "shadow", "trajectory"):
            assert name in wino_kernels.__all__, name


@pytest.mark.parametrize("path", tables.documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_generated_figures_are_those_of_the_measurements(path: Path) -> None:
    """By the command that the text names; a figure edited by hand differs."""
    assert tables.documents()[path] == path.read_text(encoding="utf-8")


def test_figures_of_the_gpu_are_those_of_its_table() -> None:
    found = json.loads((ROOT / "docs" / "gpu_nvidia_h200.json").read_text())
    sentence = re.search(r"LLaDA-8B takes (\d+) µs \(published: (\d+), `torch.compile`: (\d+)\)", README)
    step = re.search(r"step with it (\d+) µs \((\d+), (\d+)\)", " ".join(README.split()))
    assert sentence is not None and step is not None
    for match, operator in ((sentence, "score_tokens"), (step, "wino_step_")):
        [row] = [
            row
            for row in found["rows"]
            if (row["operator"], row["case"], row["backend"]) == (operator, "LLaDA-8B B=1 K=128 bfloat16", "triton")
        ]
        names = ("ours", "published", "torch.compile, max and sum")
        assert [int(group) for group in match.groups()] == [round(row["microseconds"][n]["median"]) for n in names]


def test_python_blocks_parse() -> None:
    assert len(fenced("python")) == 2
    for block in fenced("python"):
        ast.parse(block)
