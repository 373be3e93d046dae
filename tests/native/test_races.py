"""The CPU kernels whose threads wait for one another, under the thread sanitizer."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("races")

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ("g++", "-std=c++17", "-g", "-O1", "-fsanitize=thread", "-pthread")
OPERATOR = ROOT / "csrc" / "cpu" / "shadow_trunk.cpp"
DRIVER = Path(__file__).with_name("shadow_trunk_races.cpp")
OTHERS = [
    ROOT / "csrc" / "cpu" / f"{name}.cpp"
    for name in ("matrix", "norm_qkv_rope", "out_norm_swiglu", "shadow_attention", "threads")
]


def watched(program: Path) -> tuple[str, str]:
    """What it prints, and what the sanitizer does, which wants addresses that are not random."""
    command = ["setarch", platform.machine(), "-R", str(program)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return finished.stdout, finished.stderr


def compile_objects(folder: Path, *sources: Path) -> None:
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}", "-DWINO_ISA=portable"]
    subprocess.run([*COMMAND, *includes, "-c", *map(str, sources)], cwd=folder, check=True)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything compiled but the operator."""
    folder = tmp_path_factory.mktemp("races")
    program = folder / "race.cpp"
    program.write_text("#include <thread>\nint x;\nint main() { std::thread t([] { x = 1; }); x = 2; t.join(); }\n")
    needed = shutil.which(COMMAND[0]) and shutil.which("setarch")
    if not needed or subprocess.run([*COMMAND, "race.cpp", "-o", "race"], cwd=folder).returncode:
        pytest.skip("needs g++ with the thread sanitizer, and setarch")
    if "data race" not in watched(folder / "race")[1]:
        pytest.skip("the thread sanitizer does not work here")
    compile_objects(folder, *OTHERS, DRIVER)
    return folder


def report(objects: Path, folder: Path, source: Path) -> tuple[str, str]:
    compile_objects(folder, source)
    program = folder / "program"
    subprocess.run([*COMMAND, *objects.glob("*.o"), *folder.glob("*.o"), "-ldl", "-o", program], check=True)
    return watched(program)


def test_nothing_races(objects: Path, tmp_path: Path) -> None:
    assert report(objects, tmp_path, OPERATOR) == ("equal\n", "")


@pytest.mark.parametrize(
    ("stage", "wait"),
    [
        ("before.rows(), mlp_rows, qkv_packed", "mlp_rows"),
        ("before.rows(), mlp_rows, qkv_packed", "qkv_packed"),
        ("after.packing(), nullptr, mlp_rows", "mlp_rows"),
        ("attention.heads(), qkv_rows, nullptr", "qkv_rows"),
        ("before.packing(), nullptr, qkv_rows", "qkv_rows"),
        ("after.rows(), heads, mlp_packed", "heads"),
        ("after.rows(), heads, mlp_packed", "mlp_packed"),
        ("norm_rows<T>, &a}, mlp_rows, nullptr", "mlp_rows"),
    ],
)
def test_a_wait_less_is_a_race(objects: Path, tmp_path: Path, stage: str, wait: str) -> None:
    text = OPERATOR.read_text()
    assert text.count(stage) == 1
    changed = tmp_path / "changed.cpp"
    changed.write_text(text.replace(stage, stage.replace(wait, "nullptr")))
    assert "data race" in report(objects, tmp_path, changed)[1]
