"""The bundled MMaDA's recipe: rows as decoding lays them out, exact resumption, a folder that loads and decodes."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_mmada import IMAGE_TOKENIZER, SHAPE, build_corpus
from torch import Tensor, nn

import wino
from wino import pretrain
from wino.multimodal import MAGVITv2, Processor, load, to_pixels
from wino.multimodal.pretrain import (
    BLUEPRINT,
    INVENTORY,
    PICTURES,
    Pictures,
    TokenizerRecipe,
    TokenizerTraining,
    main,
    save_folder,
    tokenizer_loss,
    train_image_tokenizer,
    training_scenes,
)
from wino.plus.collect import collect, training_items
from wino.plus.records import read_trajectories
from wino.pretrain import Recipe, train
from wino.tasks import PICTURE_TASKS, TASKS, split_of
from wino.tasks.curve import Workbench
from wino.tasks.evaluation import encode_items, evaluate
from wino.tasks.scenes import (
    COLOURS,
    DRAWING,
    SHAPES,
    SIDE,
    SIZES,
    Thing,
    draw_scene,
    render,
    scene_key,
    scene_of,
)

FAMILIES = (("caption", 2), ("question", 3), (DRAWING, 2))


@pytest.fixture(scope="module")
def corpus() -> Pictures:
    return build_corpus()


def test_rows_are_what_decoding_sees(corpus: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, layout = corpus.tokenizer, corpus.processor.layout
    for name, task in PICTURE_TASKS.items():
        asked = training_items(task, 5)
        monkeypatch.setattr("wino.multimodal.pretrain.draw_items", lambda *_, items=asked: items)
        batch = corpus.batch(name, 5, random.Random(0))
        ids, mask = encode_items(corpus.processor, task, asked)
        assert {split_of(scene_key(scene_of(item))) for item in asked} == {"train"}
        assert torch.equal(batch.tokens[:, : batch.start], ids) and batch.length == task.max_new_tokens
        assert batch.visible is None or torch.equal(batch.visible[:, : batch.start], mask.bool())
        for row, item in zip(batch.tokens[:, batch.start :], asked, strict=True):
            text = tokenizer.decode(row).partition("<|endoftext|>")[0].strip()
            assert text == item.answer and (row[len(item.answer.split()) :] == tokenizer.eos_token_id).all()
    monkeypatch.undo()
    drawing = corpus.batch(DRAWING, 40, random.Random(0))
    assert drawing.length == layout.num_codes and drawing.tokens.shape[1] == drawing.start + layout.num_codes + 1
    codes = drawing.tokens[:, drawing.start : -1]
    assert codes.min() >= layout.token_range[0] and codes.max() < layout.token_range[1]
    assert drawing.visible is not None
    prompts = [row[shown][: -layout.num_codes - 1].tolist() for row, shown in zip(*drawing[::3], strict=True)]
    empty = [prompt for prompt in prompts if prompt == layout.for_picture("")]
    assert 1 <= len(empty) <= 12 and all(prompt[-1] == layout.for_picture("")[-1] for prompt in prompts)


def test_a_step_of_every_family_moves_the_model(corpus: Pictures) -> None:
    recipe = Recipe(steps=2, batch=FAMILIES, warmup_steps=1, **SHAPE)
    model = corpus.build_model(recipe)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = pretrain.train_step(model, pretrain.make_optimizers(model, recipe), recipe, 0, corpus)
    assert set(losses) == {name for name, _ in FAMILIES} and all(3 < loss < 8 for loss in losses.values())
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items() if value.dim() == 2)


def test_left_padding_does_not_change_a_loss(corpus: Pictures) -> None:
    """A row among longer ones: as alone."""
    recipe = Recipe(batch=FAMILIES, **SHAPE)
    model = corpus.build_model(recipe).eval()
    batch = corpus.batch("question", 6, random.Random(4))
    assert batch.visible is not None
    positions = pretrain._positions(batch.visible)
    with torch.no_grad():
        together = model(batch.tokens, attention_mask=batch.visible, position_ids=positions).logits
        for row, shown in enumerate(batch.visible):
            alone = model(batch.tokens[row : row + 1, shown]).logits[0]
            torch.testing.assert_close(together[row, shown], alone, atol=1e-4, rtol=1e-4)


def test_an_inventory_says_what_is_in_each_cell(corpus: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = training_scenes(4, random.Random(1))
    monkeypatch.setattr("wino.multimodal.pretrain.training_scenes", lambda count, rng: scenes)
    batch = corpus.batch(INVENTORY, 4, random.Random(0))
    assert batch.visible is None and batch.tokens.shape[1] == batch.start + batch.length == batch.start + 27
    codes = corpus.processor.codes([render(scene) for scene in scenes])
    for scene, row, picture in zip(scenes, batch.tokens, codes, strict=True):
        assert row[: batch.start].tolist() == corpus.processor.layout.about_picture(picture, "what is there ?")
        words = corpus.tokenizer.decode(row[batch.start :]).split()
        said = {place: " ".join(words[3 * place : 3 * place + 3]) for place in range(9)}
        assert said == dict.fromkeys(range(9), "is no object") | {thing.place: thing.name for thing in scene}


def test_a_blueprint_is_an_inventory_to_be_drawn(corpus: Pictures) -> None:
    seen, drawn = (corpus.batch(name, 4, random.Random(1)) for name in (INVENTORY, BLUEPRINT))
    layout = corpus.processor.layout
    assert drawn.visible is None and drawn.length == layout.num_codes
    assert torch.equal(drawn.tokens[:, drawn.start : -1], seen.tokens[:, 2 : 2 + layout.num_codes])
    for row, inventory in zip(drawn.tokens, seen.tokens[:, seen.start :], strict=True):
        assert row[: drawn.start].tolist() == layout.for_picture(corpus.tokenizer.decode(inventory))


def test_the_image_tokenizer_learns_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TokenizerRecipe(steps=24, batch=4, lr=5e-3, config=IMAGE_TOKENIZER, warmup_steps=2)
    whole = train_image_tokenizer(recipe, tmp_path / "whole")
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 24 and log[-1]["error"] < 0.7 * log[0]["error"] and log[-1]["naming"] < log[0]["naming"]
    calls: list[int] = []

    def interrupted(model: Any, scenes: Any, recipe: TokenizerRecipe, step: int) -> dict[str, Tensor]:
        calls.append(step)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return tokenizer_loss(model, scenes, recipe, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("wino.multimodal.pretrain.tokenizer_loss", interrupted)
        train_image_tokenizer(recipe, tmp_path / "resumed", checkpoint_every=10)
    resumed = train_image_tokenizer(recipe, tmp_path / "resumed", checkpoint_every=10)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    with pytest.raises(ValueError, match="belongs to another recipe"):
        train_image_tokenizer(dataclasses.replace(recipe, lr=1e-3), tmp_path / "whole")


def test_the_decoder_sees_soft_bits_first_and_then_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TokenizerRecipe(steps=10, soft_fraction=0.4, config=IMAGE_TOKENIZER)
    training, scenes = TokenizerTraining(IMAGE_TOKENIZER), training_scenes(2, random.Random(0))
    model = training.magvit
    pixels = torch.stack([to_pixels(render(scene), SIDE) for scene in scenes])
    seen: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    for step in (0, 3, 4, 9):
        training.zero_grad()
        torch.stack(list(tokenizer_loss(training, scenes, recipe, step).values())).sum().backward()
        gradient = model.encoder.conv_in.weight.grad
        assert gradient is not None and gradient.isfinite().all() and gradient.any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grid = model.encoder(pixels).float()
    assert torch.allclose(seen[0].float(), torch.tanh(grid), atol=0.01)
    assert torch.allclose(seen[1].float(), torch.tanh(3.25 * grid), atol=0.01)
    for bits in seen[2:]:
        assert torch.allclose(bits.float(), torch.where(grid > 0, 1.0, -1.0))


class Saying(nn.Sequential):
    """A head that always says the same."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, bits: Tensor) -> Tensor:
        return self.logits


def test_naming_is_scored_where_objects_are() -> None:
    """A head that knows every cell has no loss left; one wrong shape costs, whatever it says of empty cells."""
    scenes = [draw_scene(random.Random(seed)) for seed in range(3)]
    training = TokenizerTraining(IMAGE_TOKENIZER)
    kinds = (len(COLOURS) + 1, len(SIZES), len(SHAPES))

    def loss(shape_of: Callable[[Thing], str], elsewhere: int) -> float:
        logits = torch.zeros(3, sum(kinds), 9)
        logits[:, kinds[0] - 1] = 50.0
        logits[:, kinds[0] + kinds[1] + elsewhere] = 70.0
        for row, scene in enumerate(scenes):
            for thing in scene:
                column = torch.zeros(sum(kinds))
                column[list(COLOURS).index(thing.colour)] = 50.0
                column[kinds[0] + SIZES.index(thing.size)] = 50.0
                column[kinds[0] + kinds[1] + SHAPES.index(shape_of(thing))] = 50.0
                logits[row, :, thing.place] = column
        training.names = Saying(logits.view(3, -1, 3, 3))
        return float(tokenizer_loss(training, scenes, TokenizerRecipe(config=IMAGE_TOKENIZER), 0)["naming"])

    right = loss(lambda thing: thing.shape, 0)
    assert right < 1e-6 and loss(lambda thing: thing.shape, 3) < 1e-6
    assert loss(lambda thing: "ring" if thing == scenes[0][0] and thing.shape != "ring" else thing.shape, 0) > 0.1


def test_half_of_the_scenes_are_crowded() -> None:
    scenes = training_scenes(9, random.Random(3))
    assert all(2 <= len(scene) <= 4 and split_of(scene_key(scene)) == "train" for scene in scenes[:4])
    assert all(5 <= len(scene) <= 9 for scene in scenes[4:])
    assert scenes == training_scenes(9, random.Random(3)) != training_scenes(9, random.Random(4))


def test_the_published_class_of_tokenizer() -> None:
    assert PICTURES.patch == 8 and PICTURES.codebook_size == 1024
    assert PICTURES.channels % PICTURES.norm_groups == 0


def test_a_folder_loads_decodes_and_collects(tmp_path: Path, corpus: Pictures) -> None:
    recipe = Recipe(steps=1, batch=FAMILIES, **SHAPE)
    model = train(recipe, tmp_path / "run", corpus)
    save_folder(model, corpus, tmp_path / "model")
    again, processor = load(tmp_path / "model")
    assert isinstance(processor, Processor) and processor.magvit.config == IMAGE_TOKENIZER
    written = load_file(tmp_path / "model" / "image_tokenizer" / "model.safetensors")
    for name, value in processor.magvit.state_dict().items():
        assert written[name].dtype == (torch.float16 if value.is_floating_point() else torch.int64)
        assert value.dtype == (torch.float32 if value.is_floating_point() else torch.int64)
    task = PICTURE_TASKS["caption"]
    items = training_items(task, 3)
    config = wino.GenerationConfig(decoder="wino", max_new_tokens=task.max_new_tokens)
    result = evaluate(again, processor, task, items, config)
    assert len(result.texts) == 3 and all(1 <= steps <= 48 for steps in result.steps)
    out = tmp_path / "records.jsonl"
    assert collect(again, processor, task, items, out, config, name="tiny", temperatures=(0.0,))
    records = list(read_trajectories(out))
    layout = processor.layout
    for record, item in zip(records, items, strict=True):
        codes = processor.codes([task.picture(item)])[0]
        assert record.prompt_ids == layout.about_picture(codes, item.prompt)
    with pytest.raises(ValueError, match=r"task caption has pictures: expected a MMaDA and its wino\.multimodal\.Proc"):
        evaluate(again, processor.tokenizer, task, items, config)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("wino.multimodal.pretrain.MODEL", Recipe(batch=(("question", 2),), decay_fraction=0.3))
    seen: list[MAGVITv2] = []
    learn = pretrain.train
    monkeypatch.setattr(
        "wino.multimodal.pretrain.train",
        lambda recipe, folder, corpus: seen.append(corpus.processor.magvit) or learn(recipe, folder, corpus),
    )
    out = tmp_path / "model"
    main(["--out", str(out), "--work", str(tmp_path / "run"), "--tokenizer-steps", "1", "--steps", "1"])
    assert f"wrote {out}" in capsys.readouterr().out
    state = torch.load(tmp_path / "run" / "model" / "checkpoint.pt", weights_only=False)
    assert state["recipe"] == dataclasses.asdict(Recipe(batch=(("question", 2),), steps=1, decay_fraction=0.3))
    shipped = load(out)[1].magvit
    assert shipped.config == PICTURES
    assert all(torch.equal(value, shipped.state_dict()[name]) for name, value in seen[0].state_dict().items())


def test_pictures_that_do_not_fit_their_prompts(corpus: Pictures) -> None:
    processor, picture = corpus.processor, render(draw_scene(random.Random(0)))
    with pytest.raises(TypeError, match="prompts: expected a sequence of prompts, got one text"):
        processor.encode_with_pictures("is it red ?", [picture])
    with pytest.raises(ValueError, match="pictures: expected one, or a list of some, for each of 2 prompts, got 1"):
        processor.encode_with_pictures(["is it red ?"] * 2, [picture])
    with pytest.raises(ValueError, match="pictures: expected at least one"):
        processor.codes([])


def test_another_image_tokenizer_is_another_model(corpus: Pictures, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = Processor(corpus.tokenizer, corpus.build_model(Recipe(**SHAPE)).config, MAGVITv2(IMAGE_TOKENIZER))
    model = corpus.build_model(Recipe(**SHAPE))
    prints = {Workbench("", model, processor, None).fingerprint for processor in (corpus.processor, other)}
    assert len(prints) == 2
    task, out = PICTURE_TASKS["question"], tmp_path / "records.jsonl"
    config = wino.GenerationConfig(max_new_tokens=task.max_new_tokens)
    items = training_items(task, 3)
    for processor, count in ((corpus.processor, 2), (corpus.processor, 3)):
        assert collect(model, processor, task, items[:count], out, config, name="tiny", temperatures=(0.0,))
    with pytest.raises(ValueError, match="image_tokenizer_fingerprint"):
        collect(model, other, task, items, out, config, name="tiny", temperatures=(0.0,))


def test_what_does_not_fit_together(tmp_path: Path, corpus: Pictures) -> None:
    config = corpus.build_model(Recipe(**SHAPE)).config
    with pytest.raises(ValueError, match="image tokenizer: the model has 16 codes, it 32"):
        Processor(corpus.tokenizer, config, MAGVITv2(dataclasses.replace(IMAGE_TOKENIZER, code_bits=5)))
    config.num_vq_tokens = 35
    with pytest.raises(ValueError, match="num_vq_tokens: 35 codes are no square"):
        Processor(corpus.tokenizer, config, corpus.processor.magvit)
    with pytest.raises(ValueError, match="wino-tiny: expected a MMaDA, got model_type 'llada'"):
        load("wino-tiny")


def test_text_tasks_take_a_processor_as_their_tokenizer(corpus: Pictures) -> None:
    processor = corpus.processor
    assert processor.eos_token_id == corpus.tokenizer.eos_token_id and len(processor) == len(corpus.tokenizer)
    assert processor("a red cross")["input_ids"] == corpus.tokenizer("a red cross")["input_ids"]
    with pytest.raises(TypeError, match="task sum has no pictures"):
        TASKS["sum"].picture(next(TASKS["sum"].items("train")))
