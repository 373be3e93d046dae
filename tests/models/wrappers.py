"""What users put around, on or in place of a linear layer; each changes what the layer gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize


class Loud(nn.Linear):
    """A subclass whose forward is not its base's."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x).flip(-1)


class EightBits(nn.Module):
    """As bitsandbytes keeps a layer: no dense weight to be read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True) / 7
        self.register_buffer("codes", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, (self.codes * self.scale).to(x.dtype), self.bias)


class Coded(Tensor):
    """A weight whose class does the products, as torchao's are."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in (nn.functional.linear, nn.functional.embedding):
            return super().__torch_function__(function, types, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            is_linear = function is nn.functional.linear
            given = [(2 * each).round() / 2 if isinstance(each, cls) and is_linear else each for each in args]
            return function(*given, **(kwargs or {})).as_subclass(Tensor)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight - 0.5 * weight.roll(1, 0)


def _wrap_with(make: Callable[[nn.Linear], nn.Module]) -> Callable[[Any, str], None]:
    def wrap(parent: Any, name: str) -> None:
        setattr(parent, name, make(getattr(parent, name)))

    return wrap


def _adapter(**settings: Any) -> Callable[[Any, str], None]:
    def wrap(parent: Any, name: str) -> None:
        if name in settings.get("modules_to_save", ()):
            config = peft.LoraConfig(r=2, target_modules=["beside"], **settings)
        else:
            config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=[name], **settings)
        outer = nn.Module()  # so that nothing of that name is met elsewhere
        outer.inner = nn.ModuleDict({"beside": nn.Linear(2, 2), name: getattr(parent, name)})
        adapted = peft.get_peft_model(outer, config).base_model.model.inner[name]
        generator = torch.Generator().manual_seed(3)
        for part, parameter in adapted.named_parameters():
            if "lora_" in part or "modules_to_save" in part:
                parameter.data.normal_(std=0.3, generator=generator)
        setattr(parent, name, adapted.eval())

    return wrap


def _hook(parent: Any, name: str) -> None:
    getattr(parent, name).register_forward_hook(lambda module, args, output: output.flip(-1))


def _pre_hook(parent: Any, name: str) -> None:
    getattr(parent, name).register_forward_pre_hook(lambda module, args: (args[0].flip(-1),))


def _own_forward(parent: Any, name: str) -> None:
    module = getattr(parent, name)
    forward = module.forward
    module.forward = lambda x: forward(x.roll(1, -1))


def _parametrized(parent: Any, name: str) -> None:
    parametrize.register_parametrization(getattr(parent, name), "weight", Halved())


def _weight_norm(parent: Any, name: str) -> None:
    module = parametrizations.weight_norm(getattr(parent, name))
    module.parametrizations.weight.original0.data.mul_(torch.linspace(0.2, 2, len(module.weight))[:, None])


def _old_weight_norm(parent: Any, name: str) -> None:
    module = nn.utils.weight_norm(getattr(parent, name))
    module.weight_g.data.mul_(torch.linspace(0.2, 2, len(module.weight))[:, None])


def _subclassed_weight(parent: Any, name: str) -> None:
    module = getattr(parent, name)
    module.weight = nn.Parameter(module.weight.detach().as_subclass(Coded), requires_grad=False)


def _quantized(parent: Any, name: str) -> None:
    setattr(parent, name, torch.ao.nn.quantized.dynamic.Linear.from_float(_with_qconfig(getattr(parent, name))))


def _with_qconfig(linear: nn.Linear) -> nn.Linear:
    linear.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return linear


def _loud(linear: nn.Linear) -> nn.Module:
    loud = Loud(linear.in_features, linear.out_features, linear.bias is not None)
    loud.load_state_dict(linear.state_dict())
    return loud


WRAPPERS: dict[str, Callable[[Any, str], None]] = {
    "LoRA": _adapter(),
    "DoRA": _adapter(use_dora=True),
    "modules_to_save": lambda parent, name: _adapter(modules_to_save=[name])(parent, name),
    "a hook": _hook,
    "a hook in front": _pre_hook,
    "a subclass": _wrap_with(_loud),
    "a forward of its own": _own_forward,
    "a parametrization": _parametrized,
    "weight_norm": _weight_norm,
    "weight_norm of old": _old_weight_norm,
    "quantize_dynamic": _quantized,
    "a weight of another class": _subclassed_weight,
    "8 bits": _wrap_with(EightBits),
    "another module": _wrap_with(lambda linear: nn.Sequential(linear, nn.Tanh())),
}
