"""Which GPU backend serves what, and what is said where one cannot: no driver, no Triton, an old one, CPU tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import wino_kernels
from wino_kernels import backends, env_report


def run(program: str, **environment: str) -> str:
    """What ``program`` prints in a process of its own, where Triton compiles instead of interpreting."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("WINO_", "TRITON_"))}
    result = subprocess.run(
        [sys.executable, "-c", program], env={**inherited, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_triton_serves_every_operator_on_a_gpu_and_none_on_the_cpu_unasked() -> None:
    for operator in backends._load("eager").kernels:
        assert backends.serving("auto", operator, "cuda") == "triton"
        assert backends.serving("auto", operator, "cpu") in ("cpu", "eager")
        assert backends.serving("triton", operator, "cpu") == "triton"  # interpreted: the test session asks for it


def test_nothing_of_triton_is_imported_or_a_driver_looked_for_until_it_is_used() -> None:
    program = """
import sys, torch, wino_kernels
wino_kernels.draft_confidence(torch.zeros(2, 4))
print("triton" in sys.modules, torch.cuda.is_initialized())
import wino_kernels.triton
print(set(wino_kernels.triton.KERNELS) <= set(__import__("wino_kernels.eager").eager.KERNELS))
"""
    assert run(program) == "False False\nTrue\n"


def test_cpu_tensors_need_the_interpreter() -> None:
    program = """
import torch, wino_kernels
with wino_kernels.use_backend("triton"):
    try:
        wino_kernels.draft_confidence(torch.zeros(2, 4))
    except wino_kernels.BackendUnavailableError as error:
        print(error)
    """
    assert "triton: does not run on cpu tensors unless TRITON_INTERPRET=1 was set" in run(program)
    assert run(program, TRITON_INTERPRET="1") == ""


@pytest.mark.parametrize(
    ("stand_in", "reason"),
    [
        ("sys.modules['triton'] = None", "Triton is not installed"),
        ("import types; sys.modules['triton'] = types.SimpleNamespace(__version__='3.3.1')", "Triton 3.3.1 is too old"),
    ],
)
def test_without_a_usable_triton(stand_in: str, reason: str) -> None:
    program = f"""
import sys, warnings
{stand_in}
from wino_kernels import backends, use_backend
print(backends.why_not("triton"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    kernel = backends.implementation("linear_score_tokens", "cuda")
print(kernel.__module__, "backend 'triton' is unavailable" in str(caught[0].message))
try:
    use_backend("triton").__enter__()
except backends.BackendUnavailableError as error:
    print("refused")
"""
    why, served, refused = run(program).splitlines()
    assert reason in why and "3.4" in why
    assert served == "wino_kernels.eager.linear_score_tokens True"
    assert refused == "refused"


def test_the_report_names_each_missing_part_and_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_report, "_driver", lambda: "CUDA (libcuda.so.1)")
    monkeypatch.setattr(env_report, "module_version", lambda name: None)
    monkeypatch.setattr(env_report.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    found = env_report.report()
    remedies = "\n".join(found["remedies"])
    for part in ("torch", "triton", "C compiler"):
        assert f"GPU: {part} not found: " in remedies
    text = "\n".join(env_report._lines(found))
    assert "nvcc       not found: " in text and "CUDA toolkit" in text

    monkeypatch.setattr(env_report, "_driver", lambda: None)
    found = env_report.report()
    assert "GPU:" not in "\n".join(found["remedies"])
    assert "driver     not found: " in "\n".join(env_report._lines(found))


def test_tensors_on_different_devices_are_refused_before_a_launch() -> None:
    logits, ids = torch.zeros(2, 4, device="meta"), torch.full((2,), -1)
    with pytest.raises(ValueError, match="candidate_ids must be on device meta, got cpu"):
        wino_kernels.score_tokens(logits, ids)


def test_the_report_works_with_a_broken_table_of_measurements(tmp_path: Path) -> None:
    table = tmp_path / "tuned.json"
    table.write_text("{")
    printed = run(
        "import runpy; runpy.run_module('wino_kernels.env_report', run_name='__main__')", WINO_TUNED=str(table)
    )
    assert f"Remove {table} or tune again" in printed and "  score_tokens         cpu / none: " in printed


STARTED = """
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from wino_kernels.resources import cases
from wino_kernels.triton import KERNELS
from wino_kernels.triton.launch import recording


class Driver:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0


def instead_of_compiling(self, key, signature, device, constexprs, options, attrs, warmup):
    self.cache_key  # notes the globals that the kernel uses
    self.device_caches[device][0][key] = compiled = object()
    return compiled


driver.set_active(Driver())
JITFunction._do_compile = instead_of_compiling
started = set()
for operator, name, arguments in cases():
    with recording("sm_90") as launches:
        KERNELS[operator](*arguments)
    for launch in launches:
        options = launch.options
        for _ in range(2):  # what a second start checks, a first one does not
            launch.kernel.run(
                grid=launch.grid,
                warmup=True,
                **launch.arguments,
                **launch.constants,
                num_warps=options.num_warps,
                num_stages=options.num_stages,
                enable_fp_fusion=options.fp_fusion,
            )
            started.add(operator)
print(started == set(KERNELS))
"""


def test_every_kernel_starts_as_triton_starts_it_on_a_gpu() -> None:
    """The interpreter ignores arguments that a kernel does not have, and globals that do not equal themselves."""
    assert run(STARTED) == "True\n"
