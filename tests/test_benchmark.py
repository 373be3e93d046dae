"""The benchmark's own parts: its baseline decodes what ours does, its figures add up, its writers write."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from typer.testing import CliRunner, Result

import wino
from wino.benchmark import (
    PHASES,
    PUBLISHED,
    Clock,
    Ratio,
    Trunk,
    Workload,
    calls,
    compare,
    interleaved,
    measure,
    peak_extra,
    peaked_model,
    random_model,
    random_prompts,
    ratio,
)
from wino.benchmark import timing as timing_module
from wino.benchmark.models import TOKENS_PER_FORWARD, Calibrated, head_scale
from wino.benchmark.timing import outside_interval
from wino.cli import app
from wino.models.head import Head

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import plots
import tables

TRUNK, VOCABULARY, MARGIN = Trunk(2, 64), 300, 1e-4
CONFIG = wino.GenerationConfig(max_new_tokens=64, block_length=32)
PROMPTS = random_prompts(2, 24, VOCABULARY, VOCABULARY - 1)


@pytest.fixture(scope="module")
def peaked() -> Calibrated:
    return peaked_model(TRUNK, VOCABULARY, PROMPTS, CONFIG)


# --- the baseline and the models --------------------------------------------------------------------------------------


def test_the_published_loop_decodes_what_ours_does() -> None:
    """Random models and prompts, wherever the published decode stays away from ties and thresholds."""
    compared, accepted = 0, []
    # Less sure than a benchmark's: confidences of nearly one are nearly equal.
    scale = head_scale(TRUNK, VOCABULARY) / 2
    for seed in range(6):
        config = wino.GenerationConfig(
            max_new_tokens=64, block_length=(16, 32, 64)[seed % 3], threshold=0.3, threshold_back=0.5
        )
        model = random_model(TRUNK, VOCABULARY, scale=scale, seed=seed)
        for prompt in random_prompts(3, 10 + seed, VOCABULARY, VOCABULARY - 1, seed):
            found = compare(Workload(model, prompt[None], None, config))
            if found.margin >= MARGIN:
                assert found.agreement == 1.0 and torch.equal(found.published.steps, found.ours.steps)
                compared += 1
                accepted.append(64 / int(found.ours.steps))
    assert compared >= 12 and 3 <= sum(accepted) / compared <= 10


def test_prompts_of_different_lengths_are_decoded_alone_by_the_published_loop(peaked: Calibrated) -> None:
    input_ids, mask = PROMPTS.clone(), torch.ones_like(PROMPTS)
    input_ids[0, :7], mask[0, :7] = 0, 0
    together = measure(Workload(peaked.model, input_ids, mask, CONFIG), {"exact": {}}, rounds=1, memory=False)
    assert together.figures["exact"].agreement == 1.0
    assert together.figures["exact"].steps == pytest.approx(together.figures[PUBLISHED].steps, abs=1)


def test_the_published_limit_is_the_specified_one() -> None:
    """int(m * 0.7) in Torch's arithmetic against 7 m div 10."""
    masked = torch.arange(4097)
    assert (masked * 0.7).to(torch.int64).tolist() == [7 * m // 10 for m in range(4097)]


def test_peaked_models_decode_like_trained_ones_and_are_repeatable(peaked: Calibrated) -> None:
    low, high = TOKENS_PER_FORWARD
    assert low <= peaked.tokens_per_forward <= high and peaked.remasked > 0
    again = peaked_model(TRUNK, VOCABULARY, PROMPTS, CONFIG).model
    assert all(torch.equal(a, b) for a, b in zip(peaked.model.parameters(), again.parameters(), strict=True))
    generated = wino.generate(peaked.model, PROMPTS, None, CONFIG).sequences[:, PROMPTS.shape[1] :]
    config = peaked.model.config
    assert not torch.isin(generated, torch.tensor([config.mask_token_id, config.eos_token_id])).any()


def test_no_peaked_model_is_an_error_that_says_what_came() -> None:
    config = wino.GenerationConfig(max_new_tokens=1)
    with pytest.raises(RuntimeError, match=r"no peaked model of trunk 2x64 over 300 tokens: .* accepted 1\.00 tokens"):
        peaked_model(TRUNK, VOCABULARY, PROMPTS, config)


def test_a_wide_model_takes_some_back_too() -> None:
    """Where a head's scale leaves too little noise, its rows differ in length; and LLaDA-8B's sizes have a name."""
    wide = Trunk(1, 576)
    made = peaked_model(wide, VOCABULARY, PROMPTS[:, :20], wino.GenerationConfig(max_new_tokens=64, block_length=64))
    assert made.remasked > 0
    sizes = made.model.model.transformer["ff_out"].weight.norm(dim=1)
    assert 0.1 < sizes[sizes > 0].std() / sizes.mean() < 0.3
    assert Trunk.parse("llada-8b") == (32, 4096, 128, 12288) and str(Trunk.parse("llada-8b")) == "llada-8b"


@pytest.mark.parametrize("text", ["4", "x", "4x", "0x64", "4x63", "4x100", "-1x64", "4x64x2", "4X64"])
def test_trunks_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match="trunk: expected"):
        Trunk.parse(text)


def test_random_models_take_a_dtype_and_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    model = random_model(TRUNK, VOCABULARY, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="vocabulary: expected at least 4"):
        random_model(TRUNK, 3)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_laps_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([1.0, 1.5, 4.5, 5.0, 9.0])
    monkeypatch.setattr(timing_module.time, "perf_counter", lambda: next(times))
    clock = Clock()
    for phase in ("trunk", "head", "trunk", "scoring"):
        clock.lap(phase)
    assert clock.seconds() == {"trunk": 1.0, "head": 3.0, "scoring": 4.0}


def test_figures_of_a_measurement(peaked: Calibrated) -> None:
    told: list[None] = []
    modes: dict[str, dict[str, Any]] = {"exact": {}, "one block": {"block_length": 64}}
    measured = measure(
        Workload(peaked.model, PROMPTS, None, CONFIG), modes, rounds=3, on_call=lambda: told.append(None)
    )
    assert len(told) == calls(len(modes), 3)
    published, exact, _ = measured.figures.values()
    assert list(measured.figures) == [PUBLISHED, "exact", "one block"]
    for figures in measured.figures.values():
        assert set(figures.milliseconds) == set(PHASES) and min(figures.milliseconds.values()) >= 0
        call = sorted(figures.seconds)[1] * figures.sequences
        # What lies between the call's clock and the phases' is the making of a few objects.
        assert figures.milliseconds_per_step * figures.forwards / 1e3 <= call * (1 + 1e-9)
        assert figures.tokens == 64
        assert figures.row()["tokens_per_second"] == figures.tokens_per_second
    assert exact.agreement == 1.0 and exact.remasked == peaked.remasked / 2
    assert published.forwards == 2 * published.steps and exact.forwards >= exact.steps
    assert exact.times_faster_than(exact) == Ratio(1.0, 1.0, 1.0)


def test_fewer_sequences_for_the_published_loop(peaked: Calibrated) -> None:
    workload = Workload(peaked.model, PROMPTS, None, CONFIG)
    measured = measure(workload, {"exact": {}}, rounds=1, published_sequences=1, memory=False)
    assert [figures.sequences for figures in measured.figures.values()] == [1, 2]
    assert measured.figures["exact"].agreement == 1.0
    alone = measure(workload, {"exact": {}}, rounds=1, published=False, memory=False)
    assert list(alone.figures) == ["exact"] and alone.margin is None


def test_an_interrupted_measurement_leaves_nothing_behind(peaked: Calibrated) -> None:
    score = Head.score

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = peaked.model.model.transformer.ln_f.register_forward_hook(interrupt)
    for published in (True, False):
        with pytest.raises(KeyboardInterrupt):
            measure(Workload(peaked.model, PROMPTS, None, CONFIG), {"exact": {}}, rounds=1, published=published)
    handle.remove()
    assert Head.score is score
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in peaked.model.modules())


def test_functions_are_called_in_turn() -> None:
    order: list[str] = []
    seconds = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, lambda name: order.append(f"<{name}")
    )
    assert order == ["<a", "a", "<a", "a", "<b", "b", "<b", "b"] * 2
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize("count", [*range(1, 40), 101, 1000])
def test_interval_is_that_of_the_order_statistics(count: int) -> None:
    outside = outside_interval(count)
    assert 0 <= outside <= (count - 1) // 2
    if count >= 6:
        assert scipy.stats.binom.cdf(outside, count, 0.5) <= 0.025 < scipy.stats.binom.cdf(outside + 1, count, 0.5)
    else:
        assert outside == 0


def test_ratio_is_taken_round_by_round() -> None:
    assert ratio([2.0, 40.0, 3.0], [1.0, 10.0, 1.0]) == Ratio(3.0, 2.0, 4.0)
    assert str(Ratio(3.0, 2.0, 4.0)) == "3x [2, 4]"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counted by Linux")
def test_peak_memory_is_what_a_call_needs_at_once() -> None:
    def twice() -> None:
        for _ in range(2):
            torch.ones(32 << 20, dtype=torch.uint8)

    twice()
    found = peak_extra(twice)
    assert found is not None and 30 << 20 <= found <= 40 << 20


# --- writers ----------------------------------------------------------------------------------------------------------


def some_rows(measured: Any) -> list[dict[str, Any]]:
    work = {"bytes": 1000, "operations": 5000, "label": "score_tokens x", "operator": "score_tokens"}
    figures = [row.row() for row in measured.figures.values()]
    ratios = {"kind": "ratio", "ratio": 12.34, "low": 11.0, "high": 13.0, "bar": 10}
    return [
        {"kind": "machine", "isa": "avx2", "date": "2026-11-27"},
        {"kind": "limit", "label": "x", "bytes_s": 1e10, "operations_s": 1e12},
        {"kind": "time", "what": "x: ours", "ms": 1.0, "best_ms": 0.9, "contender": "ours", **work},
        {"kind": "time", "what": "x: published", "ms": 9.0, "best_ms": 8.0, "contender": "published", **work},
        {**ratios, "table": "kernels", "what": "a kernel", "note": ""},
        {**ratios, "table": "decode", "what": "a decode", "note": "5 tokens a forward"},
        {"kind": "memory", "table": "kernels", "what": "memory", "mib": 3.21, "bar": 16},
        *({"kind": "decode", "workload": "w", "group": "published", **row} for row in figures),
        *(
            {"kind": "decode", "workload": "w", "group": "sweep", "axis": axis, "value": value, **row}
            for axis in "VKPB"
            for value in (1, 2)
            for row in figures
        ),
        {"kind": "fit", "axis": "V", "what": "step against V", "slope": 1.0, "intercept": 0.0, "r2": 0.99},
    ]


def test_tables_and_plots_of_a_run(peaked: Calibrated, tmp_path: Path) -> None:
    measured = measure(Workload(peaked.model, PROMPTS, None, CONFIG), {"exact": {}}, rounds=1)
    rows = json.loads(json.dumps(some_rows(measured)))
    older = [{**row, "ratio": 5.0} for row in rows if row["kind"] == "ratio"]
    older.append({**older[0], "what": "no longer measured"})
    runs = {"avx2": rows, "neon": older}
    assert "| measured | avx2 | neon | bar |" in tables.kernels(runs)
    assert "| a kernel | **12.3x** [11.0, 13.0] | **5.00x** [11.00, 13.00] | 10x |" in tables.kernels(runs)
    assert "| no longer measured |  | **5.00x** [11.00, 13.00] | 10x |" in tables.kernels(runs)
    assert "| memory | **3.2 MiB** |  | < 16 MiB |" in tables.kernels(runs)
    decoded = "| a decode | **12.3x** [11.0, 13.0] | **5.00x** [11.00, 13.00] | 10x | 5 tokens a forward |"
    assert decoded in tables.decode(runs)
    assert "a decode" not in tables.kernels(runs) and "a kernel" not in tables.decode(runs)
    lines = tables.steps(rows).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    for draw in (plots.roofline, plots.step, plots.scaling):
        path = tmp_path / f"{draw.__name__}.png"
        draw(rows, path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_newest_run_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    for isa, day in (("avx2", "2026-11-27"), ("avx512", "2026-12-01"), ("neon", "2025-12-31")):
        kinds = ("limit", "decode") if isa == "avx512" else ("limit", "decode", "fit")
        rows = [{"kind": "machine", "date": day}, *({"kind": kind} for kind in kinds)]
        (tmp_path / "docs" / f"bench_{isa}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert list(tables.measured()) == ["avx512", "avx2", "neon"]
    assert tables.newest_whole(tables.measured())[0]["date"] == "2026-11-27"


# --- wino bench -------------------------------------------------------------------------------------------------------

RANDOM = ("--trunk", "2x64", "--vocab", "300", "--dtype", "float32", "--rounds", "1", "--max-new-tokens", "32")


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_bench_prints_a_table_a_workload_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    result = bench(*RANDOM, "--batch", "1,2", "--prompt", "16", "--modes", "exact", "--json", file)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    header = re.findall(r"^ +tok/s +ratio +95 % +steps +tok/fwd +MiB +equal$", result.stdout, re.MULTILINE)
    times = re.findall(r"^ms a step +all +trunk +head +scoring +bookkeeping$", result.stdout, re.MULTILINE)
    assert len(header) == len(times) == 2
    rows = re.findall(r"^(published|exact) +[\d.]+ .* [\d.]+%$", result.stdout, re.MULTILINE)
    assert rows == ["published", "exact"] * 2
    assert len(re.findall(r"^(?:published|exact)(?: +[\d.]+){5}$", result.stdout, re.MULTILINE)) == 4
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if not line.startswith("Times"))
    assert "random 2x64, 300 tokens, float32: batch 2, prompt 16" in result.stdout
    figures = json.loads(file.read_text())
    assert figures["modes"] == {"exact": {}} and figures["rounds"] == 1
    assert [row["workload"] for row in figures["results"]] == ["batch 1, prompt 16"] * 2 + ["batch 2, prompt 16"] * 2
    assert all(row["seconds"] and row["tokens_per_forward"] > 0 for row in figures["results"])


def test_bench_of_the_bundled_model_and_of_given_prompts(tmp_path: Path) -> None:
    result = bench("--rounds", "1", "--modes", "exact")
    assert result.exit_code == 0, result.output
    assert "exact: the published loop's tokens" in result.stdout
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("sum 12+34\nsum 1+2+3\n")
    given = ("--rounds", "1", "--modes", "exact", "--max-new-tokens", "16", "--batch", "3")
    result = bench("--file", prompts, "--no-published", *given)
    assert result.exit_code == 0, result.output
    assert "published " not in result.stdout.split("Times are")[0]
    result = bench("--prompt", "9", *given)
    assert result.exit_code == 0, result.output
    assert "wino-tiny: batch 3, prompt 9 of random tokens" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "1,x"), "batch: expected positive integers with commas between them, got '1,x'"),
        (("--prompt", "0"), "prompt: expected positive integers"),
        (("--modes", "exact,fast"), "modes: expected some of exact, prefix, dual, compile, graph"),
        (("--dtype", "int8"), "dtype: expected one of bfloat16, float32, float16, got 'int8'"),
        (("--vocab", "100"), "--vocab belongs to a random model: give --trunk too"),
        (("--trunk", "4x"), "trunk: expected llada-8b or LAYERSxWIDTH such as 4x256"),
        (("--trunk", "2x64", "--file", "f"), "--file and --trunk exclude each other"),
        (("--file", "f", "--prompt", "4"), "--file and --prompt exclude each other"),
        (("--rounds", "0"), "greater than or equal to 1"),
        (("--prompt", "4000"), "4128 positions are needed, the model's limit is 256"),
        (("--block-length", "3"), "block_length: must divide max_new_tokens"),
        (("--json", "/nowhere/x.json"), "expected a file name in an existing folder"),
        (("--model", "/nowhere"), "/nowhere: no such folder"),
        (("--trunk", "2x64", "--max-new-tokens", "1", "--prompt", "9"), "no peaked model of trunk 2x64"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    if "--trunk" in arguments and "--file" not in arguments:
        arguments = (*arguments, "--vocab", "300")
    result = bench(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"wino: [^\n]+\n", result.stderr), result.stderr
    assert message in result.stderr
