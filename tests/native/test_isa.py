"""Choice of the instruction set: what the machine has, WINO_CPU_ISA, use_cpu_isa."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import wino_kernels
from wino_kernels import backends

AVAILABLE = [name for name in backends.CPU_ISAS if backends.why_not_cpu_isa(name) is None]
MISSING = [name for name in backends.CPU_ISAS if name not in AVAILABLE]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("WINO_")}
    return subprocess.run([sys.executable, "-c", code], env={**env, **environment}, capture_output=True, text=True)


def test_portable_always_runs_and_the_widest_is_the_default() -> None:
    assert AVAILABLE[-1] == "portable"
    result = run_python("from wino_kernels import backends; print(backends.cpu_isa())")
    assert result.stdout.strip() == AVAILABLE[0], result.stderr


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="needs /proc/cpuinfo to compare with")
def test_x86_sets_agree_with_the_operating_system() -> None:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((set(line.split()) for line in file if line.startswith("flags")), set())
    assert ("avx2" in AVAILABLE) == {"avx2", "fma", "f16c"}.issubset(flags)
    avx512 = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
    assert ("avx512" in AVAILABLE) == avx512.issubset(flags)
    assert ("avx512bf16" in AVAILABLE) == (avx512 | {"avx512_bf16"}).issubset(flags)
    assert ("amx" in AVAILABLE) == (avx512 | {"avx512_bf16", "amx_tile", "amx_bf16"}).issubset(flags)


@pytest.mark.skipif("amx" not in AVAILABLE, reason="this machine has no tile registers")
def test_tile_registers_are_asked_for_when_they_are_used() -> None:
    """The permission is for good, and forbids small signal stacks: not for looking, nor for who chose another set."""
    code = """
import ctypes
from wino_kernels import backends

def may_use_tiles():
    features = ctypes.c_uint64()
    assert ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(features)) == 0  # arch_prctl, ARCH_GET_XCOMP_PERM
    return bool(features.value & 1 << 18)

print(may_use_tiles(), backends.why_not_cpu_isa("amx"), backends.cpu_isa(), may_use_tiles())
with backends.use_cpu_isa("amx"):
    print(backends.cpu_isa(), may_use_tiles())
"""
    result = run_python(code, WINO_CPU_ISA="portable")
    assert result.stdout.splitlines() == ["False None portable False", "amx True"], result.stderr
    result = run_python(code)
    assert result.stdout.splitlines() == ["False None amx True", "amx True"], result.stderr


@pytest.mark.parametrize("name", AVAILABLE)
def test_environment_variable_selects(name: str) -> None:
    result = run_python("from wino_kernels import backends; print(backends.cpu_isa())", WINO_CPU_ISA=name)
    assert result.stdout.strip() == name, result.stderr


@pytest.mark.parametrize("name", [*MISSING, "sse9"])
def test_environment_variable_that_cannot_be_met_raises_at_the_first_call(name: str) -> None:
    code = """
import torch, wino_kernels
try:
    wino_kernels.draft_confidence(torch.zeros(1, 4))
except wino_kernels.BackendUnavailableError as error:
    print("refused:", error)
"""
    result = run_python(code, WINO_CPU_ISA=name)
    assert result.stdout.startswith("refused: WINO_CPU_ISA"), result.stdout + result.stderr
    assert name in result.stdout


@pytest.mark.parametrize("name", [*MISSING, "sse9"])
def test_use_cpu_isa_that_cannot_be_met_raises_and_changes_nothing(name: str) -> None:
    before = backends.cpu_isa()
    with pytest.raises(backends.BackendUnavailableError, match=name), backends.use_cpu_isa(name):
        pass
    assert backends.cpu_isa() == before


def test_use_cpu_isa_nests_and_is_undone_by_an_exception() -> None:
    before = backends.cpu_isa()
    with pytest.raises(KeyError), backends.use_cpu_isa("portable"):
        with backends.use_cpu_isa(AVAILABLE[0]):
            assert backends.cpu_isa() == AVAILABLE[0]
        assert backends.cpu_isa() == "portable"
        raise KeyError
    assert backends.cpu_isa() == before


V = 126464
ROWS = {
    **{
        f"one high, all others {d} below": torch.zeros(V).index_fill(0, torch.tensor([77]), d) for d in (5.3, 9.9, 12.3)
    },
    "flat": torch.full((V,), -3.7),
    "steep ramp": torch.linspace(-200, 30, V),
    "far from zero": torch.linspace(-3, 3, V).sin() * 4 + 1000,
}


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ROWS)
def test_confidence_where_float32_sums_go_wrong(name: str, dtype: torch.dtype, kind: str) -> None:
    """Rows whose probability mass sits in very many equal terms, or terms of all magnitudes.

    docs/spec.md section 6.
    """
    logits = ROWS[kind].to(dtype)[None]
    candidates = torch.tensor([0, 5, V // 2, V - 1])
    with backends.use_cpu_isa(name), wino_kernels.use_backend("cpu"):
        token_ids, confidence = wino_kernels.draft_confidence(logits)
        given = wino_kernels.verify_confidence(logits.expand(4, V), candidates)
    assert token_ids[0] == logits[0].float().argmax()
    exact = logits.double().softmax(-1)[0][torch.cat([token_ids, candidates])]
    error = (torch.cat([confidence, given]).double() - exact).abs()
    assert (error / (2e-6 * exact + 1e-12)).max() <= 0.5  # half of what is promised


def test_fp16_and_bf16_of_every_bit_pattern() -> None:
    """All 65536 numbers of each 16-bit format convert alike on every instruction set: each is given beside a 0."""
    patterns = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        logits = torch.stack([torch.zeros_like(patterns), patterns], dim=1).view(dtype)
        expected = logits.double().softmax(-1)[:, 1]
        for name in AVAILABLE:
            with backends.use_cpu_isa(name), wino_kernels.use_backend("cpu"):
                confidence = wino_kernels.verify_confidence(logits, torch.ones(len(patterns), dtype=torch.int64))
            assert torch.equal(confidence.isnan(), expected.isnan()), name
            wrong = (confidence.double() - expected).abs() > 2e-6 * expected + 1e-12
            assert not wrong.any(), (name, dtype, patterns[wrong][:5])
