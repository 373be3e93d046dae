"""The operators as Triton kernels, one file per operator: the default on a GPU (docs/spec.md section 6).

Under ``TRITON_INTERPRET=1`` the same kernels run on CPU tensors, slowly, for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Triton versions the kernels are tested with: the first and the last one.
TESTED = ((3, 4), (3, 9))

try:
    import triton
except ImportError as error:
    raise ImportError(f"Triton is not installed ({error}): `pip install 'triton>=3.4'` (Linux only)") from error

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < TESTED[0]:
    raise ImportError(
        f"Triton {triton.__version__} is too old, the kernels need {'.'.join(map(str, TESTED[0]))} or newer"
    )

from wino_kernels.triton.accept import accept_  # noqa: E402  (needs a Triton that is new enough)
from wino_kernels.triton.accept_remask import accept_remask_  # noqa: E402
from wino_kernels.triton.launch import INTERPRETED  # noqa: E402
from wino_kernels.triton.linear_score_tokens import linear_score_tokens  # noqa: E402
from wino_kernels.triton.norm_qkv_rope import norm_qkv_rope  # noqa: E402
from wino_kernels.triton.out_norm_swiglu import out_norm_swiglu  # noqa: E402
from wino_kernels.triton.score_tokens import score_tokens  # noqa: E402
from wino_kernels.triton.shadow_attention import shadow_attention  # noqa: E402
from wino_kernels.triton.shadow_trunk import shadow_trunk  # noqa: E402
from wino_kernels.triton.trajectory_loss import trajectory_loss, trajectory_loss_backward  # noqa: E402
from wino_kernels.triton.wino_step import wino_step_  # noqa: E402

#: Device types whose tensors the kernels accept here.
DEVICES: tuple[str, ...] = ("cpu", "cuda") if INTERPRETED else ("cuda",)

KERNELS: dict[str, Callable[..., Any]] = {
    "score_tokens": score_tokens,
    "linear_score_tokens": linear_score_tokens,
    "accept_remask_": accept_remask_,
    "accept_": accept_,
    "wino_step_": wino_step_,
    "shadow_attention": shadow_attention,
    "norm_qkv_rope": norm_qkv_rope,
    "out_norm_swiglu": out_norm_swiglu,
    "shadow_trunk": shadow_trunk,
    "trajectory_loss": trajectory_loss,
    "trajectory_loss_backward": trajectory_loss_backward,
}
