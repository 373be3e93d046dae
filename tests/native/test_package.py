"""The installed package: what is imported, the report, and a native module that does not load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wino_kernels
from wino_kernels import _C, backends, env_report

PACKAGE = Path(wino_kernels.__file__).parent


def run_python(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("WINO_")}
    return subprocess.run(
        [sys.executable, *arguments], env={**env, **environment}, cwd=cwd, capture_output=True, text=True
    )


def test_the_native_module_is_of_this_version() -> None:
    assert _C.version == wino_kernels.__version__


def test_import_brings_torch_and_nothing_heavier() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import wino_kernels
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} - {"wino_kernels"}))
"""
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    heavy = {"numpy", "transformers", "tokenizers", "safetensors", "triton", "rich", "typer", "matplotlib", "wino"}
    assert not heavy.intersection(eval(result.stdout)), result.stdout


def test_report_names_a_server_for_every_operator() -> None:
    found = env_report.report()
    json.dumps(found)
    assert found["native"]["error"] is None
    assert found["cpu_isa"]["used"] == backends.cpu_isa()
    assert found["operators"]["score_tokens"]["cpu"] == "cpu"
    assert not found["remedies"]


def test_report_covers_every_operator() -> None:
    import wino_kernels.eager

    public = {name for name in wino_kernels.eager.KERNELS if not name.endswith("_backward")}
    assert set(env_report.OPERATORS) == public


@pytest.fixture
def broken_copy(tmp_path: Path) -> Path:
    """A folder with the package in it, whose native module is a file of zeros."""
    shutil.copytree(PACKAGE, tmp_path / "wino_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "wino_kernels" / Path(_C.__file__).name).write_bytes(bytes(4096))
    return tmp_path


# A path entry beats the finder of an editable install.
_IN_FRONT = """
import sys
sys.path.insert(0, {path!r})
sys.meta_path[:] = [finder for finder in sys.meta_path if "ditable" not in str(finder)]
"""


def test_report_of_a_broken_native_module(broken_copy: Path) -> None:
    code = (
        _IN_FRONT.format(path=str(broken_copy))
        + "import runpy; runpy.run_module('wino_kernels.env_report', run_name='__main__')"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert str(broken_copy) in result.stdout
    assert "ImportError" in result.stdout
    assert "remedy" in result.stdout


def test_broken_native_module_is_announced_and_never_replaced_when_asked_for(broken_copy: Path) -> None:
    code = (
        _IN_FRONT.format(path=str(broken_copy))
        + """
import warnings, torch, wino_kernels
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    wino_kernels.draft_confidence(torch.zeros(1, 4))
    wino_kernels.verify_confidence(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
print(len([w for w in caught if "backend 'cpu' is unavailable" in str(w.message)]))
try:
    with wino_kernels.use_backend("cpu"):
        print("entered")
except wino_kernels.BackendUnavailableError as error:
    print("refused:", error)
"""
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1\nrefused: backend 'cpu' is unavailable: ImportError"), result.stdout
