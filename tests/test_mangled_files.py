"""Hundreds of mangled files: each is refused in one line or makes no difference, in bounded time and memory.

``WINO_MANGLED`` is how many of each kind there are.
"""

from __future__ import annotations

import gc
import io
import json
import os
import random
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import wino
from wino.models import LLaDAConfig, LLaDAModelLM
from wino.multimodal import open_image
from wino.plus.adapters import check_adapter
from wino.plus.identity import Identity, read_identity, write_identity
from wino.plus.recipe import read_recipe
from wino.plus.records import Trajectory, read_trajectories
from wino.tasks.presets import load_presets

CASES = int(os.environ.get("WINO_MANGLED", "20"))
SECONDS, MEBIBYTES = 4.0, 300
HOSTILE = (
    *(None, True, False, -1, 0, 1.5, 2**31, 2**63, 2**70, 10**300, "", "x", "\u2028", "..", "/etc/passwd", [], {}),
    *([1], {"a": 1}, [[[[1]]]], ["x"] * 1000, "x" * 100_000, {"__class__": 1}, "auto", "cuda", [2**70], [-1], [None]),
)
TEXTS = (
    b"", b"\0" * 100, b"[" * 200_000, b'{"a":' * 200_000, b"\xff\xfe\xfa", b"null", b"[]", b"{}", b'"x"', b"1" * 9000,
    b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\\ud800"}', b"{" * 100, b"- " * 50_000, b"a: &a [x]\nb: [*a, *a]\n",
    b"a: !!python/object/apply:os.system [id]\n", b"? " * 10_000, b"{a: b, a: c}",
)  # fmt: skip
IDS = torch.arange(2, 8)[None]


class TooSlowError(BaseException):
    """Not an Exception, so that no handler of the code under test hides it."""


@contextmanager
def bounded() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlowError

    before, previous = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, signal.signal(signal.SIGALRM, stop)
    began = time.process_time()
    signal.setitimer(signal.ITIMER_REAL, 15 * SECONDS)  # the machine may be busy; what counts is the processor's time
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert time.process_time() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024


def replaced(value: Any, rng: random.Random) -> Any:
    """``value`` with one part of it replaced, removed, or with an unknown one beside it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name, changed = rng.choice(sorted(value)), dict(value)
        how = rng.random()
        if how < 0.15:
            del changed[name]
        elif how < 0.25:
            changed[rng.choice(["rope_new", "auto_map", "to_dict", "_x", "x" * 5000, "\u0000"])] = rng.choice(HOSTILE)
        else:
            changed[name] = replaced(value[name], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.6:
        place = rng.randrange(len(value))
        return [*value[:place], replaced(value[place], rng), *value[place + 1 :]]
    return rng.choice(HOSTILE)


def mangled(content: bytes, rng: random.Random, is_json: bool) -> bytes:
    how = rng.randrange(7 if is_json else 5)
    if how == 0:
        return content[: rng.randrange(len(content))]
    if how == 1:
        return rng.choice(TEXTS)
    if how == 2:
        return rng.randbytes(rng.randrange(1, 2000))
    if how == 3:
        start = rng.randrange(len(content))
        return content[:start] + content[rng.randrange(len(content)) :]
    if how == 4:  # not the digits of numbers: another number is another valid model
        changed = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(changed))
            if not chr(changed[place]).isdigit() or not is_json:
                changed[place] = rng.choice(b'\0"{}[]:,\\x\xff\n ')
        return bytes(changed)
    return json.dumps(replaced(json.loads(content), rng)).encode()


def refused_in_one_line(read: Callable[[], Any]) -> bool:
    """Whether ``read`` raised as it should; False if it came to its end."""
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except (ValueError, FileNotFoundError) as error:
        assert type(error) in (ValueError, FileNotFoundError), repr(error)
        message = str(error)
        assert "\n" not in message.strip() and 0 < len(message) < 3000, message[:3000]
        return True
    return False


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of two blocks, in two shards."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=16, n_heads=2, n_layers=2, mlp_hidden_size=24, vocab_size=16, max_sequence_length=32,
        rope_theta=10000.0, mask_token_id=1, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LLaDAModelLM(config).bfloat16().save_pretrained(folder, max_shard_size="4KB")
    vocabulary = {token: i for i, token in enumerate(["<eos>", "<mask>", *"abcdef"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>")), eos_token="<eos>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    (folder / "presets.json").write_text(json.dumps({"sum": {"wino": {"threshold": 0.5, "block_length": 8}}}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2], "temperature": 0.5}))
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def logits(base: Path) -> torch.Tensor:
    return wino.load(base)[0](IDS).logits


FILES = (
    "config.json", "model.safetensors.index.json", "tokenizer_config.json", "tokenizer.json", "presets.json",
    "generation_config.json",
)  # fmt: skip


@pytest.mark.parametrize("name", [*FILES, "header"])
def test_checkpoints(base: Path, logits: torch.Tensor, tmp_path: Path, name: str) -> None:
    refused = 0
    for case in range(CASES):
        rng = random.Random(f"{name}/{case}")
        folder = tmp_path / str(case)
        shutil.copytree(base, folder)
        path = sorted(folder.glob("model-*.safetensors"))[0] if name == "header" else folder / name
        content = path.read_bytes()
        if name == "header":
            length = int.from_bytes(content[:8], "little")
            path.write_bytes(mangled(content[: 8 + length], rng, False) + content[8 + length :])
        else:
            path.write_bytes(mangled(content, rng, True))

        def read(folder: Path = folder) -> None:
            model, tokenizer = wino.load(folder)
            load_presets(folder)
            tokenizer("a")
            assert torch.equal(model(IDS).logits, logits) and model.config.mask_token_id == 1

        refused += refused_in_one_line(read)
        shutil.rmtree(folder)
    gc.collect()
    assert refused >= CASES / (4 if name in ("config.json", "header", "model.safetensors.index.json") else 10)


RECORD = Trajectory(
    "sum:1", "sum", [2, 3, 4], 3, [5, 6, 7, 0], [0, 0, 1, 2], [0, 0, 0, 1], True, "d e f", 3, 0.0, {"block_length": 4}
)


def test_records(tmp_path: Path) -> None:
    path, good = tmp_path / "records.jsonl", RECORD.to_json().encode()
    refused = 0
    for case in range(2 * CASES):
        rng = random.Random(f"record/{case}")
        path.write_bytes(good + b"\n" + mangled(good, rng, True) + b"\n")

        def read() -> None:
            for record in read_trajectories(path):
                again = Trajectory.from_json(record.to_json())
                assert again == record
                torch.tensor([*record.prompt_ids, *record.generated_ids, *record.trajectory_accepted])

        refused += refused_in_one_line(read)
    assert refused > CASES


def test_recipes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    recipe = {
        "model": "wino-tiny", "output": "out", "adapter": {"rank": 4, "alpha": 8}, "seed": 3,
        "stages": [{"name": "a", "trajectories": ["x.jsonl"], "steps": 3, "learning_rate": 1e-4}],
    }  # fmt: skip
    good = json.dumps(recipe).encode()  # which is YAML too
    refused = 0
    for case in range(2 * CASES):
        rng = random.Random(f"recipe/{case}")
        path.write_bytes(mangled(good, rng, True))

        def read() -> None:
            for stage in read_recipe(path).stages:
                assert stage.name not in (".", "..") and "/" not in stage.name

        refused += refused_in_one_line(read)
    assert refused > CASES


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_pictures(kind: str) -> None:
    whole = io.BytesIO()
    Image.radial_gradient("L").resize((32, 24)).convert("P" if kind == "GIF" else "RGB").save(whole, kind)
    refused = 0
    for case in range(CASES // 2):
        content = mangled(whole.getvalue(), random.Random(f"{kind}/{case}"), False)
        refused += refused_in_one_line(lambda content=content: open_image(io.BytesIO(content)))
    assert refused >= CASES / 10


def test_identities_and_adapters(base: Path, tmp_path: Path) -> None:
    adapted = get_peft_model(wino.load(base)[0], LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    write_identity(Identity("m", 16, 1, "abc", "def"), tmp_path)
    for name, read in (("adapter_config.json", check_adapter), ("wino_plus.json", read_identity)):
        good, refused = (tmp_path / name).read_bytes(), 0
        assert not refused_in_one_line(lambda read=read: read(tmp_path))
        for case in range(CASES):
            (tmp_path / name).write_bytes(mangled(good, random.Random(f"{name}/{case}"), True))
            refused += refused_in_one_line(lambda read=read: read(tmp_path))
        (tmp_path / name).write_bytes(good)
        assert refused > CASES / 4


STAGE = "{{model: x, output: y, stages: [{{name: a, trajectories: [a], {}}}]}}"


def aliases() -> str:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (aliases(), "aliases"),
        ("a: &a\n  b: *a\n", "aliases"),
        ("model: x\nmodel: y\n", "a key comes twice"),
        ("[" * 100_000, "nested too deeply"),
        ("model: \xff", "line 1 has the byte 0xff"),
        ("seed: " + "9" * 10_000, "not YAML"),
        ("x: " * 400_000, "at most 1048576 bytes"),
        ("model: !!python/object/apply:os.system [id]", "not YAML"),
        ("{model: x, output: y, stages: [{name: .., trajectories: [a], steps: 1}]}", "stages.0.name"),
        (STAGE.format("steps: true"), "stages.0.steps"),
        (
            STAGE.format("steps: 1, learning_rate: .inf"),
            "learning_rate",
        ),
        (
            STAGE.format("steps: 1").replace("output: y", "output: y, adapter: {rank: 1000000000}"),
            "rank",
        ),
    ],
    ids=["bomb", "loop", "twice", "nested", "bytes", "digits", "large", "code", "dots", "flag", "infinite", "rank"],
)
def test_recipes_that_are_hostile(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode("latin-1"))
    with bounded(), pytest.raises(ValueError) as caught:
        read_recipe(path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_ids", [2**70]),
        ("generated_ids", [5, 6, 7, 2**63]),
        ("trajectory_accepted", [0, 0, 1, 2**63]),
        ("decoding_steps", 2**63),
        ("used_temperature", 10**400),
        ("used_temperature", 1e7),
        ("metadata", {"block_length": 0}),
        ("metadata", {"block_length": "4"}),
        ("metadata", {"block_length": 2**63}),
        ("wino_trajectory", [0, 0, 1, 1]),
    ],
)
def test_numbers_of_records(field: str, value: Any) -> None:
    line = json.dumps({**json.loads(RECORD.to_json()), field: value})
    with pytest.raises(ValueError, match=rf"^here: field (metadata\.block_length|trajectory_accepted|{field}):"):
        Trajectory.from_json(line, "here")


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_small_file_of_a_huge_picture(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb.{kind.lower()}"
    small = io.BytesIO()
    Image.new("1" if kind == "PNG" else "P", (64, 64)).save(small, kind)
    content = bytearray(small.getvalue())
    if kind == "PNG":
        import zlib

        content[16:24] = (50_000).to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    else:
        content[6:10] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with bounded(), pytest.raises(ValueError, match=r"bomb\.\w+: .*pixels") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_formats_that_start_programs_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.eps"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(ValueError, match="is not an image of the formats PNG, JPEG"):
        open_image(path)
