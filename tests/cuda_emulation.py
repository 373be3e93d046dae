"""Builds the CUDA kernels for the CPU: csrc/cuda with the host compiler against tests/cuda_shim, kept under build/."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from wino_kernels._version import __version__

ROOT = Path(__file__).resolve().parent.parent
SHIM = ROOT / "tests" / "cuda_shim"
NAME = "wino_kernels._C_cuda"
# As for the other native kernels: nothing may reassociate or contract.
FLAGS = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
]


def build(races: bool = False) -> Path:
    """The shared object; with ``races`` every access of a kernel to memory is reported to the shim's race checker."""
    import pybind11

    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    host_sources = [ROOT / "csrc" / "cuda" / "bindings.cpp", *sorted(SHIM.glob("*.cpp"))]
    compiler = os.environ.get("CXX", "g++")
    flags = [
        *FLAGS,
        f"-I{SHIM}",
        f"-I{ROOT / 'csrc'}",
        f"-I{ROOT / 'csrc' / 'include'}",
        f"-isystem{pybind11.get_include()}",
        f"-isystem{sysconfig.get_paths()['include']}",
        f'-DWINO_VERSION="{__version__}"',
        '-DWINO_DEVICE_TYPE="cpu"',
        '-DWINO_CUDA_ARCHITECTURES="sm_80 sm_90 sm_100 compute_100"',
        *(["-DWINO_SHIM_RACES"] if races else []),
    ]
    folder = ROOT / "build" / f"cuda-emulation-{_digest([compiler, *flags])}"
    target = folder / f"_C_cuda{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test processes: one builds, the others wait
        if not target.exists():
            _compile(target, [*sources, *host_sources], compiler, flags, races)
    return target


def _compile(target: Path, sources: list[Path], compiler: str, flags: list[str], races: bool) -> None:
    objects, compiling = [], []
    for source in sources:
        objects.append(target.parent / f"{source.name}.o")
        # The instrumentation alone: its calls go to the shim's checker, not to ThreadSanitizer's library.
        instrumented = ["-fsanitize=thread"] if races and source.suffix == ".cu" else []
        command = [compiler, *flags, *instrumented, "-c", "-x", "c++", str(source), "-o", str(objects[-1])]
        compiling.append(
            (command, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        )
    for command, process in compiling:
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{output}")
    partly = target.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, "-shared", *map(str, objects), "-o", str(partly)], check=True)
    partly.rename(target)  # interrupted, it leaves nothing that looks finished


def _digest(settings: list[str]) -> str:
    digest = hashlib.sha256("\0".join([*settings, sys.version]).encode())
    files = [*ROOT.glob("csrc/cuda/*"), *ROOT.glob("csrc/include/wino/*"), *SHIM.glob("*")]
    for file in sorted(path for path in files if path.is_file()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def load(races: bool = False) -> ModuleType:
    """The built module, not yet anybody's backend."""
    path = build(races)
    name = f"{path.parent.name}._C_cuda"  # its own: pybind11 hands out a module of the same name again
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def install() -> None:
    """Makes ``wino_kernels``' backend "cuda" run the kernels on CPU tensors in this process."""
    if NAME not in sys.modules:
        sys.modules[NAME] = load()


class Shim:
    """What the shim lets a test choose and tells it."""

    def __init__(self, module: ModuleType) -> None:
        self._library = ctypes.CDLL(str(module.__file__))

    def seed(self, seed: int) -> None:
        """Of the schedules from the next launch on."""
        self._library.wino_shim_seed(ctypes.c_uint64(seed))

    def drop(self, site: str) -> None:
        """The barrier, fence or vote at ``"file.cu:line"`` does nothing from here on; "" restores all."""
        self._library.wino_shim_drop(site.encode())

    def races(self) -> list[str]:
        """Conflicting accesses found since the last call (at most 20 are described)."""
        self._library.wino_shim_races.restype = ctypes.c_char_p
        return self._library.wino_shim_races().decode().splitlines()
