"""The decoder's view: hidden rows and head together are the logits of a dense shadow mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import reference_loop
import torch
from llada_models import build_llada
from torch import Tensor, nn
from torch.nn.utils import parametrize

import wino_kernels
from wino.models import backbone_of
from wino.models.forward import trunk_of, weights_of
from wino.models.llada import OURS

PROMPT, LENGTH, BLOCK = 5, 24, 8
REAL = PROMPT + LENGTH


def layout(start: int, batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(start)
    return {
        "tokens": torch.cat(
            (torch.randint(2, 60, (batch, REAL), generator=generator), torch.ones(batch, BLOCK).long()), 1
        ),
        "rows": torch.randint(0, REAL + BLOCK, (batch, 11), generator=generator),
        "position_ids": torch.tensor([*range(REAL), *range(start, start + BLOCK)]).expand(batch, -1),
        "num_shadow": BLOCK,
        "block_start": torch.full((batch,), start),
    }


def dense_logits(model: Any, call: dict[str, Any], mask: Tensor) -> Tensor:
    logits = model(call["tokens"], attention_mask=mask, position_ids=call["position_ids"]).logits
    return logits.gather(1, call["rows"][:, :, None].expand(-1, -1, logits.shape[-1]))


@pytest.mark.parametrize(
    "fields", [{}, {"n_kv_heads": 2}, {"weight_tying": True}, {"include_bias": True, "scale_logits": True}]
)
@pytest.mark.parametrize("start", [5, 13, 21])
def test_rows_times_head_are_the_logits(fields: dict[str, Any], start: int) -> None:
    model, call = build_llada(**fields), layout(start)
    backbone = backbone_of(model)
    hidden = backbone.hidden_rows(**call)
    assert hidden.shape == (2, 11, 48) and hidden.dtype == torch.float32
    expected = dense_logits(model, call, reference_loop.visibility(REAL, start, BLOCK))
    torch.testing.assert_close(backbone.head().logits(hidden), expected, atol=1e-4, rtol=0)


def test_without_shadow_and_with_padding() -> None:
    model = build_llada()
    backbone = backbone_of(model)
    call = layout(5)
    call = {name: value[:, :REAL] for name, value in call.items() if name in ("tokens", "position_ids")}
    call["rows"] = torch.arange(PROMPT, REAL).expand(2, -1)
    padding = torch.ones(2, REAL, dtype=torch.bool)
    padding[1, :3] = False
    for mask in (None, padding):
        hidden = backbone.hidden_rows(**call, key_padding_mask=mask)
        visible = torch.ones(2, REAL, dtype=torch.bool) if mask is None else mask
        torch.testing.assert_close(
            backbone.head().logits(hidden), dense_logits(model, call, visible), atol=1e-4, rtol=0
        )


WATCHED: dict[str, Callable[[nn.Module], object]] = {
    "a hook": lambda block: block.q_proj.register_forward_hook(lambda *_: None),
    "a hook in front": lambda block: block.ff_norm.register_forward_pre_hook(lambda *_: None),
    "another forward": lambda block: setattr(block.up_proj, "forward", partial(block.up_proj.forward)),
    "another module": lambda block: setattr(block, "ff_out", nn.Sequential(block.ff_out)),
    "another module in front": lambda block: setattr(block, "q_proj", nn.Sequential(block.q_proj)),
    "a weight with strides": lambda block: setattr(
        block.k_proj, "weight", nn.Parameter(block.k_proj.weight.detach().T.contiguous().T)
    ),
    "a weight of another kind": lambda block: parametrize.register_parametrization(
        block.v_proj, "weight", nn.Identity()
    ),
}


@pytest.mark.parametrize("how", WATCHED)
@pytest.mark.parametrize("fields", [{}, {"n_kv_heads": 2, "include_bias": True, "rope_full_precision": False}])
def test_blocks_that_are_watched_or_wrapped_are_called(how: str, fields: dict[str, Any]) -> None:
    """They give what the fused operators give; and a module that is not called would not be noticed."""
    model, call = build_llada(**fields), layout(13)
    blocks = list(model.model.transformer["blocks"])
    with torch.no_grad():
        assert all(weights_of(block, model.config, OURS) is not None for block in blocks)
        fused = backbone_of(model).hidden_rows(**call)
        WATCHED[how](blocks[1])
        assert [weights_of(block, model.config, OURS) is not None for block in blocks] == [True, False, True]
        torch.testing.assert_close(backbone_of(model).hidden_rows(**call), fused, atol=1e-4, rtol=0)
        with wino_kernels.use_backend("eager"):
            assert all(weights_of(block, model.config, OURS) is None for block in blocks)
            torch.testing.assert_close(backbone_of(model).hidden_rows(**call), fused, atol=1e-4, rtol=0)


@torch.no_grad()
def test_layers_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's operators give what the modules give; compiled code traces the modules; no kernel: neither."""
    model, call = build_llada(), layout(13)
    expected = backbone_of(model).hidden_rows(**call)
    with wino_kernels.use_backend("triton"):
        assert all(weights_of(block, model.config, OURS) is not None for block in model.model.transformer["blocks"])
        torch.testing.assert_close(backbone_of(model).hidden_rows(**call), expected, atol=1e-4, rtol=0)

    elsewhere = build_llada().to("meta").model.transformer["blocks"][0]  # for a device that is not the CPU
    assert weights_of(elsewhere, model.config, OURS) is None
    monkeypatch.setattr("wino.models.forward.has_kernel", lambda operator, device: device == "meta")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    assert weights_of(elsewhere, model.config, OURS) is not None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert weights_of(elsewhere, model.config, OURS) is None


def test_a_wrapped_projection_counts() -> None:
    """What is put around a layer after the view was made is part of the next pass, unless the weights are held."""
    model, call = build_llada(), layout(13)
    with torch.no_grad():
        backbone, held = backbone_of(model), backbone_of(model)
        held.hold_weights(packed=True)
        before = backbone.hidden_rows(**call)
        model.model.transformer["blocks"][1].v_proj.register_forward_hook(lambda module, args, output: 2 * output)
        assert not torch.allclose(backbone.hidden_rows(**call), before)
        assert torch.equal(held.hidden_rows(**call), before)


@torch.no_grad()
@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_a_held_embedding_is_the_modules(watched: bool, max_norm: float | None) -> None:
    model, tokens = build_llada(), torch.arange(12).view(3, 4)
    wte = model.model.transformer["wte"]
    wte.max_norm = max_norm
    if watched:
        wte.register_forward_hook(lambda module, args, output: 2 * output)
    weight = wte.weight.clone()
    backbone = backbone_of(model)
    backbone.hold_weights(packed=False)
    held = backbone.embed(tokens)
    wte.weight.copy_(weight)
    assert torch.equal(held, wte(tokens))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_changed_in_their_place_count_from_the_next_hold_on(dtype: torch.dtype) -> None:
    """As merging an adapter changes them; what is packed is packed anew for every decode."""
    model, call = build_llada().to(dtype), layout(13)
    backbone = backbone_of(model)
    backbone.hold_weights(packed=True)
    before = backbone.hidden_rows(**call)
    model.model.transformer["blocks"][1].v_proj.weight.data.mul_(2.0)
    backbone.hold_weights(packed=True)
    after = backbone.hidden_rows(**call)
    assert not torch.allclose(after, before)
    assert torch.equal(after, backbone_of(model).hidden_rows(**call))


@torch.enable_grad()
def test_training_calls_the_modules() -> None:
    model = build_llada()
    assert weights_of(model.model.transformer["blocks"][0], model.config, OURS) is None
    with torch.no_grad():
        assert weights_of(model.model.transformer["blocks"][0], model.config, OURS) is not None


@torch.no_grad()
def test_global_hooks_see_every_module() -> None:
    model = build_llada()
    seen: list[nn.Module] = []
    with torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module)):
        backbone_of(model).hidden_rows(**layout(13))
    assert sum(isinstance(module, nn.Linear) for module in seen) == 7 * 3


def _other_eps(model: Any) -> None:
    model.model.transformer["blocks"][1].ff_norm.eps = 0.1


def _narrower_layer(model: Any) -> None:
    block = model.model.transformer["blocks"][2]
    for name in ("ff_proj", "up_proj"):
        setattr(block, name, nn.Linear(48, 40, bias=False))
    block.ff_out = nn.Linear(40, 48, bias=False)


def _watched_norm(model: Any) -> None:
    model.model.transformer["ln_f"].register_forward_hook(lambda module, args, output: 2 * output)


def _other_norm(model: Any) -> None:
    model.model.transformer["ln_f"].eps = 0.1


@pytest.mark.parametrize("change", [_other_eps, _narrower_layer, _watched_norm, _other_norm])
@torch.no_grad()
def test_trunks_that_are_no_single_call(change: Callable[[Any], None]) -> None:
    """Layers that differ go one by one; a final norm that is watched, or another, is called."""
    model = build_llada()
    change(model)
    call = layout(13)
    blocks = [weights_of(block, model.config, OURS) for block in model.model.transformer["blocks"]]
    trunk = trunk_of(model.model.transformer, blocks, OURS)
    assert all(block is not None for block in blocks)
    assert trunk is None if change in (_other_eps, _narrower_layer) else trunk is not None and trunk.norm_weight is None
    expected = dense_logits(model, call, reference_loop.visibility(REAL, 13, BLOCK))
    backbone = backbone_of(model)
    torch.testing.assert_close(backbone.head().logits(backbone.hidden_rows(**call)), expected, atol=2e-4, rtol=0)


def test_what_a_backbone_says_of_its_model() -> None:
    model = build_llada(vocab_size=50, embedding_size=64).to(torch.bfloat16)
    backbone = backbone_of(model)
    assert (backbone.mask_token_id, backbone.end_token_ids, backbone.vocab_size, backbone.max_length) == (
        1,
        (0,),
        64,
        96,
    )
    assert backbone.dtype == torch.bfloat16 and backbone.device == torch.device("cpu")
    head = backbone.head()
    assert head.weight is model.model.transformer.ff_out.weight and head.bias is None
    assert backbone.hidden_rows(**layout(5)).dtype == torch.bfloat16


def changed(**changes: Any) -> dict[str, Any]:
    return {**layout(5), **changes}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (changed(tokens=torch.full((2, REAL + BLOCK), 60)), r"token ids must lie in \[0, 60\), got 60"),
        (changed(tokens=torch.full((2, REAL + BLOCK), -1)), r"token ids must lie in \[0, 60\), got -1"),
        (
            changed(position_ids=torch.arange(90, 90 + REAL + BLOCK).expand(2, -1)),
            r"position ids must lie in \[0, 96\)",
        ),
        (changed(position_ids=torch.arange(REAL)), "position_ids: expected shape"),
        (changed(rows=torch.arange(4)), "rows: expected shape"),
        (changed(block_start=None), "block_start is needed"),
    ],
)
def test_calls_that_do_not_fit(call: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        backbone_of(build_llada()).hidden_rows(**call)
