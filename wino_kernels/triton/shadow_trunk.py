"""shadow_trunk on a GPU: the kernels of its layers, started one after the other."""

from __future__ import annotations

import torch

from wino_kernels.eager.shadow_trunk import by
from wino_kernels.triton.norm import rms_norm
from wino_kernels.triton.norm_qkv_rope import norm_qkv_rope
from wino_kernels.triton.out_norm_swiglu import out_norm_swiglu
from wino_kernels.triton.shadow_attention import shadow_attention

shadow_trunk = torch.no_grad()(by(norm_qkv_rope, shadow_attention, out_norm_swiglu, rms_norm))
