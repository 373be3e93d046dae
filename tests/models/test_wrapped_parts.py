"""Whatever part of a model is wrapped, watched, quantised or replaced: a decode does what the model's forward does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from authors_layout import build
from llada_models import build_llada
from test_head import LENGTH, MODELS, PROMPT, assert_first_step, model_logits, prompt
from torch import Tensor, nn
from wrappers import WRAPPERS

import wino
from wino.models import LLaDAModelLM, backbone_of
from wino.models.forward import PROJECTIONS

COMPILED = {"backend": "eager"}
LENGTHS = {"max_new_tokens": 32, "block_length": 16}
RULE = {**LENGTHS, "threshold": 0.3, "threshold_back": 0.6}
#: What can also be put on a module that is no linear layer.
ANYWHERE = ("a hook", "a hook in front", "a forward of its own", "a parametrization")
CASES = [
    *((name, f"blocks.1.{part}") for n, part in enumerate(PROJECTIONS) for name in list(WRAPPERS)[n % 3 :: 3]),
    *((name, part) for part in ("wte", "ln_f", "blocks.0.attn_norm", "blocks.2.ff_norm") for name in ANYWHERE),
    ("LoRA", "wte"),
    ("modules_to_save", "wte"),
]


def put(name: str, part: str) -> Callable[[Any], object]:
    def change(model: Any) -> None:
        above, _, own = part.rpartition(".")
        if name == "a hook in front" and own == "wte":
            model.model.transformer["wte"].register_forward_pre_hook(lambda module, args: (args[0].flip(-1),))
        elif name == "a forward of its own" and own == "wte":
            forward = model.model.transformer["wte"].forward
            model.model.transformer["wte"].forward = lambda ids: forward(ids).cumsum(1) / 5
        else:
            WRAPPERS[name](model.model.transformer.get_submodule(above), own)

    return change


@pytest.mark.parametrize(("name", "part"), CASES)
def test_the_first_step_is_the_models(name: str, part: str) -> None:
    for number, make in enumerate(MODELS):
        model = make(put(name, part))
        logits = model_logits(model)
        assert not torch.allclose(logits, model_logits(make(lambda _: None)), atol=1e-3)
        # Dynamic quantisation takes its range from all rows of a call, of which a decode's last block has fewer.
        within = 0.1 if name == "quantize_dynamic" else 1e-5
        for settings in ({}, {"cache": "dual" if number % 2 else "prefix"}):
            assert_first_step(model, logits, within, **settings)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("LoRA", "ff_out"),
        ("a hook", "blocks.0.v_proj"),
        ("weight_norm", "blocks.0.v_proj"),
        ("a forward of its own", "blocks.0.ff_norm"),
        ("a hook in front", "wte"),
        ("a hook", "ln_f"),
    ],
)
def test_a_compiled_step_sees_what_was_put_on_since(name: str, part: str) -> None:
    """And sees it gone: the step of the plain model is compiled before and used again after."""
    model = build_llada(n_layers=1)
    plain = model_logits(model)
    assert_first_step(model, plain, compile_step=COMPILED)
    change = put(name, part)
    change(model)
    logits = model_logits(model)
    assert not torch.allclose(logits, plain, atol=1e-3)
    assert_first_step(model, logits, compile_step=COMPILED)
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    assert_first_step(model, model_logits(model), compile_step=COMPILED)


def test_a_compiled_step_sees_adapters_switched() -> None:
    model = build_llada(n_layers=1)
    put("LoRA", "blocks.0.v_proj")(model)
    put("LoRA", "ff_out")(model)
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    found = []
    for enabled in (True, False, True):
        for layer in layers:
            layer.enable_adapters(enabled)
        found.append(model_logits(model))
        assert_first_step(model, found[-1], compile_step=COMPILED)
    assert torch.equal(found[0], found[2]) and not torch.allclose(found[0], found[1], atol=1e-3)


def test_two_models_with_their_own_hooks_share_no_compiled_step() -> None:
    for factor in (2.0, -1.0):
        model = build_llada(n_layers=1)
        model.model.transformer["blocks"][0].v_proj.register_forward_hook(
            lambda module, args, output, factor=factor: factor * output
        )
        assert_first_step(model, model_logits(model), compile_step=COMPILED)


def test_global_hooks_count_in_a_compiled_step() -> None:
    model = build_llada(n_layers=1)
    assert_first_step(model, model_logits(model), compile_step=COMPILED)

    def doubled(module: nn.Module, args: Any, output: Any) -> Any:
        return 2 * output if isinstance(module, nn.Linear) else None

    with nn.modules.module.register_module_forward_hook(doubled):
        assert_first_step(model, model_logits(model), compile_step=COMPILED)
    assert_first_step(model, model_logits(model), compile_step=COMPILED)


def test_what_cannot_be_compiled_is_refused() -> None:
    model = build_llada(n_layers=1)
    put("quantize_dynamic", "blocks.0.v_proj")(model)
    with pytest.raises(ValueError, match=r"^compile_step: torch\.compile cannot trace this model"):
        wino.generate(model, prompt(), compile_step=COMPILED, **RULE)


@pytest.mark.parametrize("name", ["a hook", "a hook in front", "a forward of its own"])
@pytest.mark.parametrize("part", ["ff_out", "blocks.2.q_proj", "blocks.1"])
def test_a_captured_step_would_leave_it_out(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_llada()
    put(name, part)(model)
    monkeypatch.setattr("wino.generation._check_graph", lambda config, device: None)
    with pytest.raises(ValueError, match=rf"cuda_graph: model\.transformer\.{part} has a hook or a forward of its own"):
        wino.generate(model, prompt(), cuda_graph=True, **RULE)


@pytest.mark.parametrize(
    ("where", "settings"), [(0, {}), (1, {}), (2, {}), (1, {"cache": "prefix"}), (0, {"compile_step": COMPILED})]
)
def test_hooks_on_our_blocks_run(where: int, settings: dict[str, Any]) -> None:
    """Steering: a vector added behind a block, before another; in the forward pass and in decodes."""
    model = build_llada()
    plain = model_logits(model)
    vector = torch.randn(48, generator=torch.Generator().manual_seed(1))
    block = model.model.transformer["blocks"][where]
    block.register_forward_hook(lambda module, args, output: output + vector)
    block.register_forward_pre_hook(lambda module, args: (args[0] - 0.5 * vector, *args[1:]))
    logits = model_logits(model)
    assert not torch.allclose(logits, plain, atol=1e-3)
    assert_first_step(model, logits, **settings)


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Tensor:
        return 1.5 * self.inner(*args)


def test_a_block_in_another_modules_place_is_called() -> None:
    model = build_llada()
    model.model.transformer["blocks"][1] = Scaled(model.model.transformer["blocks"][1])
    assert_first_step(model, model_logits(model))
    assert_first_step(model, model_logits(model), cache="dual")


@pytest.mark.parametrize("name", ["", "model"])
def test_what_sits_around_our_model_is_refused(name: str) -> None:
    model = build_llada()
    with (
        model.get_submodule(name).register_forward_hook(lambda module, args, output: output),
        pytest.raises(ValueError, match="has a forward hook, which decoding would not call"),
    ):
        wino.generate(model, prompt(), **RULE)
    model.forward = torch.compile(model.forward)
    with pytest.raises(ValueError, match=r"the model itself .* has a forward of its own"):
        wino.generate(model, prompt(), **RULE)


class Shifted(LLaDAModelLM):
    def forward(self, *args: Any, **settings: Any) -> Any:
        out = super().forward(*args, **settings)
        return type(out)(logits=out.logits.roll(1, -1))


class Extended(LLaDAModelLM):
    """A subclass that computes the same."""

    def note(self) -> str:
        return "note"


def test_a_subclass_with_a_forward_of_its_own_is_refused() -> None:
    model = build_llada()
    config = model.config
    with pytest.raises(TypeError, match="Shifted has a forward of its own, which decoding would not call"):
        wino.generate(Shifted(config).eval(), prompt(), **RULE)
    assert wino.generate(Extended(config).eval(), prompt(), **RULE).sequences.shape == (2, PROMPT + 32)


def test_an_embedding_that_looks_at_its_neighbours() -> None:
    """It is given whole sequences, in every step."""
    model, seen = build_llada(), []

    def mixed(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(args[0])
        return output + 0.5 * output.mean(1, keepdim=True)

    model.model.transformer["wte"].register_forward_hook(mixed)
    for settings in ({}, {"cache": "dual"}):
        assert_first_step(model, model_logits(model), **settings)
    seen.clear()
    out = wino.generate(model, prompt(), decoder="low_confidence", steps=4, max_new_tokens=LENGTH, block_length=8)
    assert all(tokens.shape == (2, PROMPT + LENGTH) for tokens in seen)
    assert torch.equal(seen[-1][:, :PROMPT], out.sequences[:, :PROMPT])
    assert list(dict.fromkeys(int((tokens[0] == 1).sum()) for tokens in seen)) == [16, 12, 8, 4]


@pytest.mark.parametrize("targets", [[*PROJECTIONS, "wte"], ["ff_out"]])
@pytest.mark.parametrize("make", MODELS)
def test_whole_decodes_are_those_of_the_merged_copy(make: Callable[..., Any], targets: list[str]) -> None:
    """LoRA on everything, head included ("ff_out" names it and the MLPs'), against ``merge_and_unload``."""

    def adapt(model: Any, merge: bool = False) -> Any:
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets)).eval()
        generator = torch.Generator().manual_seed(4)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.15, generator=generator)
        return adapted.merge_and_unload() if merge else adapted.get_base_model()

    model, merged = make(adapt), make(lambda model: adapt(model, merge=True))
    assert backbone_of(merged).head().weight is not None and backbone_of(model).head().weight is None
    plain = make(lambda _: None)
    for settings in (RULE, {**RULE, "cache": "dual"}, {**LENGTHS, "decoder": "prophet", "cfg_scale": 1.0}):
        out, expected, without = (wino.generate(each, prompt(), **settings) for each in (model, merged, plain))
        assert torch.equal(out.sequences, expected.sequences) and torch.equal(out.accepted_at, expected.accepted_at)
        assert not torch.equal(out.sequences, without.sequences)


def test_a_peft_model_is_named() -> None:
    model = peft.get_peft_model(build_llada(), peft.LoraConfig(r=2, target_modules=["v_proj"]))
    with pytest.raises(TypeError, match=r"got peft\.peft_model\.PeftModel; pass its get_base_model\(\)"):
        wino.generate(model, prompt(), **RULE)
    assert wino.generate(model.get_base_model(), prompt(), **RULE).sequences.shape == (2, PROMPT + 32)
    with pytest.raises(TypeError, match=r"pass its get_base_model\(\)"):
        wino.patch(peft.get_peft_model(build(), peft.LoraConfig(r=2, target_modules=["v_proj"])))
