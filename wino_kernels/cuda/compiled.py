"""What the CUDA C++ kernels compile to: registers, spills, shared memory and loads, per kernel and GPU generation.

Runs nvcc on csrc/cuda of a source checkout; needs neither a GPU, nor a driver, nor the native module.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wino_kernels.fingerprints import fingerprint, known, stamp

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
#: The generations that get machine code of their own (csrc/cuda/CMakeLists.txt).
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120")

# Errors here, where one nvcc is at hand, and not in an install, where any may be.
_WARNINGS = ("-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror")

_KEYS = ("backend", "kernel", "target", "registers", "spills", "shared_bytes", "threads_per_block", "vector_loads")

_ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<target>\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
_MANGLED = re.compile(
    r"_ZN4wino4cuda\d+(?P<stem>\w+?)_kernel(?:INS0_\d+(?P<dtype>[A-Z][A-Za-z]+\d+)ELb(?P<noise>[01])E)?E"
)


def nvcc() -> str | None:
    """The CUDA compiler: ``CUDACXX``, that of ``CUDA_HOME``, or the one on the path."""
    home = os.environ.get("CUDA_HOME")
    asked = os.environ.get("CUDACXX") or (home and os.path.join(home, "bin", "nvcc"))
    return shutil.which(asked) if asked else shutil.which("nvcc")


def version() -> str | None:
    """The compiler's release; None without one."""
    compiler = nvcc()
    return None if compiler is None else str(re.findall(r"release (\S+),", _run([compiler, "--version"]))[0])


def compile_cuda(targets: Iterable[str] = TARGETS, table: Iterable[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Compiles every kernel for every target, warnings being errors, and returns one record for each.

    Keys: ``backend`` ("cuda"), ``kernel`` (such as ``score_tokens<bfloat16, noise>``), ``target``, ``registers``,
    ``spills`` (bytes), ``shared_bytes``, ``threads_per_block``, ``vector_loads`` (whether there are 16-byte loads),
    ``source`` (a stamp: of file, headers, flags, nvcc's build and this module, and of the record). Files that ``table``
    has all records of, unchanged, are not compiled again.

    Raises:
        FileNotFoundError: nvcc or the sources are not here.
        RuntimeError: nvcc refuses a source; the message is its output.
    """
    compiler = nvcc()
    if compiler is None:
        raise FileNotFoundError("nvcc was not found: install the CUDA toolkit, or set CUDA_HOME")
    sources = sorted(SOURCES.glob("*.cu"))
    if not sources:
        raise FileNotFoundError(f"no CUDA sources in {SOURCES}: a source checkout is needed")
    by_source, build = known(table, _KEYS), _run([compiler, "--version"])
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor:

        def records(job: tuple[str, Path]) -> list[dict[str, Any]]:
            target, source = job
            key = _fingerprint(source, target, build)
            found = by_source.get(key) or _compile(compiler, source, target)
            carried = stamp(key, found, _KEYS)
            return [{name: record[name] for name in _KEYS} | {"source": carried} for record in found]

        compiled = executor.map(records, [(target, source) for target in targets for source in sources])
        return [record for each in compiled for record in each]


def _fingerprint(source: Path, target: str, build: str) -> str:
    headers = sorted([*SOURCES.glob("*.h"), *(SOURCES.parent / "include").rglob("*.h")])
    texts = [path.read_text() for path in (source, SOURCES / "nvcc_flags.txt", Path(__file__), *headers)]
    more = (os.environ.get(f"NVCC_{place}_FLAGS", "") for place in ("PREPEND", "APPEND"))
    return fingerprint(*texts, target, build, *more)


@functools.cache
def _compile(compiler: str, source: Path, target: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        output = _run(_command(compiler, source, target, "-cubin", "-Xptxas=-v", "-o", str(cubin)))
        if (disassembler := _cuobjdump()) is not None:
            listing = _run([disassembler, "-sass", str(cubin)])
            functions, wide_load = listing.split("Function : ")[1:], r"\bLDG\.E[.A-Z]*\.128"
        else:
            _run(_command(compiler, source, target, "-ptx", "-o", str(ptx)))
            functions, wide_load = ptx.read_text().split(".entry ")[1:], r"\bld\.global[.a-z0-9:]*\.v4\."
    loads = {body.split("(")[0].split()[0]: re.search(wide_load, body) is not None for body in functions}
    return [
        {
            "backend": "cuda",
            "kernel": _readable(name),
            "target": target,
            **numbers,
            "threads_per_block": _threads_per_block(),
            "vector_loads": loads[name],
        }
        for name, numbers in _resources(output)
    ]


def _command(compiler: str, source: Path, target: str, *options: str) -> list[str]:
    flags = [
        "--options-file",
        str(SOURCES / "nvcc_flags.txt"),
        f"-I{SOURCES.parent}",
        f"-I{SOURCES.parent / 'include'}",
    ]
    return [compiler, *flags, *_WARNINGS, f"-arch={target}", *options, str(source)]


def _run(command: list[str]) -> str:
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{finished.stdout}")
    return finished.stdout


def _cuobjdump() -> str | None:
    """The CUDA toolkit's, or the one that comes with Triton."""
    if (found := shutil.which("cuobjdump")) is not None:
        return found
    spec = importlib.util.find_spec("triton")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        bundled = Path(folder, "backends", "nvidia", "bin", "cuobjdump")
        if bundled.exists():
            return str(bundled)
    return None


def _resources(output: str) -> list[tuple[str, dict[str, int]]]:
    """(mangled name, numbers) of every kernel that ptxas reports on."""
    found = []
    for part in output.split("Compiling entry function ")[1:]:
        entry = _ENTRY.match("Compiling entry function " + part)
        spills, used = _SPILLS.search(part), _USED.search(part)
        if entry is None or spills is None or used is None:
            raise RuntimeError(f"ptxas wrote what is not understood:\n{part}")
        numbers = {
            "registers": int(used[1]),
            "spills": int(spills[2]) + int(spills[3]),
            "shared_bytes": int(used[2] or 0),
        }
        found.append((entry["name"], numbers))
    return found


def _readable(mangled: str) -> str:
    match = _MANGLED.match(mangled)
    if match is None:
        return mangled
    if match["dtype"] is None:
        return match["stem"]
    return f"{match['stem']}<{match['dtype'].lower()}{', noise' if match['noise'] == '1' else ''}>"


@functools.cache
def _threads_per_block() -> int:
    match = re.search(r"constexpr int kThreads = (\d+);", (SOURCES / "launch.h").read_text())
    assert match is not None
    return int(match[1])
