"""Reading machine code: width of the loads, matrix instructions, and how many warps one processor holds of a kernel."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple


def nvidia_loads(sass: str) -> Counter[str]:
    """Width in bits (or ``"tma"``) -> number of instructions that read global memory, from SASS."""
    found: Counter[str] = Counter()
    for instruction in re.findall(r"\b(?:LDG|LDGSTS|UTMALDG|UBLKCP)\b[.\w]*", sass):
        name, *modifiers = instruction.split(".")
        if name in ("UTMALDG", "UBLKCP"):
            found["tma"] += 1
            continue
        widths = [part for part in modifiers if part in ("256", "128", "64", "U16", "S16", "U8", "S8")]
        found[widths[0].lstrip("US") if widths else "32"] += 1
    return found


def amd_loads(assembly: str) -> Counter[str]:
    """Width in bits -> number of instructions that read global memory, from amdgcn assembly."""
    found: Counter[str] = Counter()
    for suffix in re.findall(r"\b(?:global|buffer|flat)_load_(?:lds_)?(\w+)", assembly):
        match = re.match(r"dwordx(\d)|dword|[us]?short|[us]?byte", suffix)
        if match is None:
            raise ValueError(f"unknown load instruction in amdgcn assembly: _load_{suffix}")
        bits = {"d": 32, "s": 16, "u": 16, "b": 8}[match[0][0]] if "byte" not in match[0] else 8
        found[str(bits * int(match[1] or 1))] += 1
    return found


def is_wide(loads: dict[str, int]) -> bool:
    """Whether global memory is read 16 bytes or more at a time."""
    return any(loads.get(width) for width in ("128", "256", "tma"))


def matrix_instructions(code: str) -> list[str]:
    """Names of the matrix instructions in SASS or amdgcn assembly."""
    return sorted(set(re.findall(r"\b(?:[A-Z]+MMA|v_s?mfmac?)(?=[._\s])", code)))


class Processor(NamedTuple):
    """What one streaming multiprocessor (or compute unit) holds.

    NVIDIA: CUDA C++ Programming Guide, "Compute Capabilities". AMD: CDNA 3 instruction set architecture; LLVM's AMDGPU
    guide. Registers are those of one lane, summed over the processor's four partitions, each with its own warps.
    """

    warps: int
    blocks: int
    registers: int
    shared: int
    shared_step: int
    shared_reserved: int  # per block
    tensor_memory: int  # columns


PROCESSORS = {
    "sm_80": Processor(64, 32, 65536 // 32, 164 << 10, 128, 1024, 0),
    "sm_90": Processor(64, 32, 65536 // 32, 228 << 10, 128, 1024, 0),
    "sm_100": Processor(64, 32, 65536 // 32, 228 << 10, 128, 1024, 512),
    "sm_120": Processor(48, 24, 65536 // 32, 100 << 10, 128, 1024, 0),
    "gfx942": Processor(32, 32, 4 * 512, 64 << 10, 512, 0, 0),
}
_PARTITIONS = 4
_REGISTER_STEP = 8


def occupancy(target: str, registers: int, shared_bytes: int, num_warps: int, tensor_memory: int = 0) -> dict[str, Any]:
    """Warps that one processor holds at once, out of how many, and which resource sets the limit."""
    chip = PROCESSORS[target]
    per_warp = _round_up(max(registers, 1), _REGISTER_STEP)
    warps = chip.registers // _PARTITIONS // per_warp * _PARTITIONS
    shared = _round_up(shared_bytes + chip.shared_reserved, chip.shared_step)
    blocks = {
        "warps": chip.warps // num_warps,
        "blocks": chip.blocks,
        "registers": warps // num_warps,
        "shared memory": chip.shared // shared if shared else chip.blocks,
        "tensor memory": chip.tensor_memory // tensor_memory if tensor_memory else chip.blocks,
    }
    limit = min(blocks, key=lambda name: blocks[name])
    return {"warps_per_sm": blocks[limit] * num_warps, "max_warps_per_sm": chip.warps, "limited_by": limit}


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
