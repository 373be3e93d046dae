"""Run a live model of the authors' own LLaDA or MMaDA code on our forward pass, reversibly (``wino.patch``).

Only the instance changes: it gets attributes, ``forward`` above all, that hide its class's methods. Weights stay where
they are, no class and no module of another library is touched. Works for every public copy of that code (GSAI-ML's,
WINO's, Fast-dLLM's, Gen-Verse's), since they share parameter names and configuration fields; none of it is imported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from wino_kernels.eager.norm_qkv_rope import rms_norm

from .architecture import DROPOUTS, check_architecture
from .forward import BLOCK_PARTS, Known, block_in_place, check_modules, iter_blocks, language_model_forward
from .llada import OURS, LLaDAModelLM

_HANDLE = "_wino_patch"
_CONFIG_FIELDS = (
    "d_model",
    "n_heads",
    "n_kv_heads",
    "rope_theta",
    "rope_full_precision",
    "weight_tying",
    "scale_logits",
    "max_sequence_length",
    "mask_token_id",
    "eos_token_id",
)


class PatchHandle:
    """Undoes :func:`wino.patch`; as a context manager it does so when the ``with`` block ends.

    Attributes:
        model: the patched model.
        active: False once unpatched.
        blocks: the classes of its blocks. norms: of those of its norms that compute what ours computes.
    """

    def __init__(self, model: nn.Module, functions: dict[str, Callable[..., Any]]) -> None:
        self.model = model
        self.active = True
        self.blocks, self.norms = _known_classes(model)
        self._functions = functions
        self._previous = {name: vars(model)[name] for name in functions if name in vars(model)}

    def unpatch(self) -> None:
        """Give the model back exactly the attributes it had.

        Raises:
            RuntimeError: already unpatched, or someone else replaced one of them (named) since.
        """
        if not self.active:
            raise RuntimeError("this model is already unpatched")
        attributes = vars(self.model)
        for name, function in self._functions.items():
            ours = attributes.get(name)
            if not (isinstance(ours, partial) and ours.func is function):
                raise RuntimeError(f"the model's {name} was replaced after wino.patch; undo that first")
        for name in self._functions:
            if name in self._previous:
                attributes[name] = self._previous[name]
            else:
                del attributes[name]
        del attributes[_HANDLE]
        self.active = False

    def __enter__(self) -> PatchHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.active:
            self.unpatch()


def install(model: nn.Module, methods: dict[str, Callable[..., Any]]) -> PatchHandle:
    """What :func:`wino.patch` does: our forward pass, and further ``methods``, as attributes of this one instance.

    Each method is a module-level function whose first argument is the model.
    """
    if isinstance(model, LLaDAModelLM):
        raise TypeError(f"wino.patch: this is wino's own {type(model).__name__}; it needs no patch")
    if is_patched(model):
        raise ValueError("wino.patch: this model is already patched; wino.models.patched(model) returns its handle")
    _validate(model)
    functions = {"forward": patched_forward, **methods}
    handle = PatchHandle(model, functions)
    for name, function in functions.items():
        # A partial, not a bound method: unpickled, that would be the class's own again.
        vars(model)[name] = partial(function, model)
    vars(model)[_HANDLE] = handle
    return handle


def patched(model: nn.Module) -> PatchHandle:
    """The handle of a patched model. Raises ``ValueError`` if it is not patched."""
    if not is_patched(model):
        raise ValueError("this model is not patched with wino.patch")
    return vars(model)[_HANDLE]


def is_patched(model: Any) -> bool:
    """Whether :func:`wino.patch` is in effect on ``model``."""
    return _HANDLE in getattr(model, "__dict__", {})


def known_of(model: Any) -> Known:
    """What is known of the classes of a model that is ours or patched."""
    if not is_patched(model):
        return OURS
    handle = patched(model)
    return Known({kind: kind.forward for kind in handle.norms}, handle.blocks, are_called=False)


def looks_like_llada(model: Any) -> bool:
    """Whether ``model`` has the parts that :func:`wino.patch` needs."""
    config = getattr(model, "config", None)
    return isinstance(model, nn.Module) and not _missing_fields(config) and not _missing_parts(model, config)


def patched_forward(
    model: Any,
    input_ids: Tensor,
    *,  # the authors' order of the others differs
    attention_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    position_ids: Tensor | None = None,
    return_dict: bool | None = None,
    **unsupported: Any,
) -> CausalLMOutput | tuple[Tensor]:
    """A patched model's forward pass."""
    if model.training and any(getattr(model.config, name, 0.0) for name in DROPOUTS):
        raise RuntimeError(
            "wino.patch: the patched forward has no dropout, but the configuration asks for it; call model.eval()"
        )
    if not torch.compiler.is_compiling():
        check_modules(model, known_of(model), None, is_called=True)
    return language_model_forward(
        model,
        input_ids,
        attention_mask,
        position_ids,
        return_dict,
        attention_bias,
        run=block_in_place,
        **unsupported,
    )


def _validate(model: Any) -> None:
    config: Any = getattr(model, "config", None)
    if missing := _missing_fields(config):
        raise TypeError(_lacks(model, missing))
    check_architecture(config)
    if missing := _missing_parts(model, config):
        raise TypeError(_lacks(model, missing))


def _lacks(model: nn.Module, names: list[str]) -> str:
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"wino.patch: {type(model).__qualname__} is not a LLaDA of the authors' layout: it has no {listed}" + within(
        model
    )


def within(model: Any) -> str:
    """What to say of a PEFT model, which is no model of ours but holds one; of others nothing."""
    return "; pass its get_base_model()" if hasattr(model, "get_base_model") else ""


def _missing_fields(config: Any) -> list[str]:
    if config is None:
        return ["config"]
    return [f"config.{name}" for name in _CONFIG_FIELDS if not hasattr(config, name)]


def _missing_parts(model: nn.Module, config: Any) -> list[str]:
    """Dotted names of the sub-modules ``model`` lacks; of a missing part, its own parts are not listed."""
    transformer = getattr(getattr(model, "model", None), "transformer", None)
    if transformer is None:
        return ["model.transformer"]
    parts = ("wte", "ln_f") if config.weight_tying else ("wte", "ln_f", "ff_out")
    missing = [f"model.transformer.{name}" for name in parts if not hasattr(transformer, name)]
    if not hasattr(transformer, "blocks") and not hasattr(transformer, "block_groups"):
        return [*missing, "model.transformer.blocks"]
    blocks = list(iter_blocks(transformer))
    if not blocks:
        missing.append("model.transformer.blocks.0")
    for index, block in enumerate(blocks):
        # Its own: a wrapper that passes on its inner block's would be left out.
        missing += [f"model.transformer.blocks.{index}.{name}" for name in BLOCK_PARTS if name not in block._modules]
    return missing


def _known_classes(model: Any) -> tuple[frozenset[type[nn.Module]], frozenset[type[nn.Module]]]:
    transformer = model.model.transformer
    blocks = list(iter_blocks(transformer))
    norms = [transformer.ln_f, *(norm for block in blocks for norm in (block.attn_norm, block.ff_norm))]
    others = {type(norm) for norm in norms if not _is_rms_norm(norm)}
    return frozenset(map(type, blocks)), frozenset(map(type, norms)) - others


def _is_rms_norm(norm: nn.Module) -> bool:
    """Whether ``norm`` computes what :class:`RMSNorm` computes: tried on rows of several sizes, with another weight."""
    weight, eps = norm._parameters.get("weight"), getattr(norm, "eps", None)
    others = [tensor for name, tensor in (*norm._parameters.items(), *norm._buffers.items()) if name != "weight"]
    if weight is None or weight.dim() != 1 or not isinstance(eps, float) or any(other is not None for other in others):
        return False
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1e-3, 0.1, 1.0, 30.0], device="cpu")  # of the first eps is the larger part
    x = torch.randn(1, 4, len(weight), generator=generator, device="cpu") * sizes[:, None]
    scale = torch.randn(len(weight), generator=generator, device="cpu")
    twin = copy.copy(norm)
    for dtype in (torch.float32, torch.bfloat16):
        vars(twin)["_parameters"] = {**norm._parameters, "weight": nn.Parameter(scale.to(dtype), requires_grad=False)}
        try:
            with torch.no_grad():
                given = type(norm).forward(twin, x.to(dtype))
        except Exception:  # whatever it needs besides: it is called as it is, not replaced
            return False
        expected = rms_norm(x.to(dtype), scale.to(dtype), eps)
        if not isinstance(given, Tensor) or given.dtype != dtype or given.shape != expected.shape:
            return False
        # In bfloat16 equal but for a last bit here and there, which another order of roundings changes everywhere.
        if not torch.allclose(given, expected, rtol=1e-5 if dtype == torch.float32 else 0.01, atol=0):
            return False
        if dtype == torch.bfloat16 and (given != expected).float().mean() > 0.02:
            return False
    return True
