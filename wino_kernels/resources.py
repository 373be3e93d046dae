"""What each GPU kernel compiles to, found out without a GPU: ``python -m wino_kernels.resources``.

Every Triton kernel is compiled ahead of time exactly as its operator launches it at the models' shapes, the CUDA C++
kernels by nvcc; registers, spills, shared memory, width of the loads and matrix instructions are read from the machine
code. ``--write`` fills docs/resources.json and docs/kernels.md, ``--check`` compares the former with a fresh run,
``--changed`` leaves out the compilation of what the table has from the very same sources and compiler.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import importlib
import inspect
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wino_kernels import machine_code
from wino_kernels.env_report import module_version
from wino_kernels.fingerprints import fingerprint, known, stamp
from wino_kernels.machine_code import amd_loads, is_wide, matrix_instructions, nvidia_loads, occupancy

Row = dict[str, Any]

#: Backend -> the chips its kernels are compiled for.
TARGETS = {
    "triton": ("sm_80", "sm_90", "sm_100", "gfx942"),
    "cuda": ("sm_80", "sm_90", "sm_100", "sm_120"),
}
BACKENDS = tuple(TARGETS)
ALL_TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "resources.json"

#: Operators whose work is a matrix product: a kernel of theirs must multiply matrices.
MATRIX_OPERATORS = ("linear_score_tokens", "shadow_attention", "trajectory_loss", "trajectory_loss_backward")
#: Operators that read each logit once.
LOGITS_OPERATORS = ("score_tokens", "wino_step_")
#: A kernel given an input of this many bytes streams it, and must do so in loads of 128 bits or more.
STREAMED_BYTES = 1 << 20

#: Compared with the checked-in table: what another compiler version may change, and what it may not.
EXACT = (
    "registers",
    "scalar_spills",
    "shared_bytes",
    "num_warps",
    "loads",
    "vector_loads",
    "matrix_instructions",
    "warps_per_sm",
)


#: What is read from a compiled kernel: another source, or another way to read it, may change it.
COMPILED = (*EXACT, "spills", "multiplies", "max_warps_per_sm", "limited_by")


class Model(NamedTuple):
    """The sizes of a checkpoint that reach the operators."""

    name: str
    vocabulary: int
    hidden: int
    heads: int
    width: int


LLADA = Model("LLaDA-8B", 126464, 4096, 32, 128)
MMADA = Model("MMaDA-8B", 134656, 4096, 32, 128)
MASK_ID = 126336
#: Prompt, generation and block length of the papers' settings.
PROMPT, GENERATION, BLOCK = 128, 256, 128


class ResourcesError(RuntimeError):
    """Something the table needs is missing or does not compile; the message names the remedy."""


Case = tuple[str, str, tuple[Any, ...]]  # operator, name, its positional arguments on the meta device


def cases() -> list[Case]:
    """Every operator at the shapes, dtypes and options that may compile to code of its own."""
    half, single = torch.bfloat16, torch.float32
    found: list[Case] = [
        ("linear_score_tokens", f"bfloat16 N={rows}", _head_rows(rows)) for rows in (1, 32, BLOCK, 1024)
    ]
    found += [
        ("linear_score_tokens", "bfloat16 N=1024 unrounded", _head_rows(1024, round_to=torch.float32)),
        ("linear_score_tokens", "bfloat16 N=128 noise", _head_rows(BLOCK, noise=True)),
        ("linear_score_tokens", "float16 N=128", _head_rows(BLOCK, torch.float16)),
        ("shadow_attention", "bfloat16 d=128", _attention(128)),
        ("shadow_attention", "bfloat16 d=96", _attention(96)),
        ("shadow_attention", "bfloat16 d=64", _attention(64)),
        ("shadow_attention", "bfloat16 d=128 padded", _attention(128, padded=True)),
        ("shadow_attention", "bfloat16 d=128 cached keys", _attention(128, cached=512)),
        ("norm_qkv_rope", "bfloat16", _before_attention()),
        ("norm_qkv_rope", "bfloat16 some ask", _before_attention(some=True)),
        ("out_norm_swiglu", "bfloat16", _after_attention()),
        ("shadow_trunk", "bfloat16", _trunk()),
        ("trajectory_loss", "bfloat16 N=256", _loss(256)),
        ("trajectory_loss_backward", "bfloat16 N=256", _loss_backward(256, weight_gradient=False)),
        ("trajectory_loss_backward", "bfloat16 N=256 weight gradient", _loss_backward(256, weight_gradient=True)),
    ]
    for name, dtype in (("bfloat16", half), ("float32", single)):
        found += [
            ("score_tokens", f"{name} LLaDA-8B", _scored(LLADA, dtype)),
            ("score_tokens", f"{name} MMaDA-8B", _scored(MMADA, dtype)),
            ("score_tokens", f"{name} noise", _scored(LLADA, dtype, noise=True)),
            ("wino_step_", name, _step(dtype)),
            ("wino_step_", f"{name} noise", _step(dtype, noise=True)),
        ]
    for length in (32, BLOCK, 1024):
        found += [
            ("accept_remask_", f"K={length}", _accept_remask(length)),
            ("accept_", f"K={length} threshold", _accept(length, threshold=torch.tensor(0.9))),
            ("accept_", f"K={length} count", _accept(length, count=torch.tensor(4))),
        ]
    return found


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _ids(*shape: int) -> Tensor:
    return _meta(*shape, dtype=torch.int64)


def _noise(noise: bool, *shape: int) -> tuple[Tensor | None, Tensor | None]:
    """A host's temperature and one seed a row."""
    return (torch.tensor(0.5), _ids(*shape)) if noise else (None, None)


def _rule() -> tuple[Any, ...]:
    return MASK_ID, torch.tensor(0.6), torch.tensor(0.9), 0.7, 5, 20, False


def _scored(model: Model, dtype: torch.dtype, noise: bool = False) -> tuple[Any, ...]:
    return _meta(1, BLOCK, model.vocabulary, dtype=dtype), _ids(1, BLOCK), *_noise(noise, 1, BLOCK)


def _head_rows(
    rows: int, dtype: torch.dtype = torch.bfloat16, noise: bool = False, round_to: torch.dtype | None = None
) -> tuple[Any, ...]:
    hidden, weight = _meta(rows, LLADA.hidden, dtype=dtype), _meta(LLADA.vocabulary, LLADA.hidden, dtype=dtype)
    return hidden, weight, _ids(rows), None, *_noise(noise, rows), round_to


def _block(length: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """tokens, masked, revocable."""
    shape = (batch, length)
    return _ids(*shape), _meta(*shape, dtype=torch.bool), _meta(*shape, dtype=torch.bool)


def _accept_remask(length: int) -> tuple[Any, ...]:
    draft = _ids(1, length), _meta(1, length, dtype=torch.float64)
    return *_block(length), *draft, _meta(1, dtype=torch.int32), *_rule()


def _accept(length: int, threshold: Tensor | None = None, count: Tensor | None = None) -> tuple[Any, ...]:
    tokens, masked, _ = _block(length)
    return tokens, masked, _ids(1, length), _meta(1, length, dtype=torch.float64), threshold, count


def _step(dtype: torch.dtype, noise: bool = False) -> tuple[Any, ...]:
    logits, last = _meta(1, BLOCK, LLADA.vocabulary, dtype=dtype), _meta(1, dtype=torch.int32)
    return logits, *_block(BLOCK), last, *_noise(noise, 1, BLOCK), *_rule()


def _attention(width: int, padded: bool = False, cached: int = 0) -> tuple[Any, ...]:
    queries = BLOCK if cached else PROMPT + GENERATION + BLOCK
    keys = cached + queries
    query, key, value = (_meta(1, LLADA.heads, length, width) for length in (queries, keys, keys))
    padding = _meta(1, keys, dtype=torch.bool) if padded else None
    return query, key, value, 0 if cached else BLOCK, _ids(1), padding, None


_LENGTH, _INNER, _EPS = PROMPT + GENERATION + BLOCK, 3 * LLADA.hidden, 1e-5


def _layer() -> list[Tensor]:
    """Weights of a layer of LLaDA-8B, in the order of ``shadow_trunk``."""
    square, wide = (LLADA.hidden, LLADA.hidden), (_INNER, LLADA.hidden)
    sizes = [(LLADA.hidden,), square, square, square, square, (LLADA.hidden,), wide, wide, wide[::-1]]
    return [_meta(*size) for size in sizes]


def _rotary() -> tuple[Tensor, Tensor]:
    return _meta(1, 1, _LENGTH, LLADA.width, dtype=torch.float32), _meta(
        1, 1, _LENGTH, LLADA.width, dtype=torch.float32
    )


def _before_attention(some: bool = False) -> tuple[Any, ...]:
    asking = _ids(1, BLOCK) if some else None
    return _meta(1, _LENGTH, LLADA.hidden), *_layer()[:4], *_rotary(), _EPS, None, None, None, asking, True


def _after_attention() -> tuple[Any, ...]:
    attended = _meta(1, LLADA.heads, _LENGTH, LLADA.width)
    return _meta(1, _LENGTH, LLADA.hidden), attended, *_layer()[4:], _EPS


def _trunk() -> tuple[Any, ...]:
    weights, rows = [*_layer(), *_layer()], _ids(1, BLOCK)
    return _meta(1, _LENGTH, LLADA.hidden), weights, [], *_rotary(), rows, BLOCK, _ids(1), _EPS, None, weights[0], True


def _loss(rows: int) -> tuple[Any, ...]:
    hidden, weight = _meta(1, rows, LLADA.hidden), _meta(LLADA.vocabulary, LLADA.hidden)
    masks = _meta(1, rows, dtype=torch.bool), _meta(1, rows, dtype=torch.bool)
    return hidden, weight, _ids(1, rows), *masks, torch.tensor(0.6), torch.tensor(0.9)


def _loss_backward(rows: int, weight_gradient: bool) -> tuple[Any, ...]:
    hidden, weight, labels, *_ = _loss(rows)
    statistics = _meta(3, rows, dtype=torch.float32)
    return _meta(3, dtype=torch.float32), hidden, weight, labels, statistics, weight_gradient


def compile_triton(operators: Sequence[str], targets: Sequence[str], table: Iterable[Row] = ()) -> list[Row]:
    """The Triton half of the table, of all operators if none is named.

    A target that the installed Triton cannot compile for is named on stderr, with Triton's reason. What the rows of
    ``table`` have of the same source, options, target and Triton is not compiled again.

    Raises:
        ResourcesError: Triton is not installed, has no kernel for an operator, or does not compile one.
    """
    if _triton_version() is None:
        raise ResourcesError("Triton is not installed: `pip install 'triton>=3.4'` (Linux only)")
    by_source = {source: rows[0] for source, rows in known(table, COMPILED).items()}
    # A fresh cache, so that no kernel comes from an earlier run; spawned processes, so that Triton is not interpreted.
    with (
        tempfile.TemporaryDirectory(prefix="wino-resources-") as cache,
        concurrent.futures.ProcessPoolExecutor(
            os.cpu_count(), multiprocessing.get_context("spawn"), _prepare_worker, (cache,)
        ) as pool,
    ):
        registered, refusals = pool.submit(_probe, targets).result()
        for target, reason in refusals.items():
            print(f"{target}: not compiled, {reason}", file=sys.stderr)
        usable = [target for target in targets if target not in refusals]
        if not usable:
            raise ResourcesError(f"Triton {_triton_version()} compiles for none of {', '.join(targets)}")
        rows = _all_done(
            {
                pool.submit(_compile, op, target, by_source): f"{op} {target}"
                for op in _chosen(registered, operators)
                for target in usable
            },
            pool,
        )
    order = list(dict.fromkeys(op for op, _, _ in cases()))
    return sorted(
        rows,
        key=lambda row: (
            order.index(row["operator"]),
            row["kernel"],
            list(row["cases"]),
            row["variant"],
            _rank(row["target"]),
        ),
    )


def _all_done(jobs: dict[concurrent.futures.Future[list[Row]], str], pool: concurrent.futures.Executor) -> list[Row]:
    rows: list[Row] = []
    started = time.monotonic()
    for number, job in enumerate(concurrent.futures.as_completed(jobs), 1):
        try:
            rows += job.result()
        except Exception as error:
            pool.shutdown(cancel_futures=True)
            raise ResourcesError(f"{jobs[job]} does not compile: {type(error).__name__}: {error}") from error
        print(f"[{number}/{len(jobs)}, {time.monotonic() - started:.0f} s] {jobs[job]}", file=sys.stderr)
    return rows


def _chosen(registered: Sequence[str], operators: Sequence[str]) -> list[str]:
    """In the order of ``cases``: what takes longest to compile first."""
    known = list(dict.fromkeys(op for op, _, _ in cases()))
    if forgotten := set(registered) - set(known):
        raise ResourcesError(f"no case in wino_kernels.resources.cases() for {', '.join(sorted(forgotten))}")
    if absent := set(operators) - set(registered):
        raise ResourcesError(f"Triton has no kernel for {', '.join(sorted(absent))}; it has {', '.join(registered)}")
    return [op for op in known if op in (operators or registered)]


def _prepare_worker(cache: str) -> None:
    """Before Triton is imported: nothing interpreted, the checked-in configurations, Triton's own tools."""
    for name in [name for name in os.environ if name.startswith("TRITON_") and name != "TRITON_HIP_LLD_PATH"]:
        del os.environ[name]
    os.environ["TRITON_CACHE_DIR"] = cache
    os.environ["WINO_TUNED"] = os.path.join(cache, "not-tuned.json")


def _gpu_target(target: str) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target[3:]), 32)


def _probe(targets: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """In a worker: the operators with a Triton kernel, and why Triton cannot compile for some targets here."""
    from triton.compiler import make_backend

    refusals = {}
    for target in targets:
        try:
            make_backend(_gpu_target(target)).hash()
        except Exception as error:  # Triton raises plain exceptions about the tools of a backend that it misses
            refusals[target] = str(error)
    return list(importlib.import_module("wino_kernels.triton").KERNELS), refusals


def _compile(operator: str, target: str, by_source: Mapping[str, Row]) -> list[Row]:
    """In a worker: one row for each distinct kernel that ``operator`` launches over its cases."""
    from wino_kernels.triton import KERNELS
    from wino_kernels.triton.launch import recording

    rows: dict[str, Row] = {}
    for name, arguments in ((name, arguments) for op, name, arguments in cases() if op == operator):
        with recording(target) as launches:
            KERNELS[operator](*arguments)
        if not launches:
            raise ResourcesError(f"{operator}, {name}: launched nothing")
        inputs = [tensor for tensor in arguments if isinstance(tensor, Tensor)]
        for launch in launches:
            source, options = specialised(launch, target)
            key = _fingerprint(launch, source, target)
            if key not in rows:
                about = {"backend": "triton", "operator": operator, "cases": {}}
                code = by_source[key] if key in by_source else _compiled(source, options, target)
                row = (
                    about
                    | {"kernel": source.name, "target": target}
                    | {name: code[name] for name in code if name in COMPILED}
                )
                rows[key] = row | {"streams": _streamed(launch, inputs), "source": stamp(key, [row], COMPILED)}
            launched = rows[key]["cases"]
            launched[name] = launched.get(name, 0) + 1
    seen: Counter[tuple[str, ...]] = Counter()
    for row in rows.values():  # one kernel may be launched twice in a call, on tensors of other kinds
        twin = (row["kernel"], *row["cases"])
        row["variant"] = seen[twin]
        seen[twin] += 1
    return list(rows.values())


def _fingerprint(launch: Any, source: Any, target: str) -> str:
    """Of what ``COMPILED`` follows from: source with the functions it calls, types, constants, options; its readers."""
    options = launch.options._replace(entry=None)
    return fingerprint(_kernel_hash(source), options, target, _triton_version(), *_readers())


def _kernel_hash(source: Any) -> str:
    from triton.runtime.jit import JITFunction

    for module in [module for name, module in sys.modules.items() if name.startswith("wino_kernels.triton.")]:
        for function in vars(module).values():
            if isinstance(function, JITFunction):
                function.starting_line_number = 0  # where in its file a kernel stands is not part of it
    return str(source.hash())


@functools.cache
def _readers() -> tuple[str, ...]:
    readers = (specialised, _compiled, _nvidia_code, _amd_code)
    return (inspect.getsource(machine_code), *(inspect.getsource(reader) for reader in readers))


def specialised(launch: Any, target: str) -> tuple[Any, dict[str, Any]]:
    """What Triton's JIT would compile for ``launch`` on ``target``, if its tensors are aligned to 16 bytes."""
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    backend, kernel = make_backend(_gpu_target(target)), launch.kernel
    options = {
        "num_warps": launch.options.num_warps,
        "num_stages": launch.options.num_stages,
        "enable_fp_fusion": launch.options.fp_fusion,
    }
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, kinds, _ = bind(**launch.arguments, **launch.constants, **options)
    signature = {param.name: kind for param, (kind, _) in zip(kernel.params, kinds, strict=True)}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for position, (value, (kind, attribute)) in enumerate(zip(bound.values(), kinds, strict=True)):
        if kind == "constexpr":
            constants[position,] = value
        elif isinstance(attribute, str):
            attributes[position,] = backend.parse_attr(attribute)
    return ASTSource(kernel, signature, constants, attributes), backend.parse_options(options).__dict__


def _compiled(source: Any, options: dict[str, Any], target: str) -> Row:
    """``COMPILED`` of a row."""
    import triton

    compiled = triton.compile(source, target=_gpu_target(target), options=options)
    metadata, num_warps = compiled.metadata, compiled.metadata.num_warps
    code = _amd_code(compiled.asm["amdgcn"]) if target.startswith("gfx") else _nvidia_code(compiled.asm["cubin"])
    return {
        **code,
        "shared_bytes": metadata.shared,
        "num_warps": num_warps,
        "multiplies": "tt.dot" in compiled.asm["ttir"],
        **occupancy(target, code["registers"], metadata.shared, num_warps, getattr(metadata, "tmem_size", 0) or 0),
    }


def _streamed(launch: Any, inputs: Sequence[Tensor]) -> list[str]:
    """The kernel's arguments that lie in a large one of ``inputs``."""
    large = {tensor.untyped_storage()._cdata for tensor in inputs if tensor.nbytes >= STREAMED_BYTES}
    tensors = {name: value for name, value in launch.arguments.items() if isinstance(value, Tensor)}
    return [name for name, tensor in tensors.items() if tensor.untyped_storage()._cdata in large]


def _nvidia_code(cubin: bytes) -> Row:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    loads = nvidia_loads(text)
    return {
        "registers": usage["REG"],
        "spills": (usage["STACK"] + usage["LOCAL"]) // 4,  # registers kept in local memory
        "loads": dict(sorted(loads.items())),
        "matrix_instructions": matrix_instructions(text),
    }


def _amd_code(assembly: str) -> Row:
    usage = {
        name: int(value)
        for name, value in re.findall(r"\.([sv]gpr(?:_spill)?_count|private_segment_fixed_size):\s*(\d+)", assembly)
    }
    return {
        "registers": usage["vgpr_count"],
        "spills": max(usage["vgpr_spill_count"], usage["private_segment_fixed_size"] // 4),
        "scalar_spills": usage["sgpr_spill_count"],  # into lanes of a vector register, not into memory
        "loads": dict(sorted(amd_loads(assembly).items())),
        "matrix_instructions": matrix_instructions(assembly),
    }


def compile_cuda(targets: Sequence[str], table: Iterable[Row] = ()) -> list[Row]:
    """The CUDA C++ half of the table; ``table`` as for :func:`compile_triton`.

    Raises:
        ResourcesError: no nvcc, no sources, or they do not compile.
    """
    from wino_kernels.cuda import compiled

    try:
        rows = compiled.compile_cuda(targets, table)
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        raise ResourcesError(str(error)) from error
    names = {op.rstrip("_"): op for op, _, _ in cases()}
    for row in rows:
        num_warps = row["threads_per_block"] // 32
        row["operator"] = names[row["kernel"].partition("<")[0]]
        row |= {"num_warps": num_warps} | occupancy(row["target"], row["registers"], row["shared_bytes"], num_warps)
    return sorted(rows, key=lambda row: (row["operator"], row["kernel"], _rank(row["target"])))


def _rank(target: str) -> int:
    return ALL_TARGETS.index(target)


def _triton_version() -> str | None:
    return module_version("triton")


def versions() -> dict[str, str | None]:
    """Version of each backend's compiler here; None where it is not installed."""
    from wino_kernels.cuda import compiled

    return {"triton": _triton_version(), "cuda": compiled.version()}


def compilable() -> list[str]:
    """The backends whose compiler is installed."""
    return [backend for backend, version in versions().items() if version is not None]


def shortcomings(rows: Iterable[Row]) -> list[str]:
    """What every kernel must fulfil whatever compiled it; each line names kernel, target and what is wrong."""
    found: list[str] = []
    for row in rows:
        label = _label(row)
        if row["spills"]:
            found.append(f"{label}: spills {row['spills']}, must be 0")
        if row.get("multiplies") and not row["matrix_instructions"]:
            found.append(f"{label}: multiplies matrices without matrix instructions")
        if row.get("streams") and not is_wide(row["loads"]):
            found.append(f"{label}: streams {', '.join(row['streams'])} without 128-bit loads, only {row['loads']}")
        if row["backend"] == "cuda" and row["operator"] in LOGITS_OPERATORS and not row["vector_loads"]:
            found.append(f"{label}: streams logits without 128-bit loads")
        if row["warps_per_sm"] == 0:
            found.append(f"{label}: does not fit on a processor, limited by {row['limited_by']}")
    return found


def differences(table: dict[str, Any], rows: Sequence[Row], compilers: dict[str, str | None]) -> list[str]:
    """How ``rows`` differ from those that ``table`` has of the same operators and targets, where versions agree."""
    found: list[str] = []
    for backend in BACKENDS:
        fresh = {_key(row): row for row in rows if row["backend"] == backend}
        if not fresh or table["versions"][backend] != compilers[backend]:
            continue
        compared = {(row.get("operator"), row["target"]) for row in fresh.values()}
        listed = {_key(row): row for row in table["rows"] if row["backend"] == backend}
        listed = {key: row for key, row in listed.items() if (row.get("operator"), row["target"]) in compared}
        found += [f"{_label(row)}: not in the table" for key, row in fresh.items() if key not in listed]
        found += [f"{_label(row)}: in the table, but no such kernel" for key, row in listed.items() if key not in fresh]
        for key in fresh.keys() & listed.keys():
            for name in EXACT:
                if fresh[key].get(name) != listed[key].get(name):
                    have, want = fresh[key].get(name), listed[key].get(name)
                    found.append(f"{_label(fresh[key])}: {name} {have}, in the table {want}")
    return sorted(found)


def _key(row: Row) -> tuple[Any, ...]:
    return row["backend"], row.get("operator"), row["kernel"], row.get("variant"), row["target"], *row.get("cases", ())


def _label(row: Row) -> str:
    shape = f" ({'; '.join(row['cases'])})" if row.get("cases") else ""
    return f"{row['backend']} {row.get('operator', '')} {row['kernel']}{shape} {row['target']}"


def markdown(rows: Sequence[Row]) -> str:
    """One line a kernel; per target registers / shared memory / warps per processor out of its maximum."""
    targets = sorted({row["target"] for row in rows}, key=_rank)
    lines: dict[tuple[Any, ...], tuple[list[str], dict[str, str]]] = {}
    for row in rows:
        key = tuple(part for part in _key(row) if part != row["target"])
        names = [row["backend"], f"`{row.get('operator', '')}`", f"`{row['kernel']}`", "; ".join(row.get("cases", ()))]
        lines.setdefault(key, (names, {}))[1][row["target"]] = _cell(row)
    body = [[*names, *(cells.get(target, "") for target in targets)] for names, cells in lines.values()]
    return _table(["backend", "operator", "kernel", "compiled for", *targets], body)


def launches(rows: Sequence[Row]) -> str:
    """How many kernels one call starts: a range where it differs from case to case or from target to target."""
    numbers: dict[tuple[str, str], dict[tuple[str, str], int]] = {}
    for row in rows:
        for case, number in row.get("cases", {}).items():
            counted = numbers.setdefault((row["backend"], row["operator"]), {})
            counted[case, row["target"]] = counted.get((case, row["target"]), 0) + number
    body = []
    for (backend, operator), counted in numbers.items():
        least, most = min(counted.values()), max(counted.values())
        body.append([f"`{operator}`", backend, str(least) if least == most else f"{least} to {most}"])
    return _table(["operator", "backend", "kernels a call"], body)


def _table(header: list[str], body: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *body)])


def _cell(row: Row) -> str:
    cell = (
        f"{row['registers']} / {row['shared_bytes'] / 1024:.3g} K / {row['warps_per_sm']} of {row['max_warps_per_sm']}"
    )
    spilled = [f"**spills {row['spills']}**"] if row["spills"] else []
    spilled += [f"{row['scalar_spills']} scalars in lanes"] if row.get("scalar_spills") else []
    return ", ".join([cell, *spilled, *row.get("matrix_instructions", ())])


def write(rows: Sequence[Row], compilers: dict[str, str | None], path: Path) -> None:
    """The table, and the section of kernels.md beside it."""
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps({"generated_by": "python -m wino_kernels.resources --write", "versions": compilers})
    _replace_file(path, f'{head[:-1]}, "rows": [\n{lines}\n]}}\n')
    document = path.with_name("kernels.md")
    if document.exists():
        text = document.read_text(encoding="utf-8")
        for name, section in (("resources", markdown(rows)), ("launches", launches(rows))):
            text = _with_section(text, name, section)
        _replace_file(document, text)


def _with_section(document: str, name: str, section: str) -> str:
    pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{section}\n{match[2]}", document)


def _replace_file(path: Path, text: str) -> None:
    """All of it or nothing: another process never reads half a table."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def read(path: Path) -> dict[str, Any]:
    """A table that ``write`` wrote.

    Raises:
        ResourcesError: the file is missing or is not such a table.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        for row in table["rows"]:
            _label(row)
        if set(table["versions"]) != set(BACKENDS):
            raise ValueError(f"versions must name {' and '.join(BACKENDS)}")
        return dict(table)
    except OSError as error:
        raise ResourcesError(f"{path}: {error.strerror}; write it with `--write` in the source tree") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ResourcesError(f"{path}: not a table of resources ({type(error).__name__}: {error})") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m wino_kernels.resources",
        description="Registers, spills, shared memory, loads, matrix instructions of every GPU kernel; needs no GPU.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="print the rows as a JSON list (default: a Markdown table)")
    what.add_argument("--write", action="store_true", help="write --table and the section of kernels.md beside it")
    what.add_argument("--check", action="store_true", help="compare with --table; exit code 1 names the differences")
    parser.add_argument("--changed", action="store_true", help="compile only what --table has not of the same sources")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="default: docs/resources.json")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="default: all; may be repeated")
    parser.add_argument("--operator", action="append", default=[], metavar="NAME", help="default: all; may be repeated")
    parser.add_argument("--target", action="append", choices=ALL_TARGETS, help="default: all; may be repeated")
    return parser


def collect(
    backends: Sequence[str], operators: Sequence[str], targets: Sequence[str], partial: bool, table: Sequence[Row] = ()
) -> list[Row]:
    """The rows of ``backends``. ``partial``: one that cannot be compiled here is named on stderr and left out.

    Raises:
        ResourcesError: a backend cannot be compiled, and ``partial`` is false or none is left.
    """
    rows: list[Row] = []
    for backend in backends:
        chosen = [target for target in TARGETS[backend] if target in (targets or ALL_TARGETS)]
        try:
            if backend == "triton" and chosen:
                rows += compile_triton(operators, chosen, table)
            elif chosen:
                compiled = compile_cuda(chosen, table)
                rows += [row for row in compiled if row["operator"] in (operators or [row["operator"]])]
        except ResourcesError as error:
            if not partial:
                raise
            print(f"{backend}: left out, {error}", file=sys.stderr)
    if not rows:
        raise ResourcesError("nothing could be compiled")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.write and (chosen.backend or chosen.operator or chosen.target):
        parser.error("--write takes no --backend, --operator or --target: the table is written whole")
    try:
        table = read(chosen.table) if chosen.check or chosen.changed else None
        partial, listed = not (chosen.write or chosen.backend), table["rows"] if table and chosen.changed else ()
        rows = collect(chosen.backend or BACKENDS, chosen.operator, chosen.target or (), partial, listed)
        found = shortcomings(rows)
        if chosen.check and table:
            found += _compare(table, rows)
        elif chosen.write:
            found += _missing(rows)
            if not found:
                write(rows, versions(), chosen.table)
        else:
            print(json.dumps(rows, indent=1) if chosen.json else markdown(rows))
    except (ResourcesError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in found + ["nothing was written"] * bool(chosen.write and found):
        print(line, file=sys.stderr)
    return int(bool(found) and (chosen.check or chosen.write))


def _compare(table: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    here = versions()
    for backend in {row["backend"] for row in rows}:
        if table["versions"][backend] != here[backend]:
            print(f"{backend}: another compiler wrote the table, only requirements are checked", file=sys.stderr)
    return differences(table, rows, here)


def _missing(rows: Sequence[Row]) -> list[str]:
    compiled = {(row["backend"], row["target"]) for row in rows}
    wanted = [(backend, target) for backend in BACKENDS for target in TARGETS[backend]]
    return [
        f"{backend}: nothing compiled for {target}" for backend, target in wanted if (backend, target) not in compiled
    ]


if __name__ == "__main__":
    sys.exit(main())
