"""What others put on a live model: hooks, a forward of the instance's own, accelerate's offloading.

A decode calls the parts of a LLaDA (embedding, norms, projections, LM head; blocks of our own class), or reads the
weight of one that nothing is put on. What sits on any other module would never run, and is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks as _global_hooks
from torch.nn.modules.module import _global_forward_pre_hooks as _global_pre_hooks
from torch.nn.modules.module import _has_any_global_hook

Forwards = Mapping[type[nn.Module], Callable[..., Any]]

#: Classes whose weight may be read in place of a call, each with the forward that it must have for that.
LINEAR: Forwards = {nn.Linear: nn.Linear.forward}
EMBEDDING: Forwards = {nn.Embedding: nn.Embedding.forward}


def is_watched(module: Any) -> bool:
    """Whether hooks or a forward of its own are on this very module."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or _own_forward(module) is not None


def plain_weight(module: Any, forwards: Forwards) -> nn.Parameter | None:
    """The weight of a module of one of these very classes; None where anything wraps, watches or quantises it."""
    kind = type(module)
    if kind not in forwards or kind.forward is not forwards[kind] or _has_any_global_hook() or is_watched(module):
        return None
    weight = module._parameters.get("weight")
    return weight if type(weight) is nn.Parameter else None


def execution_device(module: Any) -> torch.device | None:
    """Where accelerate runs an offloaded ``module``; None: it is not offloaded."""
    for hook in _accelerate_hooks(module):
        if getattr(hook, "offload", False) and hook.execution_device is not None:
            return torch.device(hook.execution_device)
    return None


@contextlib.contextmanager
def in_place(module: Any) -> Iterator[None]:
    """With the weights of a ``module`` that accelerate offloads where its own forward would find them."""
    if execution_device(module) is None:
        yield
        return
    hook = module._hf_hook
    try:
        hook.pre_forward(module)
        yield
    finally:
        hook.post_forward(module, None)


def check_reached(
    model: nn.Module,
    called: Collection[nn.Module],
    entered: Collection[nn.Module],
    own_forward: Callable[..., Any] | None,
    *,
    is_called: bool,
) -> None:
    """Raise ``ValueError`` where something is put on a module that is not called; it is named.

    Args:
        model: the whole.
        called: the modules that are called; what lies within them is theirs to call.
        entered: modules that are computed :func:`in_place`.
        own_forward: the function of which ``model.forward`` may be a partial.
        is_called: ``model`` itself is called, too.
    """
    reached, inside = {id(module) for module in called}, {id(module) for module in entered}
    for name, module in _walk(model, "", reached):
        if not is_watched(module) or (is_called and module is model):
            continue
        hooked = module._forward_hooks or module._forward_pre_hooks
        if not hooked and (_is_partial_of(module.forward, own_forward) or _only_places(module, id(module) in inside)):
            continue
        what = "a forward hook" if hooked else "a forward of its own"
        raise ValueError(
            f"{name or 'the model itself'} ({type(module).__name__}) has {what}, which decoding would not call: it "
            "calls the embedding, the norms, the projections and the LM head; put it on one of these or remove it"
        )


def check_devices(model: nn.Module) -> None:
    """Raise ``ValueError`` if the weights are nowhere, on the meta device, or run on several devices."""
    found = set(_devices(model, None))
    devices = {str(device if device.type == "meta" else torch.empty(0, device=device).device) for device in found}
    if "meta" in devices:
        raise ValueError("weights of the model are on the meta device, and no accelerate hook brings them; load them")
    if len(devices) > 1:
        raise ValueError(
            f"the model runs on several devices ({', '.join(sorted(devices))}); decoding needs one: dispatch it with a "
            "device_map of that device, with what does not fit offloaded to the CPU or the disk"
        )


def is_offloaded(model: nn.Module) -> bool:
    return any(execution_device(module) is not None for module in model.modules())


def put_on(model: nn.Module) -> list[tuple[str, Any]]:
    """Every hook, and every forward of an instance's own, on the modules within ``model``, with the module's name."""
    found = [("every module", hook) for hooks in (_global_hooks, _global_pre_hooks) for hook in hooks.values()]
    for name, module in model.named_modules():
        if name and is_watched(module):
            hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            found += [(name, each) for each in (*hooks, _own_forward(module)) if each is not None]
    return found


def _devices(module: nn.Module, above: torch.device | None) -> Iterator[torch.device]:
    """Where each weight is when it is needed; ``above``: where the module around this one puts it."""
    own = execution_device(module)
    for parameter in module._parameters.values():
        if parameter is not None:
            yield own or above or parameter.device
    if own is not None and any(hook.place_submodules for hook in _accelerate_hooks(module)):
        above = own
    for child in module.children():
        yield from _devices(child, above)


def _own_forward(module: Any) -> Any:
    """The forward of this very instance; None: that of its class (which accelerate leaves behind as an attribute)."""
    forward, kind = module.__dict__.get("forward"), type(module)
    if getattr(forward, "__self__", None) is module and getattr(forward, "__func__", None) is kind.forward:
        return None
    return forward


def _walk(module: nn.Module, name: str, reached: Collection[int]) -> Iterator[tuple[str, nn.Module]]:
    if id(module) in reached:
        return
    yield name, module
    for part, child in module.named_children():
        yield from _walk(child, f"{name}.{part}" if name else part, reached)


def _accelerate_hooks(module: Any) -> list[Any]:
    """Accelerate's hooks on ``module``, if its forward is the one that calls them."""
    forward = module.__dict__.get("forward")
    if not isinstance(forward, partial) or forward.func.__module__ != "accelerate.hooks":
        return []
    hook = module._hf_hook
    return list(getattr(hook, "hooks", [hook]))  # those of a SequentialHook


def _only_places(module: Any, is_entered: bool) -> bool:
    """Whether all that is on ``module`` is accelerate's moving of inputs, or of weights that are then at hand."""
    hooks = _accelerate_hooks(module)
    if not hooks or any(type(hook).__name__ != "AlignDevicesHook" for hook in hooks):
        return False
    return is_entered or not any(hook.offload and hook.place_submodules for hook in hooks)


def _is_partial_of(forward: Any, function: Callable[..., Any] | None) -> bool:
    return function is not None and isinstance(forward, partial) and forward.func is function
