"""The table of launch configurations: which entry a chip gets, what a tuned table may hold, and how it is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="launch configurations belong to Triton kernels")

from triton.runtime.errors import OutOfResources

from wino_kernels import backends, tuned
from wino_kernels.resources import cases
from wino_kernels.triton import configs, tune
from wino_kernels.triton.launch import Options, launch, recording

CPU = torch.device("cpu")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the tuner's table lies; nothing of it is remembered from or for other tests."""
    path = tmp_path / "configs" / "tuned.json"
    monkeypatch.setenv("WINO_TUNED", str(path))
    for cached in (tuned.rows, configs.tuned, configs._config):
        cached.cache_clear()
    yield path
    for cached in (tuned.rows, configs.tuned, configs._config):
        cached.cache_clear()


def chosen(operator: str, shape_class: str, target: str) -> configs.Config:
    with recording(target):
        return configs.config(operator, shape_class, CPU)


@pytest.mark.parametrize(
    ("chip", "listed", "nearest"),
    [
        ("sm_90", ["sm_80", "sm_90", "sm_100"], "sm_90"),
        ("sm_89", ["sm_80", "sm_90"], "sm_80"),
        ("sm_120", ["sm_80", "sm_90", "sm_100"], "sm_100"),  # by number, not by name
        ("sm_75", ["sm_80", "sm_90"], None),
        ("gfx942", ["sm_80", "sm_90"], None),
        ("gfx950", ["gfx90a", "gfx942", "sm_100"], "gfx942"),
        ("gfx942", ["gfx90a"], "gfx90a"),  # hexadecimal
        ("sm_80", ["gfx90a"], None),
        ("interpreter", ["sm_80"], None),
        ("sm_90", [], None),
    ],
)
def test_nearest_chip(chip: str, listed: list[str], nearest: str | None) -> None:
    assert configs.nearest_chip(chip, {name: {} for name in listed}) == nearest


def test_shipped_entry_of_a_chip_beats_a_tuned_one_of_an_older_chip(table: Path) -> None:
    (operator, chip, shape_class), shipped = next(item for item in configs.CHIPS.items() if item[0][1] == "sm_90")
    older = configs.DEFAULTS[operator, shape_class] | {"num_warps": 1}
    tune.write([{"operator": operator, "chip": "sm_80", "shape_class": shape_class, "config": older}], table)
    assert chosen(operator, shape_class, chip) == shipped
    assert chosen(operator, shape_class, "sm_80") == older


def test_every_entry_of_a_chip_has_a_default() -> None:
    for operator, _, shape_class in configs.CHIPS:
        assert (operator, shape_class) in configs.DEFAULTS
    for operator, chip, shape_class in configs.CHIPS:
        assert configs.CHIPS[operator, chip, shape_class].keys() == configs.DEFAULTS[operator, shape_class].keys()


def test_without_a_tuned_table(table: Path) -> None:
    assert not table.exists() and configs.tuned() == {}
    assert chosen("score_tokens", "2 bytes", "sm_75") == configs.DEFAULTS["score_tokens", "2 bytes"]


def test_written_table_is_preferred_on_its_chip_and_newer_ones(table: Path) -> None:
    entry = configs.DEFAULTS["score_tokens", "2 bytes"] | {"num_warps": 2}
    row = {"operator": "score_tokens", "chip": "sm_90", "shape_class": "2 bytes", "config": entry}
    tune.write([row], table)
    assert [path.name for path in table.parent.iterdir()] == [table.name]
    assert chosen("score_tokens", "2 bytes", "sm_90") == entry
    assert chosen("score_tokens", "2 bytes", "sm_100") == entry
    assert chosen("score_tokens", "2 bytes", "sm_80") == configs.DEFAULTS["score_tokens", "2 bytes"]
    assert chosen("score_tokens", "4 bytes", "sm_90") == configs.DEFAULTS["score_tokens", "4 bytes"]
    assert tune.table({}) == [row]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "3",
        '[{"operator": "score_tokens"}]',
        '[{"operator": "score_tokens", "chip": "sm_90", "shape_class": "2 bytes", "config": [8]}]',
        '[{"operator": "score_tokens", "chip": "sm_90", "shape_class": "2 bytes", "config": {"num_warps": "many"}}]',
        '[{"operator": "score_tokens", "chip": "sm_90", "shape_class": "2 bytes", "config": {"num_warps": 8}}]',
        '[{"operator": "score_tokens", "chip": "sm_90", "backend": "cuda", "config": {}}]',
        '[{"operator": "no_operator", "chip": "sm_90", "shape_class": "2 bytes", "config": {"num_warps": 8}}]',
    ],
)
def test_broken_table_names_the_file(table: Path, content: str) -> None:
    table.parent.mkdir()
    table.write_text(content)
    with pytest.raises(ValueError, match=r"tuned\.json: not a table of measurements"):
        configs.tuned()


def test_path_of_the_tuned_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WINO_TUNED", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert tuned.path() == Path("/cache/wino_kernels/tuned.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tuned.path() == Path.home() / ".cache/wino_kernels/tuned.json"


def test_auto_takes_the_backend_that_was_measured_as_faster(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On that chip and for that operator alone."""
    tune.write([{"operator": "wino_step_", "chip": "sm_90", "backend": "cuda"}], table)
    assert backends.serving("auto", "wino_step_", "cuda") == "triton"  # there is no such GPU here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tuned, "chip_of", lambda device: "sm_90")
    monkeypatch.setattr(backends, "_refusal", lambda *_: None)
    assert backends.serving("auto", "wino_step_", "cuda") == "cuda"
    assert backends.serving("auto", "score_tokens", "cuda") == "triton"
    assert backends.serving("auto", "wino_step_", "cpu") == "cpu"
    monkeypatch.setattr(tuned, "chip_of", lambda device: "sm_80")
    assert backends.serving("auto", "wino_step_", "cuda") == "triton"


def test_backends_are_compared_on_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the interpreter and the emulated CUDA kernels in place of a GPU; the times are given, not measured."""
    times = iter([2.0, 1.0, 1.0, 1.0] * len(tune.COMPARED))
    monkeypatch.setattr(tune.triton.testing, "do_bench", lambda call, return_mode: next(times))
    monkeypatch.setattr(tune, "LLADA", tune.LLADA._replace(vocabulary=300))
    for operator in tune.COMPARED:
        assert tune.faster_backend(operator, CPU) == "cuda"
        assert tune.faster_backend(operator, CPU) == "triton"  # no gain
    assert {row["backend"] for row in tune.table({("accept_", "sm_90"): "cuda"})[-1:]} == {"cuda"}


@pytest.mark.parametrize(
    ("environment", "said"), [({}, "no GPU here: run it on the machine"), ({"TRITON_INTERPRET": "1"}, "interpreted")]
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_says_so(table: Path, environment: dict[str, str], said: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "wino_kernels.triton.tune"]
    finished = subprocess.run(command, capture_output=True, text=True, env={**kept, **environment})
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: ") and said in finished.stderr
    assert not table.exists()


def test_every_task_has_a_default_and_is_not_in_place() -> None:
    assert {task.operator for task in tune.tasks()} == set(tune.VARIED)
    for task in tune.tasks():
        assert not task.operator.endswith("_")
        current = configs.DEFAULTS[task.operator, task.shape_class]
        tried = list(tune.candidates(task.operator, current))
        assert tried[0] == current and len(tried) > 1
        for config in tried:
            assert config.keys() == current.keys()
            assert all(config[name] == current[name] for name in current if name not in tune.VARIED[task.operator])
            assert all(size & (size - 1) == 0 for name, size in config.items() if name.startswith("BLOCK"))


def test_score_tokens_keeps_its_chunks() -> None:
    """Its order of summation over V is the same on every chip that sums within a program alike."""
    assert tune.VARIED["score_tokens"] == ("num_warps",)


def test_fastest() -> None:
    def measured(seconds: dict[int, float | None]) -> Any:
        return lambda config: seconds[config["num_warps"]]

    def best(seconds: dict[int, float | None]) -> int:
        others = [{"num_warps": number} for number in list(seconds)[1:]]
        return tune.fastest({"num_warps": 4}, iter(others), measured(seconds))["num_warps"]

    assert best({4: 2.0, 8: 1.0, 16: 1.5}) == 8
    assert best({4: 1.0, 8: 0.99, 16: 2.0}) == 4  # within the noise
    assert best({4: 1.0, 8: None}) == 4
    assert best({4: None, 8: 2.0, 16: None}) == 8


@pytest.mark.parametrize("chip", ["sm_80", "sm_90", "sm_120", "gfx942"])
def test_what_is_measured_of_attention_is_what_is_written_down(
    chip: str, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel halves its tiles where there are few; a tile that was never run must not get into the table."""
    kernel = backends._load("triton").kernels["shadow_attention"]

    def call(query: Any, key: Any, value: Any, *, num_shadow: int, block_start: Any) -> Any:
        return kernel(query, key, value, num_shadow, block_start)

    monkeypatch.setattr(tune.ops, "shadow_attention", call)
    for task in tune.tasks():
        if task.operator == "shadow_attention":
            measured = task.make(torch.device("meta"))
            for config in tune.candidates(task.operator, chosen(task.operator, task.shape_class, chip)):
                tune._use(task, chip, config)
                with recording(chip) as launches:
                    measured()
                assert launches[0].constants.items() >= {k: v for k, v in config.items() if "BLOCK" in k}.items()
                assert launches[0].options.num_warps == config["num_warps"]


def test_what_is_measured_of_the_head_is_what_is_written_down(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many rows the library multiplies; the tile's configuration is measured where the tile is used."""
    kernel = backends._load("triton").kernels["linear_score_tokens"]

    def call(hidden: Any, weight: Any, ids: Any, *, round_to: Any) -> Any:
        return kernel(hidden, weight, ids, round_to=round_to)

    monkeypatch.setattr(tune.ops, "linear_score_tokens", call)
    tasks = [task for task in tune.tasks() if task.operator == "linear_score_tokens"]
    for task in tasks:
        config = chosen(task.operator, task.shape_class, "sm_90")
        with recording("sm_90") as launches:
            task.make(torch.device("meta"))()
        assert launches[0].options.entry == (task.operator, task.shape_class)
        assert launches[0].constants.items() >= {k: v for k, v in config.items() if "BLOCK" in k}.items()
    assert len(tasks) == 5


def test_a_chip_without_a_configuration_that_fits_can_be_tuned(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first candidate that runs is what the others are compared with."""
    task = tune.tasks()[0]
    fitting = configs.DEFAULTS[task.operator, task.shape_class] | {"num_warps": 2}

    def call() -> torch.Tensor:
        if configs.config(task.operator, task.shape_class, CPU) != fitting:
            raise RuntimeError("does not fit")
        return torch.zeros(1)

    monkeypatch.setattr(tune.triton.testing, "do_bench", lambda call, return_mode: 1.0)
    assert tune.tune(task._replace(make=lambda device: call), "interpreter", CPU) == fitting


def test_a_configuration_that_does_not_fit_is_named_with_the_remedy() -> None:
    class Kernel:
        __name__ = "score_tile"

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return self

        def __call__(self, **_: Any) -> None:
            raise OutOfResources(98304, 65536, "shared memory")

    entry = "linear_score_tokens", "2 bytes, N > 128"
    with pytest.raises(RuntimeError) as raised:
        launch(Kernel(), (1,), {"hidden": torch.zeros(1)}, {}, Options(8, 3, fp_fusion=False, entry=entry))
    for part in (
        *entry,
        "score_tile",
        "fits interpreter",
        "98304 of shared memory",
        "65536",
        "wino_kernels.triton.tune",
    ):
        assert part in str(raised.value)


def test_launches_name_their_entry() -> None:
    """For the message above: whatever takes its blocks from the table."""
    tabled = {operator for operator, _ in configs.DEFAULTS}
    for operator, _, arguments in cases():
        with recording("sm_90") as launches:
            backends._load("triton").kernels[operator](*arguments)
        entries = {launched.options.entry for launched in launches} - {None}
        # Of many rows the library multiplies, and what scores the logits takes its blocks from score_tokens.
        assert {name for name, _ in entries} & {operator, "score_tokens"} or operator not in tabled
        assert entries <= configs.DEFAULTS.keys()


def test_tried_configurations_reach_the_kernels(table: Path) -> None:
    """What the tuner measures is what ``config`` hands out at that moment."""
    task = tune.tasks()[0]
    tried = configs.DEFAULTS[task.operator, task.shape_class] | {"num_warps": 16}
    before = chosen(task.operator, task.shape_class, "sm_90")
    tune._use(task, "sm_90", tried)
    assert chosen(task.operator, task.shape_class, "sm_90") == tried != before
    assert json.loads(json.dumps(tune.table({})))[0]["config"] == tried
