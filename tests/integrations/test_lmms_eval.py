"""The lmms-eval model, on a stand-in for lmms-eval's interface (0.7): requests in, answers out, in their order."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_mmada import save_small_mmada

import wino
from wino.multimodal import load
from wino.tasks import PICTURE_TASKS
from wino.tasks.scenes import render, scene_of


@dataclass
class Manifest:
    model_id: str
    simple_class_path: str


class Hook:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def add_partial(self, *what: Any) -> None:
        self.heard.append(what)


class Lmms:
    def __init__(self) -> None:
        self.cache_hook, self.task_dict = Hook(), {}


@dataclass
class Request:
    args: tuple[Any, ...]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for name in (
        "lmms_eval",
        "lmms_eval.api",
        "lmms_eval.api.model",
        "lmms_eval.models",
        "lmms_eval.models.registry_v2",
    ):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules["lmms_eval.api.model"])["lmms"] = Lmms
    vars(sys.modules["lmms_eval.models.registry_v2"])["ModelManifest"] = Manifest
    monkeypatch.delitem(sys.modules, "wino.integrations.lmms_eval", raising=False)
    yield importlib.import_module("wino.integrations.lmms_eval")
    sys.modules.pop("wino.integrations.lmms_eval", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_mmada(tmp_path_factory.mktemp("mmada") / "model")


def wide(item: Any) -> Any:
    """A picture that loses its sides if it is cropped."""
    return render(scene_of(item)).resize((96, 48))


def requests(model: Any, contexts: list[str], settings: list[dict[str, Any]]) -> list[Request]:
    items = PICTURE_TASKS["question"].items("heldout")
    documents = [next(items) for _ in contexts]
    model.task_dict = {"scenes": {"test": documents}}
    pictures: Callable[[Any], list[Any]] = lambda item: [wide(item)]  # noqa: E731
    return [
        Request((context, given, pictures, number, "scenes", "test"))
        for number, (context, given) in enumerate(zip(contexts, settings, strict=True))
    ]


def test_answers_are_those_of_the_loop_in_the_order_of_requests(plugin: ModuleType, folder: Path) -> None:
    settings = {
        "dtype": "float32",
        "batch_size": "2",
        "fit": "squash",
        "prefix": "describe the picture ",
        "gen_length": 8,
        "block_length": 8,
        "threshold": "0.5",
    }
    model = plugin.WinoMMaDA(str(folder), **settings)
    asked = requests(
        model,
        ["<image> how many red objects are there ?", "what color is the object at the top ?", "is it red ?"],
        [{}, {"max_new_tokens": 12}, {"until": ["\n"]}],
    )
    answers = model.generate_until(asked)
    reference, processor = load(folder, dtype=torch.float32)
    for request, answer, (length, block) in zip(asked, answers, ((8, 8), (12, 6), (8, 8)), strict=True):
        item = model.task_dict["scenes"]["test"][request.args[3]]
        prompt = "describe the picture " + request.args[0].replace("<image> ", "")
        ids, mask = processor.encode_with_pictures([prompt], [wide(item)], fit="squash")
        out = wino.generate(reference, ids, mask, max_new_tokens=length, block_length=block, threshold=0.5)
        generated = out.sequences[0, ids.shape[1] :].tolist()
        generated = generated[: [*generated, processor.eos_token_id].index(processor.eos_token_id)]
        assert answer == processor.decode(generated, skip_special_tokens=True)
    assert [heard[2] for heard in model.cache_hook.heard] == [answers[0], answers[2], answers[1]]
    assert model.batch_size == 2 and model.tokenizer is model.processor.tokenizer


def test_an_answer_ends_where_the_task_says(plugin: ModuleType, folder: Path) -> None:
    model = plugin.WinoMMaDA(str(folder), dtype="float32", gen_length=8, block_length=8)
    (whole,) = model.generate_until(requests(model, ["is it red ?"], [{}]))
    words = whole.split(" ")
    stop = words[1]
    (short,) = model.generate_until(requests(model, ["is it red ?"], [{"until": [stop]}]))
    assert len(words) > 2 and short == whole.partition(stop)[0] != whole


def test_what_a_task_asks_of_the_decode_counts(plugin: ModuleType, folder: Path, monkeypatch: Any) -> None:
    model = plugin.WinoMMaDA(str(folder), dtype="float32", gen_length=8, block_length=8)
    taken: list[wino.GenerationConfig] = []

    def generate(*arguments: Any) -> Any:
        taken.append(arguments[3])
        return wino.generate(*arguments)

    monkeypatch.setattr(plugin, "generate", generate)

    def ask(*settings: dict[str, Any]) -> list[tuple[Any, ...]]:
        taken.clear()
        model.generate_until(requests(model, ["is it red ?"] * len(settings), list(settings)))
        return [(config.temperature, config.top_p, config.max_new_tokens) for config in taken]

    greedy = {"temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False, "image_aspect_ratio": "original"}
    assert ask(greedy, {"do_sample": False, "temperature": 1.0, "top_p": None}) == [(0.0, None, 8)] * 2
    drawn = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert ask({}, drawn, {"do_sample": True}, {"temperature": 0.5, "max_new_tokens": 4}) == [
        (0.0, None, 8), (0.7, 0.9, 8), (1.0, None, 8), (0.5, None, 4)
    ]  # fmt: skip
    for name, error in (("num_beams", ValueError), ("repetition_penalty", ValueError), ("colour", TypeError)):
        taken.clear()
        with pytest.raises(error, match=name):
            model.generate_until(requests(model, ["is it red ?"] * 2, [{}, {name: 3}]))
        assert not taken  # before anything is decoded
    model.settings["temperature"] = 0.25
    assert ask(drawn, greedy) == [(0.25, None, 8)] * 2


def test_a_request_without_pictures(plugin: ModuleType, folder: Path) -> None:
    model = plugin.WinoMMaDA(str(folder), dtype="float32", gen_length=8, block_length=8)
    (request,) = requests(model, ["is it red ?"], [{}])
    (answer,) = model.generate_until([Request((*request.args[:2], lambda item: None, *request.args[3:]))])
    ids = torch.tensor([model.processor.layout.about_picture([], "is it red ?")])
    out = wino.generate(load(folder, dtype=torch.float32)[0], ids, max_new_tokens=8, block_length=8)
    generated = out.sequences[0, ids.shape[1] :].tolist()
    end = [*generated, model.processor.eos_token_id].index(model.processor.eos_token_id)
    assert answer == model.processor.decode(generated[:end], skip_special_tokens=True)


def test_stops_and_settings(plugin: ModuleType) -> None:
    assert plugin._before("a b\nc", ["\n"]) == "a b" and plugin._before("a b", "b") == "a "
    assert plugin._before("a", None) == "a" and plugin._before("a", [""]) == "a"
    assert [plugin._value(v) for v in ("3", "0.5", "true", "wino", 7)] == [3, 0.5, True, "wino", 7]


def test_what_it_cannot_do(plugin: ModuleType, folder: Path) -> None:
    with pytest.raises(ValueError, match="threshold: expected in"):
        plugin.WinoMMaDA("nowhere", threshold="2")
    with pytest.raises(TypeError, match="unknown settings colour"):
        plugin.WinoMMaDA("nowhere", colour="red")
    for name, value in (("fit", "pad"), ("dtype", "fp16"), ("batch_size", "auto"), ("gen_length", 0)):
        with pytest.raises(ValueError, match=f"{name}: expected .*, got '?{value}'?"):
            plugin.WinoMMaDA("nowhere", **{name: value})
    model = plugin.WinoMMaDA(str(folder), dtype="float32")
    for call in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="wino_mmada: "):
            call([])


def test_lmms_eval_finds_it() -> None:
    found = [entry for entry in entry_points(group="lmms_eval.models") if entry.name == "wino_mmada"]
    assert [entry.value for entry in found] == ["wino.integrations.lmms_eval:manifest"]
