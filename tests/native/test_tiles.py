"""Products on tile registers: by instructions in plain C++ on any machine, by the CPU's own where it has them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from wino_kernels import backends

ROOT = Path(__file__).resolve().parents[2]
SHIM, DRIVER = (Path(__file__).with_name(name) for name in ("tile_shim.h", "tile_products.cpp"))
TILES = ROOT / "csrc" / "cpu" / "tiles.cpp"
EMULATED = ("-DWINO_ISA=portable", "-include", str(SHIM))
OWN = (
    "-DWINO_ISA=amx",
    *["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma", "-mamx-tile", "-mamx-bf16"],
)


def outcome(folder: Path, source: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    command = ["c++", "-std=c++17", "-O1", "-g", *includes, *flags, str(source), str(DRIVER), "-o", "products"]
    subprocess.run(command, cwd=folder, check=True)
    return subprocess.run(["./products"], cwd=folder, capture_output=True, text=True, timeout=120)


def test_right_and_nothing_else_is_touched(tmp_path: Path) -> None:
    finished = outcome(tmp_path, TILES, *EMULATED)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("right\n", "", 0)


@pytest.mark.skipif(backends.why_not_cpu_isa("amx") is not None, reason="this machine has no tile registers")
def test_right_on_the_cpu_itself(tmp_path: Path) -> None:
    finished = outcome(tmp_path, TILES, *OWN)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("right\n", "", 0)


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("rows < kTileRows ? rows : kTileRows, n % kTileWords", "kTileRows, n % kTileWords"),
        ("rest == 0 || t_shape.rest == rest", "true"),
        ("t_shape.rows == rows && (rest", "(rest"),
        ("rows - kTileRows}", "kTileRows}"),
        ("if (n > 0) {", "if (n > 1) {"),
        ("adds ? fresh : sum", "sum"),
        ("r < rows; ++r, sum", "r < rows - 1; ++r, sum"),
    ],
)
def test_a_mistake_is_found(tmp_path: Path, text: str, instead: str) -> None:
    code = TILES.read_text()
    assert code.count(text) == 1
    changed = tmp_path / "tiles.cpp"
    changed.write_text(code.replace(text, instead))
    assert outcome(tmp_path, changed, *EMULATED).returncode != 0
