"""Weights that accelerate keeps on the CPU or the disk and brings module by module: the decode is that of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from authors_layout import build
from llada_models import build_llada
from test_head import PROMPT, prompt
from torch import nn

import wino
from wino.models import backbone_of

LENGTHS = {"max_new_tokens": 16, "block_length": 8}
RULE = {**LENGTHS, "threshold": 0.3, "threshold_back": 0.6}
CPU = torch.device("cpu")


def to_cpu(model: Any, folder: Path) -> None:
    accelerate.cpu_offload(model, execution_device="cpu")


def to_disk(model: Any, folder: Path) -> None:
    accelerate.disk_offload(model, folder, execution_device=CPU)


def mapped(model: Any, folder: Path) -> None:
    """Some stay, some come from the disk."""
    names = [name for name, _ in model.model.transformer.named_children() if name != "blocks"]
    places = {f"model.transformer.{name}": "cpu" for name in names}
    places |= {f"model.transformer.blocks.{number}": "disk" if number else "cpu" for number in range(3)}
    if "ff_out" in names:
        places["model.transformer.ff_out"] = "disk"
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


def by_block(model: Any, folder: Path) -> None:
    """The weights of a whole block at once, by a hook on the block."""
    name = type(model.model.transformer["blocks"][0]).__name__
    accelerate.cpu_offload(model, execution_device=CPU, preload_module_classes=[name])


def chained(model: Any, folder: Path) -> None:
    """With a second hook of accelerate's on every module."""
    accelerate.cpu_offload(model, execution_device=CPU)
    for module in model.modules():
        if "_hf_hook" in vars(module):
            add_hook_to_module(module, AlignDevicesHook(), append=True)


OFFLOADS: tuple[Callable[[Any, Path], None], ...] = (to_cpu, to_disk, mapped, by_block, chained)


def ours(offload: Callable[[Any], None], **fields: Any) -> Any:
    model = build_llada(**fields)
    offload(model)
    return model


def patched_after(offload: Callable[[Any], None], **fields: Any) -> Any:
    model = build(**fields)
    offload(model)
    wino.patch(model)
    return model


def patched_before(offload: Callable[[Any], None], **fields: Any) -> Any:
    model = build(**fields)
    wino.patch(model)
    offload(model)
    return model


FIELDS: tuple[dict[str, Any], ...] = ({}, {"weight_tying": True, "scale_logits": True}, {"include_bias": True})
MAKES = (ours, patched_after, patched_before)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("offload", OFFLOADS)
def test_an_offloaded_model_decodes_as_it_would(
    offload: Callable[[Any, Path], None], number: int, tmp_path: Path
) -> None:
    make, fields = MAKES[number], FIELDS[(number + OFFLOADS.index(offload)) % 3]
    whole, model = make(lambda _: None, **fields), make(lambda model: offload(model, tmp_path), **fields)
    away = sum(parameter.is_meta for parameter in model.parameters())
    assert away > 10
    assert backbone_of(model).device == CPU and backbone_of(model).dtype == torch.float32
    torch.testing.assert_close(model(prompt()).logits, whole(prompt()).logits, atol=1e-5, rtol=0)
    for settings in (RULE, {**LENGTHS, "cache": "dual", "decoder": "prophet", "cfg_scale": 0.5}):
        expected, out = (wino.generate(each, prompt(), **settings) for each in (whole, model))
        assert torch.equal(out.sequences, expected.sequences) and torch.equal(out.accepted_at, expected.accepted_at)
    assert sum(parameter.is_meta for parameter in model.parameters()) == away


@pytest.mark.parametrize("make", MAKES)
def test_offloading_that_decoding_cannot_serve_is_refused(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(lambda model: to_cpu(model, tmp_path))
    for settings in ({"compile_step": True}, {"compile_step": {"backend": "eager"}}):
        with pytest.raises(ValueError, match="compile_step and cuda_graph: accelerate offloads this model"):
            wino.generate(model, prompt(), **RULE, **settings)
    model = make(lambda model: accelerate.cpu_offload_with_hook(model, "cpu") if make is not patched_after else None)
    if make is not patched_after:  # there wino.patch takes the hook's place, and nothing is moved
        with pytest.raises(ValueError, match=r"^the model itself \(LLaDAModelLM\) has a forward of its own"):
            wino.generate(model, prompt(), **RULE)

    def at_once(model: Any) -> None:
        accelerate.cpu_offload(model, execution_device=CPU, preload_module_classes=["LLaDAModelLM"])

    match = "the model itself .* has a forward of its own|weights of the model are on the meta device"
    with pytest.raises(ValueError, match=match):
        wino.generate(make(at_once), prompt(), **RULE)


def test_weights_that_are_nowhere() -> None:
    model = build_llada().to("meta")
    with pytest.raises(ValueError, match="weights of the model are on the meta device, and no accelerate hook brings"):
        wino.generate(model, prompt(), **RULE)
    model = build_llada()
    model.model.transformer["blocks"][1].q_proj.to("meta")
    with pytest.raises(ValueError, match="weights of the model are on the meta device"):
        wino.generate(model, prompt(), **RULE)


def test_several_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a device_map over two GPUs."""
    model = build_llada()
    accelerate.cpu_offload(model, execution_device=CPU)
    block: nn.Module = model.model.transformer["blocks"][2]
    for module in block.modules():
        if "_hf_hook" in vars(module):
            module._hf_hook.execution_device = "xpu:1"
    monkeypatch.setattr(torch, "empty", lambda *size, device: torch.zeros(()) if device.type == "cpu" else _On(device))
    with pytest.raises(ValueError, match=r"runs on several devices \(cpu, xpu:1\); decoding needs one"):
        backbone_of(model)


class _On:
    def __init__(self, device: torch.device) -> None:
        self.device = device


def test_hooks_taken_off_again_leave_a_fused_model(tmp_path: Path) -> None:
    model = build_llada()
    expected = wino.generate(model, prompt(), **RULE)
    to_cpu(model, tmp_path)
    wino.generate(model, prompt(), **RULE)
    remove_hook_from_module(model, recurse=True)
    assert backbone_of(model).head().weight is model.model.transformer["ff_out"].weight
    out = wino.generate(model, prompt(), **RULE)
    assert torch.equal(out.sequences, expected.sequences) and out.sequences.shape == (2, PROMPT + 16)
