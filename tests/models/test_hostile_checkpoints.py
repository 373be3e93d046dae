"""Checkpoints that bring code, pickles, links and lies: never run, never followed, refused in one line."""

from __future__ import annotations

import ast
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from llada_models import build_llada
from safetensors.torch import load_file, save_file

import wino
from wino.models.loading import read_tokenizer

PACKAGE = Path(wino.__file__).parent
_PROGRAM = "from wino_script import main; main()"
PICKLES = ("pickle", "cloudpickle", "joblib", "dill", "marshal")
READS_TRUSTING = {"from_pretrained", "from_config", "from_pretrained_kwargs", "pipeline"}


@pytest.fixture
def folder(tokenizer_folder: Path) -> Path:
    build_llada().to(torch.bfloat16).save_pretrained(tokenizer_folder)
    return tokenizer_folder


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))


def bring_code(folder: Path, ran: Path) -> None:
    """Python beside the weights that leaves ``ran`` behind, named by every file that transformers looks at."""
    (folder / "evil.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import PretrainedConfig, PreTrainedTokenizerFast, PreTrainedModel\n"
        "class Tokenizer(PreTrainedTokenizerFast): pass\n"
        "class Config(PretrainedConfig): model_type = 'llada'\n"
        "class Model(PreTrainedModel): config_class = Config\n"
    )
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="Tokenizer",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    )
    auto_map = {name: f"evil.{kind}" for name, kind in (("AutoConfig", "Config"), ("AutoModel", "Model"))}
    edit(folder / "config.json", auto_map=auto_map, custom_pipelines={"text-generation": {"impl": "evil.Model"}})
    for name in ("processor_config.json", "preprocessor_config.json"):
        edit(folder / name, auto_map={"AutoProcessor": "evil.Tokenizer", "AutoImageProcessor": "evil.Tokenizer"})


def test_code_of_a_checkpoint_never_runs(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    bring_code(folder, ran)
    with pytest.raises(ValueError, match=r"is Python code that the checkpoint brings \(auto_map\)") as caught:
        wino.load(folder)
    assert "\n" not in str(caught.value) and "remove auto_map" in str(caught.value)
    with pytest.raises(ValueError, match="auto_map"):
        read_tokenizer(folder)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from wino_script import main; main()",
            "generate",
            "--model",
            str(folder),
            "--device",
            "cpu",
            "sum 34+08",
        ],
        input="y\n" * 1000,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("wino: ")]
    assert len(lines) == 1 and "auto_map" in lines[0]
    assert not ran.exists()


def test_a_models_own_code_is_left_alone_where_ours_does_it(folder: Path, tmp_path: Path) -> None:
    expected, _ = wino.load(folder)
    kept = (folder / "tokenizer_config.json").read_text()
    bring_code(folder, tmp_path / "ran")
    (folder / "tokenizer_config.json").write_text(kept)  # as GSAI-ML/LLaDA-8B-Instruct: the model has code, this not
    model, _ = wino.load(folder)
    ids = torch.arange(2, 14)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)
    assert not (tmp_path / "ran").exists()


def calls_of(tree: ast.AST, names: set[str]) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node for node in calls if getattr(node.func, "attr", getattr(node.func, "id", "")) in names]


def unsafe_calls(source: str) -> list[str]:
    """Calls that could run somebody's code: transformers without trust_remote_code=False, and pickles."""
    tree = ast.parse(source)
    found = []
    for call in calls_of(tree, READS_TRUSTING):
        given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
        owner = ast.unparse(call.func).split(".")[0]
        if owner != "PeftModel" and owner != "PeftConfig" and given.get("trust_remote_code") is not False:
            found.append(ast.unparse(call))
    for call in calls_of(tree, {"load"}):
        given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
        if ast.unparse(call.func) == "torch.load" and given.get("weights_only") is not True:
            found.append(ast.unparse(call))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            found += [
                f"import {name}" for name in names if name.split(".")[0] in ("pickle", "joblib", "dill", "marshal")
            ]
    return found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("AutoTokenizer.from_pretrained(folder)", 1),
        ("AutoTokenizer.from_pretrained(folder, trust_remote_code=True)", 1),
        ("AutoTokenizer.from_pretrained(folder, trust_remote_code=False)", 0),
        ("torch.load(path)", 1),
        ("torch.load(path, weights_only=False)", 1),
        ("torch.load(path, weights_only=True)", 0),
        ("import pickle", 1),
    ],
)
def test_the_search_finds_what_it_looks_for(source: str, count: int) -> None:
    assert len(unsafe_calls(source)) == count


def test_no_call_of_the_package_trusts_a_file() -> None:
    files = [path for root in (PACKAGE, PACKAGE.parent.parent / "wino_kernels") for path in root.rglob("*.py")]
    assert len(files) > 100
    found = {str(path): calls for path in files if (calls := unsafe_calls(path.read_text(encoding="utf-8")))}
    assert not found


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_pickled_weights_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors but pytorch_model\.bin: pickled weights"):
        wino.load(folder)
    index = {"weight_map": {"model.transformer.wte.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"expected weights in safetensors files .*got 'pytorch_model\.bin'"):
        wino.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../model.safetensors", "sub/../../model.safetensors", "ABSOLUTE", "a\0.safetensors"])
def test_an_index_leads_nowhere_else(folder: Path, name: str) -> None:
    outside = folder.parent / "model.safetensors"
    (folder / "model.safetensors").rename(outside)
    names = load_file(outside)
    index = {"weight_map": dict.fromkeys(names, str(outside) if name == "ABSOLUTE" else name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json: expected weights in safetensors files of its folder"):
        wino.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "presets.json", "a.jinja"])
def test_links_out_of_the_folder(folder: Path, name: str) -> None:
    outside = folder.parent / f"outside-{name}"
    if (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.write_text("{}")
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"{name} leads out of its folder"):
        wino.load(folder)


def test_links_of_a_hub_cache_and_inside_the_folder(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(p for p in folder.iterdir() if p.is_file()):
        path.rename(cache / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{number:040x}"))
    wino.load(snapshot)
    linked = tmp_path / "linked"
    linked.symlink_to(snapshot)
    model, _ = wino.load(linked)
    own = tmp_path / "own"
    model.save_pretrained(own)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (own / name).write_bytes((snapshot / name).read_bytes())
    (own / "model.safetensors").rename(own / "weights.safetensors")
    (own / "model.safetensors").symlink_to("weights.safetensors")
    wino.load(own)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
def test_quantised_weights_are_named(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.transformer.ln_f.weight"] = tensors["model.transformer.ln_f.weight"].float().to(dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"transformer\.ln_f\.weight is \w+; quantised weights are not"):
        wino.load(folder)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", 1 << 25) + b"{" * (1 << 25),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
        b"",
        b"\x08",
    ],
    ids=["lies", "huge", "nothing in it", "nested", "empty file", "short"],
)
def test_headers_that_lie(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable|does not fit its config\.json"):
        wino.load(folder)


def test_tensors_that_overlap_or_come_twice(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][0])
    header[last]["data_offsets"] = [0, header[last]["data_offsets"][1] - header[last]["data_offsets"][0]]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        wino.load(folder)
    path.write_bytes(content)
    (folder / "again.safetensors").write_bytes(content)
    index = {"weight_map": {"a": "again.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model\.safetensors: the tensor \S+ is in another file too"):
        wino.load(folder)


@pytest.mark.parametrize(
    "fields", [{"n_layers": 10**6}, {"d_model": 1 << 24, "n_heads": 1024, "n_kv_heads": 1024}, {"n_layers": 1 << 24}]
)
def test_sizes_are_compared_before_anything_is_built(folder: Path, fields: dict[str, int]) -> None:
    edit(folder / "config.json", **fields)
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        wino.load(folder)


@pytest.mark.parametrize("name", ["tokenizer_file", "vocab_file", "merges_file"])
def test_a_tokenizer_names_no_other_file(folder: Path, name: str) -> None:
    edit(folder / "tokenizer_config.json", **{name: "/etc/passwd"})
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {name} names another file"):
        wino.load(folder)
    edit(folder / "tokenizer_config.json", **{name: None, "special_tokens_map_file": "/root/special_tokens_map.json"})
    wino.load(folder)


@pytest.mark.parametrize("form", ["list under its new name", "list under its old name"])
def test_special_tokens_as_either_version_writes_them(folder: Path, form: str) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for name in ("extra_special_tokens", "additional_special_tokens"):
        settings.pop(name, None)
    settings["extra_special_tokens" if "new" in form else "additional_special_tokens"] = ["<|more|>"]
    path.write_text(json.dumps(settings))
    _, tokenizer = wino.load(folder)
    assert "<|more|>" in tokenizer.all_special_tokens


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "torch.float16", torch.float16])
def test_dtypes_by_name(folder: Path, dtype: Any) -> None:
    model, _ = wino.load(folder, dtype=dtype)
    assert str(next(model.parameters()).dtype).endswith(str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("dtype", ["bf16", "int8", "auto", "", "nn", "float8_e4m3fn", torch.int8])
def test_what_is_no_dtype(folder: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype: expected bfloat16, float16, float32 or float64, got"):
        wino.load(folder, dtype=dtype)
    with pytest.raises(TypeError, match=r"dtype: expected a torch\.dtype or its name, got int"):
        wino.load(folder, dtype=16)  # type: ignore[arg-type]
