"""What the operators share: registration, compilation, refusals, selection of a backend, weight of the import."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from kernel_paths import over_paths, paths
from layers import after_attention, before_attention, trunk
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import wino_kernels
from wino_kernels import backends, ops
from wino_kernels.cpu import accept_remask as native_remask

B, K, V, H, MASK = 3, 5, 17, 8, 16
CPU_OPERATORS = (
    "score_tokens",
    "linear_score_tokens",
    "accept_remask_",
    "accept_",
    "wino_step_",
    "shadow_attention",
    "norm_qkv_rope",
    "out_norm_swiglu",
    "shadow_trunk",
)


def state() -> dict[str, Tensor]:
    kind = torch.arange(B * K).view(B, K) % 3
    return {
        "tokens": torch.where(kind == 0, MASK, kind),
        "masked": kind == 0,
        "revocable": kind == 1,
        "last_accepted": torch.full((B,), 3, dtype=torch.int32),
    }


def draft() -> dict[str, Tensor]:
    return {"token_ids": torch.randint(0, V, (B, K)), "confidence": torch.rand(B, K)}


def rule(**changes: Any) -> dict[str, Any]:
    return {"mask_id": MASK, "threshold": torch.tensor(0.5), "threshold_back": torch.tensor(0.7), **changes}


def noise(rows: tuple[int, ...] = (B, K)) -> dict[str, Tensor]:
    return {"temperature": torch.rand(rows), "seed": torch.arange(math.prod(rows)).view(rows)}


def in_order(*parts: dict[str, Any], names: str) -> tuple[Any, ...]:
    merged = {name: value for part in parts for name, value in part.items()}
    return tuple(merged[name] for name in names.split())


STEP = "tokens masked revocable token_ids confidence last_accepted"
WINO_STEP = "logits tokens masked revocable last_accepted"


def attention(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(B, 4, 9, 6, dtype=dtype), *torch.randn(2, B, 2, 9, 6, dtype=dtype)


LAYER = (2, 5, 12, 3, 1, 4, 10)


def layer_call(operator: Any, inputs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    positional = [argument.name for argument in operator.default._schema.arguments if not argument.kwarg_only]
    options = {name: value for name, value in inputs.items() if name not in positional}
    return operator, tuple(inputs[name] for name in positional), options


def loss_inputs() -> tuple[Tensor, ...]:
    hidden, weight = torch.randn(2, 6, H, requires_grad=True), torch.randn(V, H, requires_grad=True)
    kind = torch.arange(12).view(2, 6) % 3
    return hidden, weight, torch.randint(0, V, (2, 6)), kind == 0, kind == 1


def operator_calls() -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """One or more well-formed calls of every operator."""
    wino = torch.ops.wino
    logits, ids = torch.randn(B, K, V), torch.arange(B * K).view(B, K) % 5 - 2
    hidden, weight = torch.randn(B, K, H), torch.randn(V, H)
    window = {name: torch.stack([t, t], 1)[:, 0] if t.dim() == 2 else t for name, t in state().items()}
    half = torch.bfloat16
    thresholds = torch.tensor(0.2), torch.tensor(0.9)
    start = torch.tensor([0, 1, 2])
    loss = *loss_inputs(), *thresholds
    statistics = wino.trajectory_loss(*loss)[2]
    packed_inputs = trunk(LAYER, number=2, shadow=2)
    return {
        "score_tokens": (wino.score_tokens, (logits, ids), {}),
        "score_tokens, noise": (wino.score_tokens, (logits.bfloat16()[:, 1], ids[:, 1]), noise((B,))),
        "linear_score_tokens": (wino.linear_score_tokens, (hidden, weight, ids), {}),
        "linear_score_tokens, all": (
            wino.linear_score_tokens,
            (hidden.to(half), weight.to(half), ids),
            {"bias": torch.randn(V).to(half), **noise(), "round_to": torch.float32},
        ),
        "accept_remask_": (wino.accept_remask_, in_order(state(), draft(), names=STEP), rule()),
        "accept_remask_, strided": (
            wino.accept_remask_,
            in_order(window, draft(), names=STEP),
            rule(threshold=torch.rand(B), verify_last=True, min_accept=1),
        ),
        "accept_": (
            wino.accept_,
            in_order(state(), draft(), names="tokens masked token_ids confidence"),
            {"threshold": torch.rand(B)},
        ),
        "accept_, count": (
            wino.accept_,
            in_order(state(), draft(), names="tokens masked token_ids confidence"),
            {"count": torch.tensor(2)},
        ),
        "wino_step_": (wino.wino_step_, in_order({"logits": logits}, state(), names=WINO_STEP), rule()),
        "wino_step_, noise": (
            wino.wino_step_,
            in_order({"logits": logits}, state(), names=WINO_STEP),
            rule(temperature=torch.rand(B), seed=noise()["seed"]),
        ),
        "shadow_attention": (wino.shadow_attention, attention(), {"num_shadow": 2, "block_start": start}),
        "shadow_attention, padding": (
            wino.shadow_attention,
            attention(half),
            {"num_shadow": 0, "block_start": start, "key_padding_mask": torch.rand(B, 9) < 0.5, "scale": 0.5},
        ),
        "norm_qkv_rope": layer_call(wino.norm_qkv_rope, before_attention(LAYER, torch.float32)),
        "norm_qkv_rope, all": layer_call(
            wino.norm_qkv_rope,
            before_attention(LAYER, half, biases=True, tables=2)
            | {"query_rows": torch.tensor([[0, 1], [4, 4]]), "full_precision": False},
        ),
        "out_norm_swiglu": layer_call(wino.out_norm_swiglu, after_attention(LAYER, torch.float32)),
        "out_norm_swiglu, all": layer_call(wino.out_norm_swiglu, after_attention(LAYER, half, biases=True)),
        "shadow_trunk": layer_call(wino.shadow_trunk, trunk(LAYER, number=2, shadow=2)),
        "shadow_trunk, packed": layer_call(
            wino.shadow_trunk, packed_inputs | {"packed": wino_kernels.pack_trunk(packed_inputs["weights"])}
        ),
        "shadow_trunk, all": layer_call(wino.shadow_trunk, trunk(LAYER, half, biases=True, padded=True, shadow=2)),
        "trajectory_loss": (wino.trajectory_loss, loss, {}),
        "trajectory_loss_backward": (
            wino.trajectory_loss_backward,
            (torch.ones(3), *(t.detach() for t in loss[:3]), statistics, True),
            {},
        ),
    }


CALLS = list(operator_calls())


def test_every_operator_is_covered() -> None:
    registered = {schema.partition("(")[0] for schema in ops.SCHEMAS}
    assert {name.partition(",")[0] for name in CALLS} == registered == set(backends._load("eager").kernels)


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    operator, args, kwargs = operator_calls()[name]
    torch.library.opcheck(operator.default, args, kwargs)


@pytest.mark.parametrize("name", CALLS)
def test_fakes_promise_what_the_kernels_return(name: str) -> None:
    operator, args, kwargs = operator_calls()[name]
    real = operator(*args, **kwargs)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        to_fake = lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x  # noqa: E731
        fake = operator(*map(to_fake, args), **{key: to_fake(value) for key, value in kwargs.items()})
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (real, fake)), strict=True):
        assert (one.shape, one.dtype, one.stride(), one.device) == (
            other.shape,
            other.dtype,
            other.stride(),
            other.device,
        )


@pytest.mark.parametrize("schema", ops.SCHEMAS)
def test_backends_take_the_schema_in_order(schema: str) -> None:
    operator = schema.partition("(")[0]
    expected = [argument.name for argument in getattr(torch.ops.wino, operator).default._schema.arguments]
    for backend in backends.available():
        kernel = backends._load(backend).kernels.get(operator)
        if kernel is not None:
            assert list(inspect.signature(kernel).parameters) == expected, backend


@pytest.mark.parametrize("name", [name for name in wino_kernels.__all__ if name in CPU_OPERATORS])
def test_public_signatures_match_the_schemas(name: str) -> None:
    parameters = inspect.signature(getattr(wino_kernels, name)).parameters.values()
    arguments = getattr(torch.ops.wino, name).default._schema.arguments
    assert [(p.name, p.kind == p.KEYWORD_ONLY) for p in parameters] == [(a.name, a.kwarg_only) for a in arguments]


def test_native_backend_is_there_to_be_tested() -> None:
    assert backends.why_not("cpu") is None
    for operator in CPU_OPERATORS:
        assert [path for path in paths(operator) if path.startswith("cpu-")], operator


def whole_step(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    masked: Tensor,
    revocable: Tensor,
    last_accepted: Tensor,
    threshold: Tensor,
    threshold_back: Tensor,
    temperature: Tensor,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    """A decode step as a decoder writes it: attention, head, acceptance."""
    start = torch.zeros(len(hidden), dtype=torch.int64)
    heads = hidden[:, None]
    hidden = wino_kernels.shadow_attention(heads, heads, heads, num_shadow=2, block_start=start)[:, 0]
    candidates = torch.where(masked, -1, torch.where(revocable, tokens, -2))
    noise = {"temperature": temperature, "seed": wino_kernels.row_seeds(seed, 4, torch.arange(K).expand_as(tokens))}
    ids, confidence = wino_kernels.linear_score_tokens(hidden, weight, candidates, **noise)
    ids, confidence = wino_kernels.score_tokens(hidden @ weight.T, torch.where(masked, ids, candidates))
    thresholds = {"threshold": threshold, "threshold_back": threshold_back}
    accepted, remasked, status = wino_kernels.accept_remask_(
        tokens, masked, revocable, ids, confidence, last_accepted, mask_id=MASK, **thresholds
    )
    more, done = wino_kernels.accept_(tokens, masked, ids, confidence, count=torch.ones_like(accepted))
    step = wino_kernels.wino_step_(
        hidden @ weight.T, tokens, masked, revocable, last_accepted, mask_id=MASK, **thresholds, verify_last=True
    )
    return torch.stack([accepted, remasked, status, more, done, *step]), confidence


def step_arguments(step: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    rand = torch.rand(B, 3, generator=generator)
    logits = torch.randn(B, K, H, generator=generator) * 3, torch.randn(V, H, generator=generator)
    thresholds = rand[:, 0].contiguous(), rand[:, 1].contiguous()
    return *logits, *state().values(), *thresholds, rand[:, 2:].expand(B, K), torch.tensor([step, 7, -step])


def test_compiled_step_follows_changing_tensors_without_recompiling() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(whole_step, fullgraph=True, backend=counter)
    changed = 0
    for step in range(6):
        plain, traced = step_arguments(step), step_arguments(step)
        expected, result = whole_step(*plain), compiled(*traced)
        for one, other in zip((*expected, *plain), (*result, *traced), strict=True):
            assert torch.equal(one, other)
        changed += not torch.equal(plain[2], step_arguments(step)[2])
    assert counter.frame_count == 1
    assert changed == 6


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_in_place(compiler: str) -> None:
    """What the default compiler makes of in-place operators, on views, between reads of the same tensors."""

    def step(logits: Tensor, wide: Tensor, masked: Tensor, revocable: Tensor, last: Tensor, rule: Any) -> Any:
        tokens = wide[:, 1 : 1 + K]
        first = wino_kernels.wino_step_(logits, tokens, masked, revocable, last, mask_id=MASK, **rule)
        between = tokens.clone()
        second = wino_kernels.wino_step_(logits, tokens, masked, revocable, last, mask_id=MASK, **rule)
        return first, between, second

    torch._dynamo.reset()
    logits = torch.randn(B, K, V) * 3
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=compiler)):
        start = state()
        wide = torch.full((B, K + 2), -5)
        wide[:, 1 : 1 + K] = start.pop("tokens")
        rule = {"threshold": torch.tensor(0.3), "threshold_back": torch.tensor(0.8)}
        first, between, second = function(logits, wide, *start.values(), rule)
        results.append([*first, between, *second, wide, *start.values()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert (results[0][-4][:, [0, -1]] == -5).all() and not torch.equal(results[0][-4][:, 1:-1], state()["tokens"])


def test_compiled_with_scalars() -> None:
    """Python scalars become constants of the graph; a changed integer seed may recompile, and draws anew."""

    def step(logits: Tensor, confidence: Tensor, tokens: Tensor, masked: Tensor, seed: int) -> Tensor:
        drawn, _ = wino_kernels.draft_confidence(logits, temperature=0.5, seed=seed)
        wino_kernels.accept_(tokens, masked, drawn, confidence, threshold=0.3)
        return drawn

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    logits, confidence = torch.randn(B, K, V), torch.rand(B, K)
    drawn = []
    for seed in (3, 4, -1, 2**63 + 5):
        plain, traced = state(), state()
        expected = step(logits, confidence, plain["tokens"], plain["masked"], seed)
        assert torch.equal(compiled(logits, confidence, traced["tokens"], traced["masked"], seed), expected)
        assert torch.equal(traced["tokens"], plain["tokens"]) and torch.equal(traced["masked"], plain["masked"])
        drawn.append(expected)
    assert not torch.equal(drawn[0], drawn[1])


def test_compiled_with_dynamic_batch() -> None:
    def score(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return wino_kernels.score_tokens(logits, ids, temperature=0.5, seed=3)

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(score, fullgraph=True, backend=counter, dynamic=True)
    for rows in (2, 3, 9):
        logits, ids = torch.randn(rows, V), torch.full((rows,), -1)
        for one, other in zip(compiled(logits, ids), score(logits, ids), strict=True):
            assert torch.equal(one, other)
    assert counter.frame_count == 1


def test_compiled_loss_trains() -> None:
    thresholds = {"threshold": torch.tensor(0.2), "threshold_back": torch.tensor(0.9)}

    def loss(*inputs: Tensor) -> Tensor:
        return wino_kernels.trajectory_loss(*inputs, **thresholds).loss

    torch._dynamo.reset()
    inputs = loss_inputs()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*inputs), inputs[:2])
    result = torch.autograd.grad(compiled(*inputs), inputs[:2])
    assert all(torch.allclose(a, b) for a, b in zip(result, expected, strict=True))


def test_compilation_reports_bad_arguments() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(wino_kernels.verify_confidence, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"candidate_ids must be int64, got int32"):
        compiled(torch.randn(3, V), torch.zeros(3, dtype=torch.int32))


def call_score(logits: Any = None, ids: Any = None, **kwargs: Any) -> Any:
    logits = torch.randn(B, K, V) if logits is None else logits
    return wino_kernels.score_tokens(logits, torch.full((B, K), -1) if ids is None else ids, **kwargs)


def call_linear(**changes: Any) -> Any:
    inputs = {"hidden": torch.randn(B, H), "weight": torch.randn(V, H), "candidate_ids": torch.full((B,), -1)}
    return wino_kernels.linear_score_tokens(**{**inputs, **changes})


def call_remask(**changes: Any) -> Any:
    return unchanged(wino_kernels.accept_remask_, {**state(), **draft(), **rule(), **changes})


def call_accept(**changes: Any) -> Any:
    inputs = {**state(), **draft(), "threshold": 0.5, **changes}
    del inputs["revocable"], inputs["last_accepted"]
    return unchanged(wino_kernels.accept_, inputs)


def call_wino(**changes: Any) -> Any:
    return unchanged(wino_kernels.wino_step_, {"logits": torch.randn(B, K, V), **state(), **rule(), **changes})


def call_shadow(**changes: Any) -> Any:
    query, key, value = attention()
    start = torch.zeros(B, dtype=torch.int64)
    inputs = {"query": query, "key": key, "value": value, "num_shadow": 2, "block_start": start}
    return wino_kernels.shadow_attention(**{**inputs, **changes})


def call_before(**changes: Any) -> Any:
    return wino_kernels.norm_qkv_rope(**before_attention(LAYER, torch.float32, biases=True) | changes)


def call_after(**changes: Any) -> Any:
    return wino_kernels.out_norm_swiglu(**after_attention(LAYER, torch.float32, biases=True) | changes)


def call_trunk(**changes: Any) -> Any:
    return wino_kernels.shadow_trunk(**trunk(LAYER, number=2, shadow=2, biases=True) | changes)


def trunk_weight(index: int, weight: Tensor) -> dict[str, Any]:
    weights = trunk(LAYER, number=2, shadow=2)["weights"]
    weights[index] = weight
    return {"weights": weights}


def call_loss(**changes: Any) -> Any:
    names = ("hidden", "weight", "labels", "target_mask", "candidate_mask")
    inputs = {**dict(zip(names, loss_inputs(), strict=True)), "threshold": 0.5, "threshold_back": 0.9}
    return wino_kernels.trajectory_loss(**{**inputs, **changes})


def unchanged(operator: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """A refused call has written nothing."""
    before = {name: inputs[name].clone() for name in state() if isinstance(inputs.get(name), Tensor)}
    try:
        return operator(**inputs)
    except (TypeError, ValueError):
        assert all(torch.equal(inputs[name], value) for name, value in before.items())
        raise


META = torch.device("meta")
INT32_IDS = torch.zeros(B, K, dtype=torch.int32)
EXPANDED = torch.zeros(1, K, dtype=torch.int64).expand(B, K)
SHARED = torch.zeros(B, K, dtype=torch.bool)
NAN = math.nan
TYPE, VALUE = TypeError, ValueError

REFUSALS: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    (call_score, {"logits": [[1.0]]}, TYPE, "logits must be a torch.Tensor, got list"),
    (
        call_score,
        {"logits": torch.zeros(B, K, V, dtype=torch.float64)},
        TYPE,
        "logits must be float32 or bfloat16 or float16, got float64",
    ),
    (call_score, {"logits": torch.zeros(B, K, V, dtype=torch.int64)}, TYPE, "logits must be .*, got int64"),
    (call_score, {"logits": torch.zeros(())}, VALUE, r"logits must have shape \(..., V\), got \(\)"),
    (
        call_score,
        {"logits": torch.empty(1, 2**31, device=META), "ids": torch.empty(1, dtype=torch.int64, device=META)},
        VALUE,
        r"1 <= V <= 2\*\*31 - 1, got V = 2147483648",
    ),
    (call_score, {"logits": torch.zeros(B, K, 0)}, VALUE, r"1 <= V <= 2\*\*31 - 1, got V = 0"),
    (
        call_score,
        {"logits": torch.zeros(V, B, K).permute(1, 2, 0)},
        VALUE,
        r"logits must have unit stride in its last dimension, got strides \(5, 1, 15\)",
    ),
    (call_score, {"ids": INT32_IDS}, TYPE, "candidate_ids must be int64, got int32"),
    (
        call_score,
        {"ids": torch.zeros(B, dtype=torch.int64)},
        VALUE,
        r"candidate_ids must have shape \(3, 5\), got \(3,\)",
    ),
    (
        call_score,
        {"ids": torch.zeros(B, K, dtype=torch.int64, device=META)},
        VALUE,
        "candidate_ids must be on device cpu, got meta",
    ),
    (call_score, {"temperature": -0.5}, VALUE, "temperature must be finite and >= 0, got -0.5"),
    (call_score, {"temperature": NAN}, VALUE, "temperature must be finite and >= 0, got nan"),
    (call_score, {"temperature": math.inf}, VALUE, "temperature must be finite"),
    (call_score, {"temperature": "hot"}, TYPE, "temperature must be a number or a tensor, got str"),
    (call_score, {"temperature": torch.ones(B, K).double()}, TYPE, "temperature must be float32, got float64"),
    (call_score, {"temperature": torch.ones(B)}, VALUE, r"temperature must have shape \(3, 5\), got \(3,\)"),
    (call_score, {"temperature": 1.0, "seed": 0.5}, TYPE, "seed must be an integer or a tensor, got float"),
    (call_score, {"temperature": 1.0, "seed": torch.tensor(3)}, VALUE, r"seed must have shape \(3, 5\), got \(\)"),
    (call_score, {"temperature": 1.0, "seed": INT32_IDS}, TYPE, "seed must be int64, got int32"),
    (call_linear, {"hidden": torch.randn(B, H).double()}, TYPE, "hidden must be .*, got float64"),
    (call_linear, {"hidden": torch.randn(B, H).bfloat16()}, TYPE, "weight must be bfloat16, got float32"),
    (call_linear, {"hidden": torch.randn(B, H + 1)}, VALUE, r"weight must have shape \(17, 9\), got \(17, 8\)"),
    (call_linear, {"hidden": torch.randn(B, 0)}, VALUE, "H >= 1"),
    (call_linear, {"hidden": torch.randn(H, B).T}, VALUE, "hidden must have unit stride"),
    (call_linear, {"weight": torch.randn(H)}, VALUE, r"weight must have shape \(V, 8\), got \(8,\)"),
    (call_linear, {"weight": torch.randn(0, H)}, VALUE, "1 <= V <="),
    (call_linear, {"weight": torch.randn(H, V).T}, VALUE, "weight must have unit stride"),
    (call_linear, {"bias": torch.randn(V + 1)}, VALUE, r"bias must have shape \(17,\), got \(18,\)"),
    (call_linear, {"bias": torch.randn(V).half()}, TYPE, "bias must be float32, got float16"),
    (
        call_linear,
        {"candidate_ids": torch.zeros(B + 1, dtype=torch.int64)},
        VALUE,
        r"candidate_ids must have shape \(3,\), got \(4,\)",
    ),
    (call_linear, {"round_to": "bf16"}, VALUE, "round_to must be \"input\" or a torch.dtype, got 'bf16'"),
    (call_linear, {"round_to": torch.int32}, VALUE, "round_to must be .*, got torch.int32"),
    (call_remask, {"tokens": torch.zeros(B, K)}, TYPE, "tokens must be int64, got float32"),
    (call_remask, {"tokens": torch.zeros(K, dtype=torch.int64)}, VALUE, r"tokens must have shape \(B, K\), got \(5,\)"),
    (call_remask, {"tokens": torch.zeros(K, B, dtype=torch.int64).T}, VALUE, "tokens must have unit stride"),
    (call_remask, {"tokens": EXPANDED}, VALUE, r"rows of tokens must not overlap in memory, got strides \(0, 1\)"),
    (call_remask, {"masked": torch.zeros(B, K)}, TYPE, "masked must be bool, got float32"),
    (
        call_remask,
        {"masked": torch.zeros(B, K + 1, dtype=torch.bool)},
        VALUE,
        r"masked must have shape \(3, 5\), got \(3, 6\)",
    ),
    (call_remask, {"masked": torch.zeros(K, B, dtype=torch.bool).T}, VALUE, "masked must have unit stride"),
    (call_remask, {"revocable": torch.zeros(B, K, dtype=torch.uint8)}, TYPE, "revocable must be bool, got uint8"),
    (call_remask, {"revocable": SHARED, "masked": SHARED}, VALUE, "masked and revocable must not share memory"),
    (call_remask, {"token_ids": INT32_IDS}, TYPE, "token_ids must be int64, got int32"),
    (call_remask, {"confidence": torch.zeros(B, K).half()}, TYPE, "confidence must be float64 or float32, got float16"),
    (call_remask, {"confidence": torch.zeros(B, K, device=META)}, VALUE, "confidence must be on device cpu, got meta"),
    (call_remask, {"last_accepted": torch.zeros(B, dtype=torch.int64)}, TYPE, "last_accepted must be int32, got int64"),
    (
        call_remask,
        {"last_accepted": torch.zeros(B, 2, dtype=torch.int32)[:, 0]},
        VALUE,
        "last_accepted must have unit stride",
    ),
    (call_remask, {"last_accepted": 30}, TYPE, "last_accepted must be a torch.Tensor, got int"),
    (call_remask, {"threshold": NAN}, VALUE, r"threshold must be in \[0, 1\], got nan"),
    (call_remask, {"threshold": 1.5}, VALUE, r"threshold must be in \[0, 1\], got 1.5"),
    (call_remask, {"threshold": None}, TYPE, "threshold must be a number or a tensor, got NoneType"),
    (call_remask, {"threshold_back": -0.1}, VALUE, r"threshold_back must be in \[0, 1\], got -0.1"),
    (call_remask, {"threshold_back": torch.tensor(0.5).double()}, TYPE, "threshold_back must be float32, got float64"),
    (call_remask, {"threshold": torch.rand(B + 1)}, VALUE, r"threshold must have shape \(3,\), got \(4,\)"),
    (call_remask, {"mask_id": -1}, VALUE, "mask_id must be >= 0, got -1"),
    (call_remask, {"accept_fraction": 1.1}, VALUE, r"accept_fraction must be in \[0, 1\], got 1.1"),
    (call_remask, {"accept_fraction": NAN}, VALUE, "accept_fraction must be .*, got nan"),
    (call_remask, {"min_accept": -1}, VALUE, "min_accept must be >= 0, got -1"),
    (call_remask, {"max_accept": 0}, VALUE, "max_accept must be >= 1, got 0"),
    (call_before, {"x": torch.randn(5, 12)}, VALUE, r"x must have shape \(B, L, D\), got \(5, 12\)"),
    (call_before, {"x": torch.zeros(2, 5, 12, dtype=torch.int64)}, TYPE, "x must be .*, got int64"),
    (call_before, {"x": torch.zeros(2, 12, 5).transpose(1, 2)}, VALUE, "x must have unit stride"),
    (call_before, {"norm_weight": torch.ones(11)}, VALUE, r"norm_weight must have shape \(12,\), got \(11,\)"),
    (call_before, {"q_weight": torch.ones(12, 12).double()}, TYPE, "q_weight must be float32, got float64"),
    (call_before, {"k_weight": torch.ones(4, 11)}, VALUE, r"k_weight must have shape \(4, 12\), got \(4, 11\)"),
    (
        call_before,
        {"v_weight": torch.ones(6, 12), "v_bias": None},
        VALUE,
        "v_weight must have rows for heads of 4, got 6",
    ),
    (call_after, {"attended": torch.randn(2, 3, 5, 0)}, VALUE, "attended must have shape .* d >= 1"),
    (call_after, {"gate_weight": torch.ones(())}, VALUE, r"gate_weight must have shape \(M, 12\), got \(\)"),
    (call_before, {"v_weight": torch.ones(12, 4).T}, VALUE, "v_weight must have unit stride"),
    (call_before, {"q_bias": torch.ones(4)}, VALUE, r"q_bias must have shape \(12,\), got \(4,\)"),
    (call_before, {"cos": torch.ones(1, 1, 5, 3)}, VALUE, r"cos must have shape .* d even, got \(1, 1, 5, 3\)"),
    (call_before, {"cos": torch.ones(1, 1, 6, 4)}, VALUE, r"cos must have shape \(1, 1, 5, 4\), got \(1, 1, 6, 4\)"),
    (call_before, {"sin": torch.ones(2, 1, 5, 4)}, VALUE, r"sin must have shape \(1, 1, 5, 4\)"),
    (call_before, {"sin": torch.ones(1, 1, 5, 8)[..., :4]}, VALUE, "sin must have the strides"),
    (call_before, {"query_rows": torch.zeros(1, 3, dtype=torch.int64)}, VALUE, r"query_rows must have shape \(2, 3\)"),
    (call_before, {"query_rows": torch.zeros(2, 3)}, TYPE, "query_rows must be int64, got float32"),
    (call_after, {"attended": torch.randn(2, 3, 6, 4)}, VALUE, r"attended must have shape \(2, 3, 5, 4\)"),
    (call_after, {"attended": torch.randn(2, 3, 5, 4).bfloat16()}, TYPE, "attended must be float32, got bfloat16"),
    (call_after, {"out_weight": torch.ones(12, 11)}, VALUE, r"out_weight must have shape \(12, 12\), got \(12, 11\)"),
    (call_after, {"gate_weight": torch.ones(9, 12)}, VALUE, r"gate_bias must have shape \(9,\), got \(10,\)"),
    (call_after, {"up_weight": torch.ones(9, 12)}, VALUE, r"up_weight must have shape \(10, 12\), got \(9, 12\)"),
    (call_after, {"down_weight": torch.ones(12)}, VALUE, r"down_weight must have shape \(12, 10\), got \(12,\)"),
    (call_trunk, {"weights": []}, VALUE, "weights must be nine for each layer, got 0"),
    (call_trunk, {"biases": [None]}, VALUE, "biases must be seven for each of 2 layers, or none, got 1"),
    (call_trunk, {"biases": [torch.ones(3)] * 14}, VALUE, r"biases\[0\] must have shape \(12,\), got \(3,\)"),
    (
        call_trunk,
        trunk_weight(13, torch.ones(12, 4)),
        VALUE,
        r"weights\[13\] must have shape \(12, 12\), got \(12, 4\)",
    ),
    (call_trunk, trunk_weight(17, torch.ones(10, 12).T), VALUE, r"weights\[17\] must have unit stride"),
    (call_trunk, trunk_weight(3, torch.ones(4, 12).half()), TYPE, r"weights\[3\] must be float32, got float16"),
    (call_trunk, trunk_weight(2, torch.ones(6, 12)), VALUE, "rows for heads of 4, .*, got 12 and 6"),
    (call_trunk, {"norm_weight": torch.ones(11)}, VALUE, r"norm_weight must have shape \(12,\), got \(11,\)"),
    (call_trunk, {"rows": torch.zeros(3, 1, dtype=torch.int64)}, VALUE, r"rows must have shape \(2, 1\)"),
    (call_trunk, {"packed": torch.zeros(3)}, TYPE, "packed must be uint8, got float32"),
    (call_trunk, {"num_shadow": 6}, VALUE, r"num_shadow must be in \[0, L = 5\], got 6"),
    (call_trunk, {"block_start": torch.zeros(3, dtype=torch.int64)}, VALUE, r"block_start must have shape \(2,\)"),
    (call_trunk, {"key_padding_mask": torch.ones(2, 4, dtype=torch.bool)}, VALUE, "key_padding_mask must have shape"),
    (call_accept, {"threshold": None}, VALUE, "exactly one of threshold and count must be given, got neither"),
    (call_accept, {"count": 3}, VALUE, "exactly one of threshold and count must be given, got both"),
    (call_accept, {"threshold": None, "count": -1}, VALUE, "count must be >= 0, got -1"),
    (call_accept, {"threshold": None, "count": 1.0}, TYPE, "count must be an integer or a tensor, got float"),
    (call_accept, {"threshold": None, "count": torch.ones(B)}, TYPE, "count must be int32 or int64, got float32"),
    (
        call_accept,
        {"threshold": None, "count": torch.ones(B, 1).int()},
        VALUE,
        r"count must have shape \(3,\), got \(3, 1\)",
    ),
    (call_accept, {"masked": torch.zeros(B, K).int()}, TYPE, "masked must be bool, got int32"),
    (call_accept, {"tokens": EXPANDED}, VALUE, "rows of tokens must not overlap"),
    (call_accept, {"confidence": torch.zeros(B, K - 1)}, VALUE, r"confidence must have shape \(3, 5\), got \(3, 4\)"),
    (call_wino, {"logits": torch.zeros(B, K + 1, V)}, VALUE, r"logits must have shape \(3, 5, 17\), got \(3, 6, 17\)"),
    (call_wino, {"logits": torch.zeros(B, K, V).double()}, TYPE, "logits must be .*, got float64"),
    (call_wino, {"logits": torch.zeros(B, V, K).transpose(1, 2)}, VALUE, "logits must have unit stride"),
    (call_wino, {"revocable": SHARED, "masked": SHARED}, VALUE, "must not share memory"),
    (call_wino, {"temperature": torch.ones(K)}, VALUE, r"temperature must have shape \(3,\), got \(5,\)"),
    (
        call_wino,
        {"temperature": 1.0, "seed": torch.zeros(B, dtype=torch.int64)},
        VALUE,
        r"seed must have shape \(3, 5\)",
    ),
    (call_wino, {"threshold": 2}, VALUE, r"threshold must be in \[0, 1\], got 2"),
    (call_wino, {"max_accept": 0}, VALUE, "max_accept must be >= 1"),
    (
        call_wino,
        {"last_accepted": torch.zeros(1, dtype=torch.int32)},
        VALUE,
        r"last_accepted must have shape \(3,\), got \(1,\)",
    ),
    (call_shadow, {"query": torch.zeros(B, 9, 6)}, VALUE, r"query must have shape \(B, Hq, Lq, d\), got \(3, 9, 6\)"),
    (call_shadow, {"query": torch.zeros(B, 4, 9, 6).long()}, TYPE, "query must be .*, got int64"),
    (call_shadow, {"query": torch.zeros(B, 3, 9, 6)}, VALUE, "heads of key must divide the 3 heads of query, got 2"),
    (call_shadow, {"key": torch.zeros(B, 2, 9, 7)}, VALUE, r"key must have shape \(3, 2, 9, 6\), got \(3, 2, 9, 7\)"),
    (
        call_shadow,
        {"value": torch.zeros(B, 2, 8, 6)},
        VALUE,
        r"value must have shape \(3, 2, 9, 6\), got \(3, 2, 8, 6\)",
    ),
    (call_shadow, {"value": torch.zeros(B, 2, 9, 6).half()}, TYPE, "value must be float32, got float16"),
    (call_shadow, {"key": torch.zeros(B, 2, 6, 9).transpose(2, 3)}, VALUE, "key must have unit stride"),
    (call_shadow, {"num_shadow": 10}, VALUE, r"num_shadow must be in \[0, min\(Lq, Lk\) = 9\], got 10"),
    (call_shadow, {"num_shadow": -1}, VALUE, "num_shadow must be .*, got -1"),
    (call_shadow, {"block_start": torch.zeros(B)}, TYPE, "block_start must be int64, got float32"),
    (
        call_shadow,
        {"block_start": torch.zeros(1, dtype=torch.int64)},
        VALUE,
        r"block_start must have shape \(3,\), got \(1,\)",
    ),
    (
        call_shadow,
        {"key_padding_mask": torch.ones(B, 8, dtype=torch.bool)},
        VALUE,
        r"key_padding_mask must have shape \(3, 9\)",
    ),
    (call_shadow, {"key_padding_mask": torch.ones(B, 9)}, TYPE, "key_padding_mask must be bool, got float32"),
    (call_shadow, {"scale": NAN}, VALUE, "scale must be finite, got nan"),
    (call_loss, {"hidden": torch.randn(H)}, VALUE, "at least 2 dimensions"),
    (call_loss, {"weight": torch.randn(V, H).double()}, TYPE, "weight must be float32, got float64"),
    (call_loss, {"labels": torch.zeros(2, 6)}, TYPE, "labels must be int64, got float32"),
    (
        call_loss,
        {"target_mask": torch.zeros(2, 5, dtype=torch.bool)},
        VALUE,
        r"target_mask must have shape \(2, 6\), got \(2, 5\)",
    ),
    (call_loss, {"candidate_mask": torch.zeros(2, 6)}, TYPE, "candidate_mask must be bool, got float32"),
    (call_loss, {"threshold": torch.rand(2)}, VALUE, r"threshold must have shape \(\), got \(2,\)"),
    (call_loss, {"threshold_back": NAN}, VALUE, r"threshold_back must be in \[0, 1\], got nan"),
    (call_loss, {"weights": (1.0, 2.0)}, VALUE, "weights must be three numbers, got 2"),
    (call_loss, {"denominators": torch.ones(4)}, VALUE, "denominators must be three numbers, got 4"),
]


@pytest.mark.parametrize(("call", "changes", "error", "message"), REFUSALS)
def test_refusals(call: Callable[..., Any], changes: dict[str, Any], error: type[Exception], message: str) -> None:
    for backend in backends.available():
        for gradients in (False, True):  # without, calls may go past Torch's dispatcher
            refused = pytest.raises(error, match=rf"^\w+: .*{message}")
            with torch.set_grad_enabled(gradients), wino_kernels.use_backend(backend), refused:
                call(**changes)


REMASK_REFUSALS = [changes for call, changes, _, _ in REFUSALS if call is call_remask]


@pytest.mark.parametrize("changes", REMASK_REFUSALS)
def test_the_unchecked_path_takes_nothing_that_is_refused(changes: dict[str, Any]) -> None:
    def unchecked(**inputs: Any) -> None:
        if native_remask.accept_remask_.if_valid(**inputs) is None:
            raise ValueError("left to the checks")

    with pytest.raises(ValueError, match="left to the checks"):
        unchanged(unchecked, {**state(), **draft(), **rule(), **changes})


TRUNK_REFUSALS = [changes for call, changes, _, _ in REFUSALS if call is call_trunk]
TRUNK_REFUSALS += [
    {"x": torch.zeros(5, 12)},
    {"x": torch.zeros(2, 5, 12).half()},
    {"x": torch.zeros(2, 12, 5).mT},
    {"x": torch.zeros(2, 6, 12)},
    {"cos": torch.zeros(5, 4)},
    {"cos": torch.zeros(2, 1, 5, 4).double()},
    {"cos": torch.zeros(2, 1, 4, 4)},
    {"cos": torch.zeros(2, 1, 4, 5).mT},
    {"sin": torch.zeros(1, 1, 5, 4)},
    {"cos": torch.zeros(2, 1, 5, 3), "sin": torch.zeros(2, 1, 5, 3)},
    {"biases": [torch.ones(24)[::2], *[None] * 13]},
    {"biases": [torch.ones(12).double(), *[None] * 13]},
    {"norm_weight": torch.ones(12).double()},
    {"norm_weight": torch.ones(24)[::2]},
    {"block_start": torch.zeros(2, dtype=torch.int32)},
    {"key_padding_mask": torch.ones(2, 5)},
    {"rows": torch.zeros(2, 1, dtype=torch.int32)},
    {"rows": torch.full((2, 1), -1)},
    {"num_shadow": -1},
    {"packed": torch.zeros(2, 70, dtype=torch.uint8)},
]


@pytest.mark.skipif(not native_remask.HAS_EXCHANGE, reason="this torch publishes no exchange API")
@pytest.mark.parametrize("changes", TRUNK_REFUSALS)
def test_the_unchecked_trunk_takes_nothing_that_is_refused(changes: dict[str, Any]) -> None:
    inputs = trunk(LAYER, number=2, shadow=2, biases=True)
    if_valid = backends._load("cpu").kernels["shadow_trunk"].if_valid
    assert if_valid(**inputs) is not None
    assert if_valid(**inputs | changes) is None


class Names(TorchDispatchMode):
    """Notes the operators that come by."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


class Listening(Tensor):
    """A tensor with a dispatch of its own, which notes the operators."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    seen: ClassVar[list[str]] = []
    inner: Tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func.name())

        def plain(value: Any) -> Any:
            return value.inner if isinstance(value, cls) else value

        return func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))


def test_a_subclass_among_the_arguments_sees_the_call() -> None:
    inputs = trunk(LAYER, number=2, shadow=2, biases=True)
    with torch.no_grad():
        expected = wino_kernels.shadow_trunk(**inputs)
        for index in (0, len(inputs["weights"]) - 1):
            layers = list(inputs["weights"])
            listening = Tensor._make_subclass(Listening, layers[index])
            listening.inner, layers[index] = layers[index], listening
            Listening.seen.clear()
            assert torch.equal(wino_kernels.shadow_trunk(**inputs | {"weights": layers}), expected)
            assert "wino::shadow_trunk" in Listening.seen


def test_who_watches_the_dispatcher_sees_every_call() -> None:
    with torch.no_grad():
        for call in (call_score, call_linear, call_remask, call_accept, call_wino, call_shadow, call_trunk):
            with Names() as names:
                call()
            assert any(name.startswith("wino::") for name in names.seen)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                call()
            assert any(event.key.startswith("wino::") for event in profile.key_averages())


def test_nothing_goes_past_the_dispatcher_of_a_torch_with_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C._autograd, "_profiler_enabled")
    with torch.no_grad():
        assert ops._is_heard()
        call_score()


def under(context: Any) -> Callable[[Callable[[], Any]], Any]:
    def run(call: Callable[[], Any]) -> Any:
        with context():
            return call()

    return run


@pytest.mark.skipif(not native_remask.HAS_EXCHANGE, reason="this torch publishes no exchange API")
@pytest.mark.parametrize("call", [call_linear, call_remask, call_trunk])
def test_ordinary_calls_go_past_the_dispatcher_and_no_others(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ordinarily(op: str, *inputs: Any, **options: Any) -> None:
        asked.append(op)  # None: left to the dispatcher, behind which it is asked again

    monkeypatch.setattr(ops, "_ordinarily", ordinarily)

    def went_past(run: Callable[[Callable[[], Any]], Any]) -> bool:
        asked.clear()
        with torch.no_grad():
            run(call)
        return len(asked) == 2

    assert went_past(lambda call: call())
    for context in (torch.enable_grad, Names, BaseTorchFunctionMode, torch.autograd.profiler.profile):
        assert not went_past(under(context))
    with monkeypatch.context() as tracing:
        tracing.setattr(torch._C, "_get_tracing_state", object)
        assert ops._is_heard()
    with monkeypatch.context() as compiling:
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not went_past(lambda call: call())


def test_a_function_transform_is_heard() -> None:
    heard = []
    with torch.no_grad():
        assert not ops._is_heard()
        torch.func.vmap(lambda x: heard.append(ops._is_heard()) or x)(torch.zeros(2))
    assert heard == [True]


def test_lazily_negated_numbers_are_what_they_mean() -> None:
    half = torch._neg_view(torch.full((B,), -0.5))
    drafted = draft()
    with torch.no_grad():
        for name in ("threshold", "threshold_back"):
            results = [
                wino_kernels.accept_remask_(**state(), **drafted, **rule() | {name: value})
                for value in (half, half.resolve_neg().contiguous())
            ]
            assert all(map(torch.equal, *results))
        weight, hidden = torch._neg_view(torch.randn(V, H)), torch.randn(B, H)
        one, other = (call_linear(hidden=hidden, weight=w) for w in (weight, weight.resolve_neg()))
    assert all(map(torch.equal, one, other))


def test_calls_past_the_dispatcher_change_no_result() -> None:
    hidden, weight, ids = torch.randn(B, K, H), torch.randn(V, H), torch.full((B, K), -1)
    through = torch.ops.wino.linear_score_tokens.default(hidden, weight, ids)
    with torch.no_grad():
        past = wino_kernels.linear_score_tokens(hidden, weight, ids)
        with FakeTensorMode() as mode:
            inputs = [mode.from_tensor(tensor) for tensor in (hidden, weight, ids)]
            fake = wino_kernels.linear_score_tokens(*inputs)
        outside = wino_kernels.linear_score_tokens(*inputs)
    for one, other, *shapes in zip(through, past, fake, outside, strict=True):
        assert torch.equal(one, other)
        assert all(type(shape) is FakeTensor and shape.shape == one.shape for shape in shapes)


@pytest.mark.parametrize(
    ("call", "changes", "name"),
    [
        (call_linear, {"bias": 3}, "bias"),
        (call_remask, {"mask_id": 1.5}, "mask_id"),
        (call_remask, {"max_accept": 5.5}, "max_accept"),
        (call_remask, {"accept_fraction": None}, "accept_fraction"),
        (call_trunk, {"num_shadow": 2.0}, "num_shadow"),
        (call_trunk, {"eps": None}, "eps"),
    ],
)
def test_wrong_types_are_named_with_and_without_gradients(
    call: Callable[..., Any], changes: dict[str, Any], name: str
) -> None:
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), pytest.raises((TypeError, RuntimeError), match=name):
            call(**changes)


LINEAR_REFUSALS = [changes for call, changes, _, _ in REFUSALS if call is call_linear]
LINEAR_REFUSALS += [
    {"weight": torch.randn(V, H + 1)[:, 1:].double()},
    {"candidate_ids": torch.zeros(B, dtype=torch.int32)},
    {"candidate_ids": torch.zeros(B, 1, dtype=torch.int64)},
    {"bias": torch.randn(2 * V)[::2]},
    {"temperature": torch.ones(B)},
    {"seed": torch.ones(B, dtype=torch.int64)},
    {"temperature": torch.ones(B).double(), "seed": torch.ones(B, dtype=torch.int64)},
    {"temperature": torch.ones(B + 1), "seed": torch.ones(B, dtype=torch.int64)},
    {"temperature": torch.ones(B), "seed": torch.ones(B, dtype=torch.int32)},
    {"temperature": torch.ones(B), "seed": torch.tensor(1)},
]


@pytest.mark.skipif(not native_remask.HAS_EXCHANGE, reason="this torch publishes no exchange API")
@pytest.mark.parametrize("changes", LINEAR_REFUSALS)
def test_the_unchecked_head_takes_nothing_that_is_refused(changes: dict[str, Any]) -> None:
    inputs = {"hidden": torch.randn(B, H), "weight": torch.randn(V, H), "candidate_ids": torch.full((B,), -1)}
    if_valid = backends._load("cpu").kernels["linear_score_tokens"].if_valid
    assert if_valid(**inputs) is not None
    assert if_valid(**inputs | changes) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weight": torch.randn(V, 2 * H)[:, :H]},
        {"bias": torch.randn(V)},
        {"round_to": torch.bfloat16},
        {"candidate_ids": torch.randint(-2, V, (B, K))},
        {"temperature": torch.rand(B, K), "seed": torch.arange(B * K).view(B, K)},
        {"temperature": torch.tensor(0.7), "seed": torch.arange(B * K).view(B, K)},
    ],
)
def test_the_unchecked_head_changes_no_result(
    changes: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"hidden": torch.randn(B, K, H), "weight": torch.randn(V, H), "candidate_ids": torch.full((B, K), -1)}
    inputs |= changes
    for name in inputs.keys() & {"hidden", "weight", "bias"}:
        inputs[name] = inputs[name].to(dtype)
    native = importlib.import_module("wino_kernels.cpu.linear_score_tokens")
    outputs = []
    for has_exchange in (native.HAS_EXCHANGE, False):
        monkeypatch.setattr(native, "HAS_EXCHANGE", has_exchange)
        assert (native.linear_score_tokens.if_valid(**inputs) is None) == (not has_exchange)
        with wino_kernels.use_backend("cpu"):
            outputs.append(wino_kernels.linear_score_tokens(**inputs))
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()


@pytest.mark.skipif(not native_remask.HAS_EXCHANGE, reason="this torch publishes no exchange API")
@pytest.mark.parametrize("changes", [{}, {"threshold": torch.rand(B), "verify_last": True, "min_accept": 1}])
def test_the_unchecked_path_changes_no_result(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    start = {**state(), **draft(), **rule(), **changes}
    start["confidence"] = start["confidence"].double()  # float32 is left to the checked path, which converts it
    results = []
    for has_exchange in (True, False):
        monkeypatch.setattr(native_remask, "HAS_EXCHANGE", has_exchange)
        for operator in (native_remask.accept_remask_.if_valid, wino_kernels.accept_remask_):
            inputs = {name: value.clone() if isinstance(value, Tensor) else value for name, value in start.items()}
            with wino_kernels.use_backend("cpu"):
                outputs = operator(**inputs)
            assert (outputs is None) == (operator is not wino_kernels.accept_remask_ and not has_exchange)
            if outputs is not None:
                results.append([*outputs, *(inputs[name] for name in state())])
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()


def test_the_same_calls_unchanged_are_fine() -> None:
    for call in {refusal[0] for refusal in REFUSALS}:
        call()


def test_direct_calls_are_checked_too() -> None:
    operator, args, kwargs = operator_calls()["accept_remask_"]
    with pytest.raises(TypeError, match="accept_remask_: confidence must be float64 or float32, got float16"):
        operator(*args[:4], args[4].half(), args[5], **kwargs)
    with pytest.raises(ValueError, match="temperature and seed must be given together, got seed without temperature"):
        torch.ops.wino.score_tokens(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), seed=torch.zeros(2).long())


@over_paths("score_tokens")
def test_logits_that_require_gradients(path: str) -> None:
    logits = torch.randn(4, V, requires_grad=True)
    tokens, confidence = wino_kernels.draft_confidence(logits)
    expected = wino_kernels.draft_confidence(logits.detach())
    assert torch.equal(tokens, expected[0]) and torch.equal(confidence, expected[1])
    with torch.inference_mode():
        assert torch.equal(wino_kernels.draft_confidence(logits)[1], confidence)


def test_an_explicit_backend_that_cannot_serve_raises() -> None:
    with wino_kernels.use_backend("cuda"), pytest.raises(wino_kernels.BackendUnavailableError) as caught:
        call_loss()
    assert re.search("trajectory_loss.*cuda", str(caught.value))
    with pytest.raises(wino_kernels.BackendUnavailableError, match="abacus"), wino_kernels.use_backend("abacus"):
        pass


def test_importing_brings_torch_and_nothing_heavier() -> None:
    program = """
import sys, torch
before = set(sys.modules)
import wino_kernels
print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= {"wino_kernels"}


def test_everything_public_is_documented() -> None:
    for name in wino_kernels.__all__:
        documentation = inspect.getdoc(getattr(wino_kernels, name))
        assert documentation and len(documentation) > 60, name
