"""What this machine has and what the kernels make of it: ``python -m wino_kernels.env_report``.

Works, and says what is wrong, when the native module cannot be loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from types import ModuleType
from typing import Any

import torch

from wino_kernels import backends, tuned
from wino_kernels._version import __version__

OPERATORS = (
    "score_tokens",
    "linear_score_tokens",
    "accept_remask_",
    "accept_",
    "wino_step_",
    "shadow_attention",
    "trajectory_loss",
    "norm_qkv_rope",
    "out_norm_swiglu",
    "shadow_trunk",
)
_REBUILD = "reinstall: `pip install --force-reinstall --no-deps .` in the source tree (needs a C++17 compiler)"


def report() -> dict[str, Any]:
    """Everything the printed report shows, as plain data."""
    native, native_error = _native()
    found: dict[str, Any] = {
        "package": {"version": __version__, "path": os.path.dirname(os.path.abspath(__file__))},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cpus": os.cpu_count()},
        "torch": _torch(),
        "native": {"path": getattr(native, "__file__", None), "error": native_error},
        "cpu_isa": _isa(native),
        "threads": _threads(native),
        "backends": {name: backends.why_not(name) for name in backends.BACKENDS},
        "selected_backend": backends.current_backend(),
        "operators": {op: {device: _server(op, device) for device in ("cpu", "cuda")} for op in OPERATORS},
        "gpu": _gpu(),
    }
    found["remedies"] = _remedies(found)
    return found


def _native() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module("wino_kernels._C"), None
    except Exception as error:  # whatever a broken shared object raises is the report's content
        return None, f"{type(error).__name__}: {error}"


def _torch() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def _isa(native: ModuleType | None) -> dict[str, Any]:
    requested = os.environ.get("WINO_CPU_ISA") or None
    if native is None:
        return {"used": None, "requested": requested, "unavailable": {}}
    # The backend applies WINO_CPU_ISA when it loads; where that failed, nothing is used.
    used = None if backends.why_not("cpu") else native.isa()
    return {
        "used": used,
        "requested": requested,
        "unavailable": {name: native.why_not_isa(name) or None for name in backends.CPU_ISAS},
    }


def _threads(native: ModuleType | None) -> dict[str, Any]:
    loaded = native is not None and backends.why_not("cpu") is None
    return {
        "number": torch.get_num_threads(),
        "layer": native.threading_layer() if native is not None and loaded else None,
        "openmp": importlib.import_module("wino_kernels.cpu").OPENMP if loaded else None,
        "waiting": {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")},
    }


def _server(op: str, device: str) -> str:
    """The backend that serves ``op`` on ``device`` now, or why none does."""
    try:
        return backends.serving(backends.current_backend(), op, device)
    except (backends.BackendUnavailableError, ValueError) as error:  # ValueError: a broken table of measurements
        return f"none: {error}"


def _nvcc() -> str | None:
    path = shutil.which("nvcc")
    if path is None:
        return None
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path} (does not run: {error})"
    release = next((line.split("release ")[1].split(",")[0] for line in output.splitlines() if "release " in line), "?")
    return f"{path} ({release})"


def module_version(name: str) -> str | None:
    """Version of an installed distribution, without importing it."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "installed"


def _gpu() -> dict[str, dict[str, Any]]:
    """What the GPU backends need: what was found, or None, and what to do where it is missing."""
    built_for = torch.version.cuda or torch.version.hip
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return {
        "driver": {"found": _driver(), "remedy": "install the GPU's driver (without a GPU there is nothing to do)"},
        "torch": {
            "found": f"built for {built_for}" if built_for else None,
            "remedy": "install a Torch built for CUDA: https://pytorch.org/get-started/locally",
        },
        "triton": {
            "found": module_version("triton"),
            "remedy": "`pip install 'triton>=3.4'` (Linux): without it eager code serves most operators",
        },
        "C compiler": {
            "found": compiler,
            "remedy": "install gcc or clang: Triton builds each kernel's launcher with it at run time",
        },
        "nvcc": {
            "found": _nvcc(),
            "remedy": "for the CUDA C++ kernels alone: install the CUDA toolkit, then this package again, from source",
        },
    }


def _driver() -> str | None:
    for name, libraries in {"CUDA": ("libcuda.so.1", "nvcuda.dll"), "HIP": ("libamdhip64.so",)}.items():
        for library in libraries:
            with contextlib.suppress(OSError):
                ctypes.CDLL(library)
                return f"{name} ({library})"
    return None


def _remedies(found: dict[str, Any]) -> list[str]:
    remedies = []
    if found["native"]["error"]:
        remedies.append(f"The native kernels did not load, operators on the CPU are slow: {_REBUILD}.")
    elif found["backends"]["cpu"] and found["cpu_isa"]["requested"]:
        usable = [name for name, reason in found["cpu_isa"]["unavailable"].items() if reason is None]
        remedies.append(f"Unset WINO_CPU_ISA, or set it to one of: {', '.join(usable)}.")
    elif found["backends"]["cpu"]:
        remedies.append(f"The cpu backend did not load: {_REBUILD}.")
    if found["threads"]["layer"] == "pool":
        remedies.append(
            "Torch's OpenMP runtime was not found, the kernels use threads of their own: set OMP_NUM_THREADS lower "
            "if other work shares the cores."
        )
    # A machine without a driver is not missing anything.
    if found["gpu"]["driver"]["found"]:
        needed = ("torch", "triton", "C compiler")
        missing = {name: found["gpu"][name]["remedy"] for name in needed if not found["gpu"][name]["found"]}
        remedies += [f"GPU: {name} not found: {remedy}." for name, remedy in missing.items()]
    try:
        tuned.rows()
    except ValueError as error:
        remedies.append(f"Remove {tuned.path()} or tune again: {error}.")
    chosen = found["selected_backend"]
    if chosen not in ("auto", *backends.BACKENDS):
        remedies.append(f"Unset WINO_BACKEND, or set it to one of: auto, {', '.join(backends.BACKENDS)}.")
    return remedies


def _waiting(settings: dict[str, str | None]) -> str:
    chosen = ", ".join(f"{name}={value}" for name, value in settings.items() if value)
    return chosen or "spinning for long; beside other load set GOMP_SPINCOUNT=10000 before Python starts"


def _lines(found: dict[str, Any]) -> list[str]:
    isa, threads, torch_, machine = found["cpu_isa"], found["threads"], found["torch"], found["machine"]
    lines = [
        f"wino-kernels {found['package']['version']}  {found['package']['path']}",
        f"Python       {found['python']['version']}  {found['python']['executable']}",
        f"machine      {machine['system']} {machine['architecture']}, {machine['cpus']} CPUs",
        f"torch        {torch_['version']}, CUDA {torch_['cuda'] or 'not built in'}",
        f"native       {found['native']['path'] or found['native']['error']}",
        f"CPU ISA      {isa['used'] or 'none'} (WINO_CPU_ISA: {isa['requested'] or 'not set'})",
    ]
    lines += [f"  {name:<11}{reason or 'available'}" for name, reason in isa["unavailable"].items()]
    openmp = threads["openmp"] or "not looked for"
    lines += [
        f"threads      {threads['number']}, on {threads['layer'] or 'none'}; OpenMP: {openmp}",
        f"  {'waiting':<11}{_waiting(threads['waiting'])}",
        f"backends     selected: {found['selected_backend']}",
    ]
    lines += [f"  {name:<11}{reason or 'available'}" for name, reason in found["backends"].items()]
    lines.append("operators    backend on cpu / cuda")
    lines += [f"  {op:<21}{served['cpu']} / {served['cuda']}" for op, served in found["operators"].items()]
    lines.append(f"GPU          {torch_['gpu'] or 'none that Torch can use'}")
    lines += [f"  {name:<11}{part['found'] or 'not found: ' + part['remedy']}" for name, part in found["gpu"].items()]
    return lines + [f"remedy       {line}" for line in found["remedies"]]


if __name__ == "__main__":
    print("\n".join(_lines(report())))
