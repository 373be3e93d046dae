"""What the GPU kernels compile to, found out without a GPU: the checked-in table is what the sources compile to."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wino_kernels import fingerprints, resources
from wino_kernels.machine_code import amd_loads, is_wide, matrix_instructions, nvidia_loads, occupancy

# One worker: compiling takes minutes.
pytestmark = pytest.mark.xdist_group("resources")

STREAMING = ("score_tokens", "linear_score_tokens", "wino_step_", "shadow_attention", "trajectory_loss")


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wino_kernels.resources", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", **(environment or {})},
    )


@pytest.fixture(scope="module")
def checked_in() -> dict[str, Any]:
    return resources.read(resources.TABLE)


@pytest.fixture(scope="module")
def fresh() -> list[dict[str, Any]]:
    """Every kernel, by the command itself, in a process that was told to interpret.

    Compiled is what the table has not of the same sources and compiler; all of it takes five minutes.
    """
    backends = (f"--backend={name}" for name in resources.compilable())
    finished = run("--json", "--changed", *backends)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_table_is_what_the_sources_compile_to(checked_in: dict[str, Any], fresh: list[dict[str, Any]]) -> None:
    assert resources.differences(checked_in, fresh, resources.versions()) == []


def test_no_kernel_falls_short(checked_in: dict[str, Any], fresh: list[dict[str, Any]]) -> None:
    """No spills; matrix instructions where matrices are multiplied; wide loads where a large tensor is read."""
    assert resources.shortcomings(fresh) == []
    assert resources.shortcomings(checked_in["rows"]) == []


def test_rows(checked_in: dict[str, Any], fresh: list[dict[str, Any]]) -> None:
    for row in [*fresh, *checked_in["rows"]]:
        assert row["backend"] in resources.BACKENDS
        assert row["target"] in resources.TARGETS[row["backend"]]
        assert row["kernel"] and isinstance(row["kernel"], str)
        for name in ("registers", "spills", "shared_bytes"):
            assert isinstance(row[name], int) and row[name] >= 0, row
        assert 0 < row["registers"] <= (512 if row["target"] == "gfx942" else 255)


@pytest.mark.parametrize("target", resources.TARGETS["triton"])
def test_every_operator_and_target_is_in_the_table(checked_in: dict[str, Any], target: str) -> None:
    rows = [row for row in checked_in["rows"] if row["backend"] == "triton" and row["target"] == target]
    assert {row["operator"] for row in rows} == {operator for operator, _, _ in resources.cases()}
    for operator in resources.MATRIX_OPERATORS:
        kernels = [row for row in rows if row["operator"] == operator and row["multiplies"]]
        assert kernels and all(row["matrix_instructions"] for row in kernels), operator
    for operator in STREAMING:
        kernels = [row for row in rows if row["operator"] == operator and row["streams"]]
        assert kernels and all(is_wide(row["loads"]) for row in kernels), operator


def fingerprints_of(folder: Path) -> dict[str, set[str]]:
    """By operator, those of the kernels in the package that lies in ``folder``."""
    code = """
import json, tempfile
from wino_kernels import resources
resources._prepare_worker(tempfile.gettempdir())
from wino_kernels.triton import KERNELS
from wino_kernels.triton.launch import recording
found = {}
for operator, _, arguments in resources.cases():
    with recording("sm_90") as launches:
        KERNELS[operator](*arguments)
    for launch in launches:
        source, _ = resources.specialised(launch, "sm_90")
        found.setdefault(operator, []).append(resources._fingerprint(launch, source, "sm_90"))
print(json.dumps(found))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return {operator: set(found) for operator, found in json.loads(finished.stdout).items()}


def test_fingerprints_tell_what_has_changed(tmp_path: Path) -> None:
    """Not that every file has grown a line at its top, but that a helper of some kernels has another constant."""
    package = tmp_path / "wino_kernels"
    shutil.copytree(resources.ROOT / "wino_kernels", package)
    for file in (package / "triton").glob("*.py"):
        file.write_text("# another line\n" + file.read_text())
    helper = package / "triton" / "philox.py"
    text = helper.read_text()
    assert text.count("0x9E3779B9") == 1
    helper.write_text(text.replace("0x9E3779B9", "0x9E3779BB"))
    before, after = fingerprints_of(resources.ROOT), fingerprints_of(tmp_path)
    assert before.keys() == after.keys()
    for operator, found in before.items():
        if operator in {"score_tokens", "linear_score_tokens", "wino_step_"}:  # some of their kernels draw
            assert len(found & after[operator]) < len(found) == len(after[operator]), operator
        else:
            assert found == after[operator], operator


def test_only_what_changed_is_compiled_again(checked_in: dict[str, Any], tmp_path: Path) -> None:
    doctored = copy.deepcopy(checked_in)
    about = {"backend": "triton", "operator": "accept_", "target": "sm_90"}
    rows = [row for row in doctored["rows"] if about.items() <= row.items()]
    for row in rows:
        row["registers"] = 1
        source, _, _ = row["source"].partition("-")
        row["source"] = fingerprints.stamp(source, [row], resources.COMPILED)
    rows[0]["shared_bytes"] += 16  # not what its stamp says
    rows[1]["source"] = rows[1]["source"][::-1]  # of other sources
    table = tmp_path / "resources.json"
    table.write_text(json.dumps(doctored))
    finished = run(
        "--json", "--changed", "--backend=triton", "--operator=accept_", "--target=sm_90", f"--table={table}"
    )
    assert finished.returncode == 0, finished.stderr
    registers = {row["source"]: row["registers"] for row in json.loads(finished.stdout)}
    if checked_in["versions"]["triton"] != resources.versions()["triton"]:
        assert min(registers.values()) > 1
        return
    assert {registers.pop(row["source"]) for row in rows[2:]} == {1}
    assert len(registers) == 2 and min(registers.values()) > 1


def test_changed_and_missing_rows_are_not_known() -> None:
    names = ("kernel", "registers")
    rows = [{"kernel": name, "registers": 8, "target": "sm_90"} for name in "abc"]
    carried = fingerprints.stamp(fingerprints.fingerprint("a source"), rows, names)
    table = [row | {"source": carried} for row in rows]
    assert fingerprints.known(table, names) == {fingerprints.fingerprint("a source"): table}
    assert fingerprints.known(table[::-1], names)
    for broken in (table[1:], [*table[:2], table[2] | {"registers": 9}], [*table[:2], rows[2]], rows, []):
        assert fingerprints.known(broken, names) == {}


def test_doctored_table_fails(checked_in: dict[str, Any]) -> None:
    """Each change to what a kernel compiles to is named, and nothing else is."""
    rows, versions = checked_in["rows"], checked_in["versions"]
    assert resources.differences(checked_in, rows, versions) == []
    for name in resources.EXACT:
        doctored = copy.deepcopy(checked_in)
        at = next(i for i, row in enumerate(rows) if name in row)
        doctored["rows"][at][name] = "doctored"
        (difference,) = resources.differences(doctored, rows, versions)
        assert rows[at]["kernel"] in difference and rows[at]["target"] in difference and name in difference

    shorter = {**checked_in, "rows": rows[1:]}
    assert "not in the table" in resources.differences(shorter, rows, versions)[0]
    longer = {**checked_in, "rows": [*rows, {**rows[0], "kernel": "ghost"}]}
    assert "no such kernel" in resources.differences(longer, rows, versions)[0]


def test_other_compiler_versions_are_held_to_the_requirements_only(checked_in: dict[str, Any]) -> None:
    rows = [{**row, "registers": row["registers"] + 1} for row in checked_in["rows"]]
    assert resources.differences(checked_in, rows, {"triton": "0.0", "cuda": "0.0"}) == []
    assert resources.differences(checked_in, rows, checked_in["versions"]) != []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"spills": 3}, "spills 3, must be 0"),
        ({"multiplies": True, "matrix_instructions": []}, "without matrix instructions"),
        ({"streams": ["logits"], "loads": {"32": 4, "64": 1}}, "without 128-bit loads"),
        ({"backend": "cuda", "operator": "wino_step_", "vector_loads": False}, "logits without 128-bit loads"),
        ({"warps_per_sm": 0, "limited_by": "shared memory"}, "does not fit on a processor, limited by shared memory"),
    ],
)
def test_shortcoming_is_named(checked_in: dict[str, Any], changes: dict[str, Any], named: str) -> None:
    row = {**checked_in["rows"][0], **changes}
    (line,) = resources.shortcomings([row])
    assert row["kernel"] in line and row["target"] in line and named in line


def test_check_names_the_difference_and_fails(checked_in: dict[str, Any], tmp_path: Path) -> None:
    """The whole command, on one small operator: it passes, and with one number changed it does not."""
    selection = ("--check", "--backend=triton", "--operator=accept_", "--target=sm_90")
    finished = run(*selection, "--operator=norm_qkv_rope", "--target=gfx942")
    assert finished.returncode == 0, finished.stderr

    doctored = copy.deepcopy(checked_in)
    row = next(row for row in doctored["rows"] if row.get("operator") == "accept_" and row["target"] == "sm_90")
    row["shared_bytes"] += 16
    doctored["versions"] = resources.versions()
    table = tmp_path / "resources.json"
    table.write_text(json.dumps(doctored))
    finished = run(*selection, f"--table={table}")
    assert finished.returncode == 1
    assert f"{row['kernel']}" in finished.stderr and "shared_bytes" in finished.stderr


def test_write_takes_no_part_of_the_table(tmp_path: Path) -> None:
    table = tmp_path / "resources.json"
    finished = run("--write", f"--table={table}", "--target=sm_90")
    assert finished.returncode == 2 and "written whole" in finished.stderr
    assert not table.exists()


def test_written_table_is_read_back(checked_in: dict[str, Any], tmp_path: Path) -> None:
    table, document = tmp_path / "resources.json", tmp_path / "kernels.md"
    document.write_text("before\n<!-- resources: begin -->\nwritten before\n<!-- resources: end -->\nafter\n")
    resources.write(checked_in["rows"], checked_in["versions"], table)
    assert resources.read(table)["rows"] == checked_in["rows"]
    text = document.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and "written before" not in text
    assert checked_in["rows"][0]["kernel"] in text and "5 scalars in lanes, v_mfma" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernels.md", "resources.json"]


@pytest.mark.parametrize("content", [None, "", "[]", '{"rows": [{}], "versions": {}}', '{"rows": [], "versions": {}}'])
def test_broken_table_is_named(tmp_path: Path, content: str | None) -> None:
    table = tmp_path / "resources.json"
    if content is not None:
        table.write_text(content)
    with pytest.raises(resources.ResourcesError, match=r"resources\.json: "):
        resources.read(table)


def test_missing_tools_are_named_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", "/no/such/nvcc")
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(resources.ResourcesError, match="nvcc was not found: install the CUDA toolkit"):
        resources.compile_cuda(["sm_90"])
    with pytest.raises(resources.ResourcesError, match="Triton is not installed: `pip install"):
        resources.compile_triton([], ["sm_90"])
    with pytest.raises(resources.ResourcesError, match="nothing could be compiled"):
        resources.collect(resources.BACKENDS, [], [], partial=True)
    assert resources.compilable() == []


def test_unknown_operator() -> None:
    finished = run("--backend=triton", "--operator=no_such_operator", "--target=sm_90")
    assert finished.returncode == 1
    assert "no kernel for no_such_operator" in finished.stderr


def test_loads_and_matrix_instructions_are_read_from_machine_code() -> None:
    sass = """
        /*0100*/  LDG.E.128 R4, desc[UR4][R2.64] ;   /*0110*/  @P0 LDG.E.U16.CONSTANT R4, [R2] ;
        /*0120*/  LDG.E R4, [R2] ;                   /*0130*/  LDGSTS.E.BYPASS.LTC128B.128 [R4], [R2.64] ;
        /*0140*/  LDG.E.LTC128B.64 R4, [R2] ;        /*0150*/  LDG.E.ENL2.256 R4, R8, [R2] ;
        /*0160*/  UTMALDG.2D [UR8], [UR4] ;          /*0170*/  HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4] ;
        /*0180*/  STG.E.128 [R2], R4 ;               /*0190*/  LDS.128 R4, [R2] ;
    """
    assert nvidia_loads(sass) == {"128": 2, "16": 1, "32": 1, "64": 1, "256": 1, "tma": 1}
    assert matrix_instructions(sass) == ["HGMMA"]
    amdgcn = """
        global_load_dwordx4 v[0:3], v4, s[0:1]
        buffer_load_dwordx2 v[0:1], v2, s[0:3], 0 offen
        global_load_dword v0, v1, s[0:1]
        buffer_load_ushort v0, v1, s[0:3], 0 offen
        global_load_ubyte v0, v1, s[0:1]
        global_load_short_d16 v0, v1, s[0:1]
        ds_read_b128 v[0:3], v4
        v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[2:3], 0
    """
    assert amd_loads(amdgcn) == {"128": 1, "64": 1, "32": 1, "16": 2, "8": 1}
    assert matrix_instructions(amdgcn) == ["v_mfma"]
    assert is_wide({"tma": 1}) and is_wide({"256": 1}) and not is_wide({"64": 8, "32": 1})


@pytest.mark.parametrize(
    ("target", "registers", "shared", "num_warps", "warps", "limit"),
    [  # by hand, from the chips' limits
        ("sm_80", 32, 0, 8, 64, "warps"),
        ("sm_80", 33, 0, 8, 48, "registers"),  # 40 a thread: 12 warps a partition
        ("sm_80", 255, 0, 8, 8, "registers"),
        ("sm_80", 32, 163 << 10, 4, 4, "shared memory"),
        ("sm_80", 32, 164 << 10, 4, 0, "shared memory"),  # with the reserved kilobyte more than there is
        ("sm_90", 32, 75 << 10, 4, 12, "shared memory"),
        ("sm_90", 168, 0, 4, 12, "registers"),
        ("sm_90", 32, 0, 1, 32, "blocks"),
        ("sm_120", 32, 0, 8, 48, "warps"),
        ("gfx942", 128, 0, 4, 16, "registers"),
        ("gfx942", 64, 32 << 10, 4, 8, "shared memory"),
    ],
)
def test_occupancy(target: str, registers: int, shared: int, num_warps: int, warps: int, limit: str) -> None:
    found = occupancy(target, registers, shared, num_warps)
    assert (found["warps_per_sm"], found["limited_by"]) == (warps, limit)


def test_tensor_memory_limits_occupancy() -> None:
    found = occupancy("sm_100", 32, 0, 4, tensor_memory=256)
    assert (found["warps_per_sm"], found["limited_by"]) == (8, "tensor memory")
