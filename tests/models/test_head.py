"""A head that is wrapped, watched, quantised or replaced counts in a decode as it does in the model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from authors_layout import build
from llada_models import build_llada
from torch import Tensor, nn
from wrappers import WRAPPERS

import wino
import wino.models.head as heads
from wino.models import backbone_of
from wino.models.head import head_of

PROMPT, LENGTH = 6, 16


def ours(change: Callable[[Any], object], **fields: Any) -> Any:
    model = build_llada(**fields)
    change(model)
    return model


def patched_after(change: Callable[[Any], object], **fields: Any) -> Any:
    model = build(**fields)
    change(model)
    wino.patch(model)
    return model


def patched_before(change: Callable[[Any], object], **fields: Any) -> Any:
    model = build(**fields)
    wino.patch(model)
    change(model)
    return model


MODELS = (ours, patched_after, patched_before)


def wrapped(name: str) -> Callable[[Any], object]:
    return lambda model: WRAPPERS[name](model.model.transformer, "ff_out")


def prompt() -> Tensor:
    return torch.randint(2, 60, (2, PROMPT), generator=torch.Generator().manual_seed(0))


def model_logits(model: Any) -> Tensor:
    """Of the first step's rows, by the model's own forward."""
    region = torch.ones(2, LENGTH, dtype=torch.int64)
    return model(torch.cat((prompt(), region), dim=1)).logits[:, PROMPT:]


def assert_first_step(model: Any, logits: Tensor, within: float = 1e-5, **settings: Any) -> None:
    """All drafts of the first step are taken: tokens and confidences are those of ``logits``, but for the mask."""
    rule = {"decoder": "confidence_threshold", "threshold": 1e-30, "max_new_tokens": LENGTH, "block_length": LENGTH}
    out = wino.generate(model, prompt(), return_trace=True, **rule, **settings)
    assert out.steps.tolist() == [1, 1]
    probabilities = logits.float().softmax(-1)
    largest = probabilities.index_fill(-1, torch.tensor([1]), 0).amax(-1)
    confidence = torch.tensor([steps[0].accepted_confidences for steps in out.trace])
    torch.testing.assert_close(confidence, largest, atol=within, rtol=0)
    taken = probabilities.gather(-1, out.sequences[:, PROMPT:, None])[..., 0]
    torch.testing.assert_close(taken, largest, atol=2 * within, rtol=0)


@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", WRAPPERS)
def test_the_first_step_is_the_models(name: str, make: Callable[..., Any], cache: str) -> None:
    model = make(wrapped(name))
    logits = model_logits(model)
    unchanged = model_logits(make(lambda _: None))
    assert not torch.allclose(logits, unchanged, atol=0.05)
    # Dynamic quantisation takes its range from all rows of a call, which are others in the model's forward.
    assert_first_step(model, logits, 0.05 if name == "quantize_dynamic" else 1e-5, cache=cache)


@pytest.mark.parametrize("name", ["LoRA", "a hook", "another module"])
@pytest.mark.parametrize("rows", [1, 5])
def test_tiles(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more logits at once than a tile holds, and the same results."""
    model = ours(wrapped(name))
    sizes: list[int] = []
    model.model.transformer["ff_out"].register_forward_hook(lambda module, args, out: sizes.append(out.shape[1]))
    logits = model_logits(model)
    monkeypatch.setattr(heads, "_TILE", rows * 60)
    sizes.clear()
    assert_first_step(model, logits)
    assert max(sizes) == rows and sum(sizes) == 2 * LENGTH


@pytest.mark.parametrize("fields", [{"scale_logits": True}, {"include_bias": True, "scale_logits": True}])
@pytest.mark.parametrize("make", MODELS)
def test_scaled_logits(fields: dict[str, Any], make: Callable[..., Any]) -> None:
    """What wraps the head sees the rows and the logits that it sees in the model: the factor comes last."""

    def clipped(model: Any) -> None:
        model.model.transformer["ff_out"].register_forward_hook(lambda module, args, output: output.clamp(-2, 2))

    for change in (clipped, lambda _: None):
        model = make(change, **fields)
        assert_first_step(model, model_logits(model))


@pytest.mark.parametrize("make", MODELS)
def test_guidance_guides_the_logits(make: Callable[..., Any]) -> None:
    """Those of the head as it is called, which need not be linear."""

    def clipped(model: Any) -> None:
        model.model.transformer["ff_out"].register_forward_hook(lambda module, args, output: output.clamp(-1, 1))

    model = make(clipped)
    region = torch.ones(2, PROMPT + LENGTH, dtype=torch.int64)
    free, with_prompt = model(region).logits[:, PROMPT:], model_logits(model)
    for settings in ({}, {"cache": "prefix"}):
        assert_first_step(model, free + 2.5 * (with_prompt - free), cfg_scale=1.5, **settings)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", ["LoRA", "a forward of its own", "8 bits"])
def test_a_range_of_tokens(make: Callable[..., Any], name: str) -> None:
    model = make(wrapped(name))
    logits = model_logits(model)
    logits[..., :20] = logits[..., 45:] = -torch.inf
    assert_first_step(model, logits, token_range=(20, 45))


@pytest.mark.parametrize("decoder", ["wino", "low_confidence", "prophet", "maskgit"])
def test_decodes_are_those_of_the_merged_head(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise by row, whatever the tiles: the tokens of a plain head that gives the same logits."""
    model, plain = ours(wrapped("LoRA")), ours(wrapped("LoRA"))
    adapted: Any = plain.model.transformer["ff_out"]
    adapted.merge()
    plain.model.transformer["ff_out"] = adapted.get_base_layer()
    assert head_of(plain).weight is not None and head_of(model).weight is None
    rule = {"decoder": decoder, "max_new_tokens": 32, "block_length": 16, "return_trace": True}
    if decoder != "prophet":
        rule |= {"temperature": 0.8, "seed": 5}
    expected = wino.generate(plain, prompt(), **rule)
    monkeypatch.setattr(heads, "_TILE", 3 * 60)
    out = wino.generate(model, prompt(), **rule)
    assert torch.equal(out.sequences, expected.sequences) and torch.equal(out.accepted_at, expected.accepted_at)


@pytest.mark.parametrize("make", MODELS)
def test_a_tied_head_is_the_embeddings_weight(make: Callable[..., Any]) -> None:
    """What is put around the embedding changes the head where it changes the weight, as in the model."""

    def embedding_of(model: Any) -> nn.Embedding:
        return model.model.transformer["wte"]

    changes: list[Callable[[Any], object]] = [
        lambda model: None,
        lambda model: embedding_of(model).register_forward_hook(lambda module, args, output: output.flip(-1)),
        lambda model: WRAPPERS["a parametrization"](model.model.transformer, "wte"),
        lambda model: WRAPPERS["a weight of another class"](model.model.transformer, "wte"),
        lambda model: WRAPPERS["LoRA"](model.model.transformer, "wte"),
    ]
    plain = []
    for change in changes:
        model = make(change, weight_tying=True)
        plain.append(head_of(model).weight is not None)
        assert_first_step(model, model_logits(model))
    assert plain == [True, True, True, False, True]


def test_a_plain_head_is_fused() -> None:
    """And seen anew by every decode: what wraps it, from the next decode on."""
    model = build_llada(include_bias=True)
    head = model.model.transformer["ff_out"]
    found = backbone_of(model).head()
    assert found.weight is head.weight and found.bias is head.bias
    calls: list[Any] = []
    original = head.forward
    for settings in ({}, {"cache": "dual"}):
        with head.register_forward_hook(lambda module, args, output: calls.append(args)):
            assert_first_step(model, model_logits(model), **settings)
            assert len(calls) == 2
            calls.clear()
        assert backbone_of(model).head().weight is head.weight
        assert_first_step(model, model_logits(model), **settings)
        assert not calls
    with nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module)):
        assert backbone_of(model).head().weight is None
    head.forward = original  # its class's, as accelerate leaves it behind
    assert backbone_of(model).head().weight is head.weight
    head.forward = lambda x: original(x)
    assert backbone_of(model).head().weight is None


def test_autocast_rules_the_head_too() -> None:
    """Its product is taken in the dtype of autocast, as the model takes it."""
    model = build_llada()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model_logits(model)
        head = head_of(model)
        assert head.weight is None and head.logits(torch.randn(1, 48)).dtype == logits.dtype == torch.bfloat16
        assert_first_step(model, logits, 0.02)  # the layers round elsewhere than the model's do


@pytest.mark.parametrize(
    ("head", "error", "match"),
    [
        (nn.Linear(48, 59), ValueError, r"LM head: expected logits of shape \(1, 32, 60\), got \(1, 32, 59\)"),
        (nn.GRU(48, 60), TypeError, "LM head: expected it to return a tensor, got tuple"),
    ],
)
def test_what_is_no_head(head: nn.Module, error: type[Exception], match: str) -> None:
    model = build_llada()
    model.model.transformer["ff_out"] = nn.Sequential(head)
    with pytest.raises(error, match=match):
        wino.generate(model, prompt(), max_new_tokens=LENGTH, block_length=LENGTH, decoder="low_confidence")


def test_a_tied_head_without_a_weight() -> None:
    model = build_llada(weight_tying=True)
    model.model.transformer["wte"] = nn.Sequential(model.model.transformer["wte"])
    with pytest.raises(TypeError, match=r"with weight_tying it is the weight of model\.transformer\.wte"):
        backbone_of(model).head()
