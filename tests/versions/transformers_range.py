"""Every minor version of transformers that README names loads the bundled models and decodes the same tokens.

``make test-transformers`` runs it. It installs each version beside the environment, so it needs the package index.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

HERE = Path(__file__).parent
VERSIONS = (
    *("4.46.3", "4.47.1", "4.48.3", "4.49.0", "4.50.3", "4.51.3", "4.52.4", "4.53.3", "4.54.1", "4.55.4"),
    *("4.56.2", "4.57.6", "5.0.0", "5.1.0", "5.2.0", "5.3.0", "5.4.0", "5.5.4", "5.6.2", "5.7.0", "5.8.1", "5.9.0"),
    *("5.10.4", "5.11.0", "5.12.1", "5.13.1", "5.14.1", "5.15.1", "5.16.1", "5.17.0", "5.18.0", "5.19.0"),
    *("5.20.2", "5.21.1", "5.22.2", "5.23.0", "5.24.0"),
)
_TIED = ("tokenizers", "huggingface-hub", "safetensors")  # what a version of transformers pins tightly


def _install(folder: Path, *requirements: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--upgrade", "--target", str(folder)]
    subprocess.run([*command, *requirements], check=True, timeout=300)


def _needs(folder: Path) -> Iterator[str]:
    """Requirements of the transformers in ``folder`` that the environment does not meet."""
    [distribution] = metadata.distributions(name="transformers", path=[str(folder)])
    for text in distribution.requires or []:
        requirement = Requirement(text)
        is_tied = requirement.name in _TIED and requirement.marker is None
        if is_tied and metadata.version(requirement.name) not in requirement.specifier:
            yield f"{requirement.name}{requirement.specifier}"


def _decoded(folder: Path | None) -> dict[str, Any]:
    path = [*([] if folder is None else [str(folder)]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(HERE / "decoded.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@cache
def _expected() -> dict[str, Any]:
    return _decoded(None)["tokens"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_bundled_models_decode_the_same_tokens(version: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _install(Path(folder), "--no-deps", f"transformers=={version}")
        if needed := list(_needs(Path(folder))):
            _install(Path(folder), *needed)
        decoded = _decoded(Path(folder))
    assert (decoded["transformers"], decoded["from"]) == (version, folder)
    assert decoded["tokens"] == _expected()


def test_the_range_has_no_hole_and_is_the_one_claimed() -> None:
    minors = [tuple(map(int, version.split(".")[:2])) for version in VERSIONS]
    assert minors == [*((4, minor) for minor in range(46, 58)), *((5, minor) for minor in range(minors[-1][1] + 1))]
    readme = (HERE.parent.parent / "README.md").read_text(encoding="utf-8")
    claimed = re.search(r"\| transformers \(extra `decode`\) \| (\S+) to (\S+);", readme)
    assert claimed is not None and claimed.groups() == ("4.46", ".".join(map(str, minors[-1])))
