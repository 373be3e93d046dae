"""The CPU kernels whose threads wait for one another, under the thread sanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ("g++", "-std=c++17", "-g", "-O1", "-fsanitize=thread", "-pthread")
SOURCES = ("matrix", "norm_qkv_rope", "out_norm_swiglu", "shadow_attention", "shadow_trunk", "threads")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the sources, where the sanitizer works."""
    folder = tmp_path_factory.mktemp("races")
    program = folder / "race.cpp"
    program.write_text("#include <thread>\nint x;\nint main() { std::thread t([] { x = 1; }); x = 2; t.join(); }\n")
    if not shutil.which(COMMAND[0]) or subprocess.run([*COMMAND, "race.cpp", "-o", "race"], cwd=folder).returncode:
        pytest.skip("needs g++ with the thread sanitizer")
    if b"data race" not in subprocess.run([folder / "race"], capture_output=True).stderr:
        pytest.skip("the thread sanitizer does not work here")
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    return folder


def report(folder: Path) -> tuple[str, str]:
    """What the program prints, and what the sanitizer does."""
    sources = [str(folder / "csrc" / "cpu" / f"{name}.cpp") for name in SOURCES]
    includes = [f"-I{folder / 'csrc'}", f"-I{folder / 'csrc' / 'include'}", "-DWINO_ISA=portable"]
    driver = str(Path(__file__).with_name("shadow_trunk_races.cpp"))
    command = [*COMMAND, *includes, *sources, driver, "-ldl", "-o", "races"]
    subprocess.run(command, cwd=folder, check=True)
    finished = subprocess.run([folder / "races"], capture_output=True, text=True)
    return finished.stdout, finished.stderr


def test_nothing_races(build: Path) -> None:
    assert report(build) == ("equal\n", "")


def test_a_wait_less_is_a_race(build: Path) -> None:
    file = build / "csrc" / "cpu" / "shadow_trunk.cpp"
    text = file.read_text()
    assert text.count("layer.after.rows(), heads,") == 1
    file.write_text(text.replace("layer.after.rows(), heads,", "layer.after.rows(), nullptr,"))
    assert "data race" in report(build)[1]
    file.write_text(text)
