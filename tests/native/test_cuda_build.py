"""The CUDA kernels compiled by nvcc for every GPU generation, and the native module on a machine without a driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wino_kernels
from wino_kernels import resources
from wino_kernels.cuda import compiled

pytestmark = pytest.mark.xdist_group("cuda build")

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {
    "accept",
    "accept_remask",
    *(
        f"{op}<{dtype}{noise}>"
        for op in ("score_tokens", "wino_step")
        for dtype in ("float32", "bfloat16", "float16")
        for noise in ("", ", noise")
    ),
}
needs_nvcc = pytest.mark.skipif(compiled.nvcc() is None, reason="needs nvcc")


@needs_nvcc
@pytest.mark.parametrize("target", compiled.TARGETS)
def test_every_kernel_compiles_without_warnings_or_spills(target: str) -> None:
    # What the table has of the same sources and compiler was compiled so when it was written; one target always is.
    table = [] if target == "sm_90" else resources.read(resources.TABLE)["rows"]
    records = compiled.compile_cuda([target], table)
    assert {record["kernel"] for record in records} == KERNELS and len(records) == len(KERNELS)
    for record in records:
        assert record["spills"] == 0, record
        assert record["target"] == target and record["backend"] == "cuda"
        # Three blocks on a multiprocessor keep enough loads in flight for its share of the bandwidth.
        assert record["registers"] * record["threads_per_block"] * 3 <= 65536, record
        assert record["vector_loads"] == ("<" in record["kernel"]), record
        assert record["shared_bytes"] <= 4096


@needs_nvcc
def test_a_warning_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(compiled.SOURCES.parent, tmp_path / "csrc")
    bad = tmp_path / "csrc" / "cuda" / "bad.cu"
    bad.write_text("__global__ void kernel(int* x) { int unused = 3; *x = 1; }\n")
    monkeypatch.setattr(compiled, "SOURCES", bad.parent)
    with pytest.raises(RuntimeError, match="unused"):
        compiled._compile(str(compiled.nvcc()), bad, "sm_90")


@needs_nvcc
def test_only_what_changed_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(compiled.SOURCES.parent, tmp_path / "csrc")
    monkeypatch.setattr(compiled, "SOURCES", tmp_path / "csrc" / "cuda")
    asked: list[str] = []
    record: dict[str, object] = dict.fromkeys(compiled._KEYS, 7) | {"backend": "cuda", "kernel": "k"}

    def compile_one(compiler: str, source: Path, target: str) -> list[dict[str, object]]:
        asked.append(f"{source.stem} {target}")
        return [record | {"target": target}]

    monkeypatch.setattr(compiled, "_compile", compile_one)
    files = sorted(path.stem for path in compiled.SOURCES.glob("*.cu"))
    first = compiled.compile_cuda(["sm_90"])
    assert sorted(asked) == [f"{name} sm_90" for name in files] and len(first) == len(files) > 2

    def again(known: list[dict[str, object]], target: str = "sm_90") -> list[str]:
        asked.clear()
        assert len(compiled.compile_cuda([target], known)) == len(files)
        return sorted(asked)

    assert again(first) == []
    assert compiled.compile_cuda(["sm_90"], first) == first
    assert again(first, "sm_80") == [f"{name} sm_80" for name in files]
    assert again([{key: value for key, value in row.items() if key != "source"} for row in first])[0] == "accept sm_90"
    with (compiled.SOURCES / "accept.cu").open("a") as file:
        file.write("// changed\n")
    assert again(first) == ["accept sm_90"]
    with (compiled.SOURCES / "launch.h").open("a") as file:
        file.write("// changed\n")
    assert again(first) == [f"{name} sm_90" for name in files]
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-G")
    assert again(first) == [f"{name} sm_90" for name in files]


def test_without_nvcc_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", "/no/such/nvcc")
    with pytest.raises(FileNotFoundError, match="nvcc was not found"):
        compiled.compile_cuda(["sm_1"])


def test_says_what_it_compiles_without_the_native_module() -> None:
    code = "import sys, wino_kernels.cuda.compiled; print({'triton', 'wino_kernels._C_cuda'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "set()", result.stdout + result.stderr


@needs_nvcc
def test_reports_an_absent_driver_politely() -> None:
    """The installed module loads without a driver, as libcuda is looked for when it is needed, and says what lacks."""
    assert list(Path(wino_kernels.__file__).parent.glob("_C_cuda*.so")), "built without CUDA kernels: install again"
    code = """
import torch
from wino_kernels import _C_cuda, backends
assert _C_cuda.device_types == ("cuda",) and "sm_90" in _C_cuda.architectures
assert _C_cuda.runtime_version() >= 11000
reason = backends.why_not("cuda")
print("runs" if reason is None else reason)
assert (reason is None) == (_C_cuda.why_not() == "")
if _C_cuda.driver_version() == 0:
    assert reason == "ImportError: no CUDA driver on this machine", reason
    try:
        _C_cuda.accept(1, 0, *[0] * 6, True, 0, 0.5, 0, 0, True, 0, 0, 0)
    except RuntimeError as error:
        assert str(error).startswith("accept_: the launch failed: cudaError"), error
    else:
        raise AssertionError("a kernel started without a driver")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_nvcc_that_cannot_compile_the_kernels_does_not_stop_the_install(tmp_path: Path) -> None:
    """It passes CMake's own look at it, knows the targets, and refuses every source of ours."""
    nvcc = compiled.nvcc()
    if nvcc is None or not (shutil.which("cmake") and shutil.which("ninja")):
        pytest.skip("needs nvcc, cmake and ninja")
    stand_in = tmp_path / "nvcc"
    stand_in.write_text(f'#!/bin/sh\ncase "$*" in *csrc/cuda*) echo "refused" >&2; exit 1;; esac\nexec {nvcc} "$@"\n')
    stand_in.chmod(0o755)
    build = tmp_path / "build"
    import pybind11

    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_CUDA_COMPILER={stand_in}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={tmp_path}", "-DWINO_VERSION=0",
    ]  # fmt: skip
    subprocess.run(configure, check=True, capture_output=True)
    planned = subprocess.run(["cmake", "--build", str(build), "--", "-n"], check=True, capture_output=True, text=True)
    assert ".cu" not in planned.stdout and "bindings.cpp" in planned.stdout
    kernels = subprocess.run(["cmake", "--build", str(build), "--target", "cuda_kernels"], capture_output=True)
    assert kernels.returncode != 0


def test_an_nvcc_that_does_not_work_is_left_out(tmp_path: Path) -> None:
    """The configuration succeeds, says so, and has nothing of CUDA to build; no real nvcc is needed to see it."""
    if not (shutil.which("cmake") and shutil.which("ninja")):
        pytest.skip("needs cmake and ninja")
    stand_in = tmp_path / "nvcc"
    stand_in.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    stand_in.chmod(0o755)
    project = tmp_path / "CMakeLists.txt"
    # Of the whole project the CUDA part alone: looking at the compiler for the others takes longer.
    project.write_text(f"""
cmake_minimum_required(VERSION 3.20)
project(part LANGUAGES CXX)
add_subdirectory({compiled.SOURCES} cuda)
""")
    environment = {**os.environ, "CUDACXX": str(stand_in)}
    configure = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), "-G", "Ninja"]
    result = subprocess.run(configure, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "no CUDA kernels (nvcc was not found, or does not work" in result.stdout
    build = ["cmake", "--build", str(tmp_path / "build"), "--target", "cuda_kernels"]
    assert "no work to do" in subprocess.run(build, capture_output=True, text=True, check=True).stdout

    switched_off = subprocess.run([*configure, "-DWINO_CUDA=OFF"], capture_output=True, text=True, check=True)
    assert "no CUDA kernels (WINO_CUDA is off)" in switched_off.stdout


@pytest.mark.parametrize(
    ("capability", "runs"),
    [("75", False), ("80", True), ("89", True), ("110", True)],
)
def test_gpus_without_code_are_named(capability: str, runs: bool) -> None:
    """Machine code runs on later chips of its generation, PTX on every later one. The shim is built for 8.0 to 10.0."""
    code = f"""
import os, sys
sys.path.insert(0, "tests")
os.environ["WINO_SHIM_CAPABILITY"] = "{capability}"
import cuda_emulation
cuda_emulation.install()
from wino_kernels import backends
print(backends.why_not("cuda"))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    named = (
        f"no code for GPUs of compute capability {capability[:-1]}.{capability[-1]}, only for sm_80" in result.stdout
    )
    assert named is not runs and result.returncode == 0, result.stdout + result.stderr


def test_why_not_names_a_build_without_the_kernels() -> None:
    code = """
import sys
sys.modules["wino_kernels._C_cuda"] = None
from wino_kernels import backends
print(backends.why_not("cuda"))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "are not in this build" in result.stdout and "nvcc" in result.stdout, result.stdout + result.stderr
