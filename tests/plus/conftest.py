"""A tiny random model as a checkpoint folder, and trajectories that fit it."""

from __future__ import annotations

from pathlib import Path

import pytest
from plus_records import make_record

import wino
from wino.plus.identity import identify
from wino.plus.records import write_trajectories
from wino.pretrain import Recipe, build_model, build_tokenizer, save_model_folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    recipe = Recipe(d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=48)
    save_model_folder(build_model(recipe, build_tokenizer()), folder)
    return folder


@pytest.fixture
def records(tmp_path: Path, base: Path) -> Path:
    path = tmp_path / "records.jsonl"
    identity = identify(*wino.load(base), "base")
    known = {"vocab_size": identity.vocab_size, "tokenizer_fingerprint": identity.tokenizer, "block_length": 6}
    write_trajectories(path, (make_record(i, metadata=known) for i in range(40)))
    return path
