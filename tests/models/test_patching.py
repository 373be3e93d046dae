"""``wino.patch`` on a stand-in for the authors' code: same logits, one instance changed, everything given back."""

from __future__ import annotations

import copy
import io
import pickle
import re
from typing import Any

import authors_layout
import pytest
import reference_loop
import torch
from authors_layout import build, own_logits
from torch import Tensor, nn

import wino
from wino.models import LLaDAConfig, LLaDAModelLM, backbone_of, patched
from wino.models.forward import iter_blocks, trunk_of, weights_of
from wino.models.patching import known_of

VARIANTS: dict[str, dict[str, Any]] = {
    "as LLaDA-8B": {},
    "grouped heads": {"n_kv_heads": 2},
    "one key head": {"n_kv_heads": 1},
    "tied": {"weight_tying": True},
    "scaled logits": {"scale_logits": True},
    "biases": {"include_bias": True, "scale_logits": True},
    "qkv biases": {"include_qkv_bias": True},
    "default mlp": {"mlp_hidden_size": None},
    "block groups": {"block_group_size": 3},
}


def tokens(batch: int = 2, length: int = 40) -> Tensor:
    return torch.randint(2, 60, (batch, length), generator=torch.Generator().manual_seed(7))


def calls(batch: int) -> dict[str, dict[str, Tensor]]:
    """Arguments as the authors' WINO loop passes them: prompt 8, generation 24, shadow block of 8 at position 16."""
    mask = reference_loop.visibility(32, 16, 8).expand(batch, 1, 40, 40)
    positions = torch.tensor([*range(32), *range(16, 24)])
    return {
        "plain": {},
        "mask": {"attention_mask": mask},
        "positions": {"position_ids": positions},
        "shadow block": {"attention_mask": mask, "position_ids": positions},
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_model_itself(variant: str) -> None:
    model = build(**VARIANTS[variant])
    ids = tokens()
    expected = {name: own_logits(model, ids, **arguments) for name, arguments in calls(2).items()}
    with wino.patch(model):
        for name, arguments in calls(2).items():
            torch.testing.assert_close(model(ids, **arguments).logits, expected[name], atol=1e-4, rtol=0)


def test_bfloat16_logits_are_as_close_as_bfloat16_allows() -> None:
    model = build()
    exact = own_logits(model, tokens())
    model = model.to(torch.bfloat16)
    own_error = (own_logits(model, tokens()).float() - exact).abs().max()
    wino.patch(model)
    logits = model(tokens()).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).abs().max() <= 1.5 * own_error


def test_weights_are_shared_and_the_state_dict_is_untouched() -> None:
    model = build()
    before = dict(model.named_parameters())
    keys = list(model.state_dict())
    wino.patch(model)
    assert list(model.state_dict()) == keys
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    logits = model(tokens()).logits
    model.model.transformer.wte.weight.mul_(0.5)
    assert not torch.equal(model(tokens()).logits, logits)


def test_unpatch_gives_back_every_attribute() -> None:
    model, other = build(), build(1)
    before, class_forward = dict(vars(model)), authors_layout.LLaDAModelLM.forward
    expected = own_logits(model, tokens())
    handle = wino.patch(model)
    assert handle.model is model and handle.active
    assert authors_layout.LLaDAModelLM.forward is class_forward and "forward" not in vars(other)
    handle.unpatch()
    after = dict(vars(model))
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert model.forward.__func__ is class_forward
    assert torch.equal(own_logits(model, tokens()), expected)
    assert not handle.active
    with pytest.raises(RuntimeError, match="already unpatched"):
        handle.unpatch()


def test_the_original_forward_runs_again() -> None:
    """The stand-in's own outer forward, given what transformers 5 no longer provides."""
    model = build()
    model.config.use_cache = False
    expected = model(tokens(), return_dict=True).logits
    with wino.patch(model):
        assert type(model(tokens(), return_dict=True)).__name__ == "CausalLMOutput"
    output = model(tokens(), return_dict=True)
    assert type(output).__name__ == "CausalLMOutputWithPast" and torch.equal(output.logits, expected)


def test_a_forward_set_on_the_instance_comes_back() -> None:
    model = build()

    def hooked(*args: Any, **kwargs: Any) -> str:
        return "hooked"

    model.forward = hooked
    with wino.patch(model):
        assert isinstance(model(tokens()).logits, Tensor)
    assert model.forward is hooked and model(tokens()) == "hooked"


def test_unpatch_refuses_to_drop_a_later_forward() -> None:
    model = build()
    handle = wino.patch(model)
    model.forward = lambda *args, **kwargs: "later"
    with pytest.raises(RuntimeError, match="replaced after"):
        handle.unpatch()
    assert model(tokens()) == "later"


def test_the_context_manager_unpatches_after_an_error() -> None:
    model = build()
    with pytest.raises(ZeroDivisionError), wino.patch(model):
        raise ZeroDivisionError
    assert "forward" not in vars(model)
    with wino.patch(model) as handle:
        handle.unpatch()


def test_patching_twice_raises() -> None:
    model = build()
    handle = wino.patch(model)
    with pytest.raises(ValueError, match="already patched"):
        wino.patch(model)
    assert patched(model) is handle
    handle.unpatch()
    with pytest.raises(ValueError, match="not patched"):
        patched(model)
    wino.patch(model).unpatch()


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])
def test_a_copy_is_patched_on_its_own(duplicate: Any) -> None:
    model = build()
    handle = wino.patch(model)
    expected = model(tokens()).logits
    twin = duplicate(model)
    model.model.transformer.wte.weight.zero_()
    assert torch.equal(twin(tokens()).logits, expected)
    assert patched(twin).model is twin
    patched(twin).unpatch()
    assert "forward" not in vars(twin) and handle.active and patched(model) is handle
    torch.testing.assert_close(own_logits(twin, tokens()), expected, atol=1e-4, rtol=0)


class LoRALinear(nn.Module):
    """A wrapper in PEFT's manner: no weight of its own, so reading it fails and skipping it shows."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"])
def test_wrapped_projections_count(projection: str) -> None:
    model = build()
    plain = own_logits(model, tokens())
    for block in model.model.transformer.blocks:
        setattr(block, projection, LoRALinear(getattr(block, projection)))
    expected = own_logits(model, tokens())
    assert (expected - plain).abs().max() > 0.01
    wino.patch(model)
    torch.testing.assert_close(model(tokens()).logits, expected, atol=1e-4, rtol=0)


def test_hooks_run() -> None:
    model, seen = build(), []
    wino.patch(model)
    model.register_forward_hook(lambda *_: seen.append("model"))
    model.model.transformer.blocks[1].k_proj.register_forward_hook(lambda *_: seen.append("k_proj"))
    model(tokens())
    assert seen == ["k_proj", "model"]


def assert_refused(model: nn.Module, kind: type[Exception], match: str) -> None:
    before = dict(vars(model))
    with pytest.raises(kind, match=match):
        wino.patch(model)
    assert vars(model) == before


def test_what_is_missing_is_named_before_anything_changes() -> None:
    assert_refused(nn.Linear(2, 2), TypeError, "Linear is not a LLaDA .* has no config$")
    model = build()
    del model.model.transformer.blocks[2].up_proj
    assert_refused(model, TypeError, r"has no model\.transformer\.blocks\.2\.up_proj$")
    model = build()
    del model.model.transformer["ff_out"]
    assert_refused(model, TypeError, r"has no model\.transformer\.ff_out$")
    model = build()
    del model.model
    assert_refused(model, TypeError, r"has no model\.transformer$")
    model = build()
    del model.config.rope_theta, model.config.mask_token_id
    assert_refused(model, TypeError, r"has no config\.rope_theta, config\.mask_token_id$")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_type", "sequential"),
        ("activation_type", "swiglu"),
        ("layer_norm_type", "default"),
        ("attention_layer_norm", True),
        ("input_emb_norm", True),
        ("rope", False),
        ("alibi", True),
        ("multi_query_attention", True),
    ],
)
def test_another_architecture_is_refused(field: str, value: object) -> None:
    model = build()
    setattr(model.config, field, value)
    assert_refused(model, ValueError, f"{field}={value!r} is not supported")


def test_our_own_model_needs_no_patch() -> None:
    with pytest.raises(TypeError, match="needs no patch"):
        wino.patch(LLaDAModelLM(LLaDAConfig(**authors_layout.FIELDS)))


@pytest.mark.parametrize(
    "argument",
    [{"use_cache": True}, {"past_key_values": [()]}, {"labels": tokens()}, {"inputs_embeds": torch.zeros(2, 40, 48)}],
)
def test_arguments_that_would_be_ignored_raise(argument: dict[str, Any]) -> None:
    model = build()
    wino.patch(model)
    with pytest.raises(ValueError, match=next(iter(argument))):
        model(tokens(), **argument)
    assert isinstance(model(tokens(), use_cache=False, past_key_values=None, return_dict=False), tuple)
    with pytest.raises(TypeError, match="positional"):
        model(tokens(), None)


def test_dropout_in_training_raises() -> None:
    model = build(residual_dropout=0.1)
    wino.patch(model)
    model(tokens())
    model.train()
    with pytest.raises(RuntimeError, match="dropout"):
        model(tokens())


def test_backbone_of_needs_a_patch() -> None:
    model = build()
    with pytest.raises(TypeError, match=r"LLaDAModelLM; call wino\.patch\(model\) first"):
        backbone_of(model)
    with pytest.raises(TypeError, match=r"got torch\.nn\.modules\.linear\.Linear$"):
        backbone_of(nn.Linear(2, 2))
    with wino.patch(model):
        assert backbone_of(model).mask_token_id == 1
    with pytest.raises(TypeError):
        backbone_of(model)


def is_fused(model: nn.Module) -> tuple[list[bool], bool]:
    """Whether kernels take the place of each block, and of all of them with the final norm."""
    transformer: Any = model.model.transformer
    found = [weights_of(block, model.config, known_of(model)) for block in iter_blocks(transformer)]
    trunk = trunk_of(transformer, found, known_of(model))
    return [weights is not None for weights in found], trunk is not None and trunk.norm_weight is not None


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_patched_model_is_fused(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, and what it decodes is what its modules decode."""
    model = build(**VARIANTS[variant])
    wino.patch(model)
    assert is_fused(model) == ([True] * 3, True)
    rule = {"max_new_tokens": 24, "block_length": 8, "threshold": 0.3, "threshold_back": 0.6}
    fused = wino.generate(model, tokens(2, 9), **rule)
    monkeypatch.setattr("wino.models.backbone.weights_of", lambda *_: None)
    called = wino.generate(model, tokens(2, 9), **rule)
    assert torch.equal(fused.sequences, called.sequences) and torch.equal(fused.accepted_at, called.accepted_at)


class AnotherNorm(authors_layout.RMSLayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(-1)


class ShiftedNorm(authors_layout.RMSLayerNorm):
    """Gemma's: the same at a weight of zeros alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x) / self.weight


class LateNorm(authors_layout.RMSLayerNorm):
    """Llama's way about: in bfloat16 it rounds once, where LLaDA rounds twice."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (self.weight * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class NarrowNorm(authors_layout.RMSLayerNorm):
    """In the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


class BareNorm(authors_layout.RMSLayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.weight


class WithoutEps(authors_layout.RMSLayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True))).to(x.dtype)


class Picky(authors_layout.RMSLayerNorm):
    """Cannot be tried."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 40
        return super().forward(x)


@pytest.mark.parametrize(
    "kind", [AnotherNorm, ShiftedNorm, LateNorm, NarrowNorm, BareNorm, WithoutEps, Picky, nn.RMSNorm]
)
@pytest.mark.parametrize("is_patched_first", [False, True])
def test_a_norm_that_is_another_is_called(kind: type[nn.Module], is_patched_first: bool) -> None:
    model = build()
    if is_patched_first:
        wino.patch(model)
    block = model.model.transformer.blocks[1]
    other: Any = nn.RMSNorm(48, eps=0.5) if kind is nn.RMSNorm else kind(model.config)
    other.weight = nn.Parameter(torch.linspace(-1.5, 2, 48))
    block.ff_norm = other
    expected = own_logits(model, tokens())
    if not is_patched_first:
        wino.patch(model)
    assert is_fused(model) == ([True, False, True], False)
    torch.testing.assert_close(model(tokens()).logits, expected, atol=1e-4, rtol=0)


def test_a_norm_with_more_than_a_weight_is_called() -> None:
    model = build()
    model.model.transformer.ln_f.bias = nn.Parameter(torch.zeros(48))
    wino.patch(model)
    assert is_fused(model) == ([False] * 3, False)  # the class is not known by one of its instances


@pytest.mark.parametrize("where", ["block", "q_proj", "ff_norm", "ln_f"])
def test_what_is_watched_is_not_fused(where: str) -> None:
    model = build()
    wino.patch(model)
    transformer = model.model.transformer
    block = transformer.blocks[1]
    module = {"block": block, "ln_f": transformer.ln_f}.get(where) or getattr(block, where)
    with module.register_forward_hook(lambda *_: None):
        assert is_fused(model) == ([True, where == "ln_f", True], False)
    assert is_fused(model) == ([True] * 3, True)


def test_trying_the_norms_leaves_no_trace() -> None:
    """Neither on the model, nor on the random numbers of others; hooks do not run; copies know their classes."""
    model, seen = build(), []
    transformer = model.model.transformer
    hook = transformer.ln_f.register_forward_hook(lambda *_: seen.append(1))
    before, state = dict(vars(transformer.ln_f)), torch.get_rng_state()
    weight = transformer.ln_f.weight.clone()
    wino.patch(model)
    assert torch.equal(torch.get_rng_state(), state) and not seen
    assert vars(transformer.ln_f) == before and torch.equal(transformer.ln_f.weight, weight)
    hook.remove()
    assert is_fused(pickled(model)) == is_fused(copy.deepcopy(model)) == ([True] * 3, True)
    patched(model).unpatch()
    with torch.device("meta"):
        empty = build()
    wino.patch(empty)
    assert patched(empty).norms == {authors_layout.RMSLayerNorm}


UNREACHED = (
    "model",
    "model.transformer.blocks.1",
    "model.transformer.emb_drop",
    "model.transformer.blocks.2.rotary_emb",
)


@pytest.mark.parametrize("name", ["", *UNREACHED])
@pytest.mark.parametrize("how", ["a forward hook", "a hook in front", "a forward of its own"])
def test_what_sits_where_decoding_never_comes_is_refused(name: str, how: str) -> None:
    """By name, before the first pass; it runs again, or is gone, and the model decodes."""
    model = build()
    wino.patch(model)
    module, calls = model.get_submodule(name), []
    forward = vars(module).get("forward")
    if how == "a forward of its own":
        module.forward = lambda *args, **kwargs: calls.append(args)
    elif how == "a forward hook":
        handle = module.register_forward_hook(lambda *_: calls.append(1))
    else:
        handle = module.register_forward_pre_hook(lambda *_: calls.append(1))
    what = "a forward of its own" if how == "a forward of its own" else "a forward hook"
    match = rf"^{re.escape(name or 'the model itself')} \(\w+\) has {what}, which decoding would not call"
    rule = {"max_new_tokens": 8, "block_length": 8}
    with pytest.raises(ValueError, match=match):
        wino.generate(model, tokens(1, 5), **rule)
    assert not calls
    if name:
        with pytest.raises(ValueError, match=match):
            model(tokens())
    if how != "a forward of its own":
        handle.remove()
    elif forward is None:
        del module.forward
    else:
        module.forward = forward
    assert wino.generate(model, tokens(1, 5), **rule).sequences.shape == (1, 13)


def test_blocks_of_another_class_are_refused() -> None:
    model = build()
    wino.patch(model)
    model.model.transformer.blocks[1] = Wrapped(model.model.transformer.blocks[1])
    with pytest.raises(TypeError, match=r"blocks of the model were replaced after wino\.patch, by Wrapped"):
        wino.generate(model, tokens(1, 5), max_new_tokens=8, block_length=8)
    model = build()
    model.model.transformer.blocks[1] = Wrapped(model.model.transformer.blocks[1])
    assert_refused(model, TypeError, r"has no model\.transformer\.blocks\.1\.attn_norm")


class Wrapped(nn.Module):
    """In the manner of checkpoint wrappers: what it lacks is its inner module's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args: Any) -> Tensor:
        return 2 * self.inner(*args)


class OwnArithmetic:
    """The stand-in as the reference loop calls a model."""

    def __init__(self, model: authors_layout.LLaDAModelLM) -> None:
        self.model = model

    def __call__(self, ids: Tensor, **arguments: Any) -> Any:
        return authors_layout.CausalLMOutputWithPast(logits=own_logits(self.model, ids, **arguments))


def test_a_patched_model_decodes_as_the_loop_on_its_own_arithmetic() -> None:
    kept = 0
    for seed in range(12):
        model = build(seed, n_kv_heads=2)
        model.model.transformer.wte.weight.mul_(1.5)
        model.model.transformer.ff_out.weight.mul_(2)
        model.model.transformer.ff_out.weight[1] = 0
        prompt = tokens(1, 7)[0].tolist()
        rule = {"block_length": 16, "threshold": 0.3, "threshold_back": 0.6}
        expected = reference_loop.wino(OwnArithmetic(model), prompt, [1] * 32, mask_id=1, **rule)
        with wino.patch(model):
            out = wino.generate(model, torch.tensor([prompt]), decoder="wino", max_new_tokens=32, **rule)
        if expected.margin >= 1e-4:
            kept += 1
            assert out.sequences[0].tolist() == expected.tokens
            assert out.accepted_at[0].tolist() == expected.accepted_at and int(out.steps[0]) == expected.steps
    assert kept >= 6
