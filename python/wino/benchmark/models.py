"""Random models that decode like trained ones: several tokens a step, some of them taken back.

A randomly initialised transformer is sure of nothing: WINO accepts one token a step, and a benchmark on it times the
wrong thing. Here the first layer's attention looks ``OFFSET`` positions back, whatever stands there, and the LM head
knows what each token's successor is. So a position becomes clear once its source is written, the shadow block (which
sees half as much of the source) doubts some of it, and every other weight is random and adds noise. The head's scale
decides how sure the model is; :func:`peaked_model` chooses it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wino_kernels.eager.norm_qkv_rope import rotate

from ..config import GenerationConfig
from ..generation import generate
from ..models.forward import rotary_table
from ..models.llada import LLaDAConfig, LLaDAModelLM

OFFSET = 8
TOKENS_PER_FORWARD = (3.0, 10.0)
"""What a measured decode has to accept a step; at one token it would time the wrong thing (issue 4)."""
_MASK_ID = 126336  # of LLaDA-8B and MMaDA-8B
_HEAD_WIDTH = 64
_LLADA_8B = "llada-8b"
_SHARPNESS = 9.0
_SIGNAL = 3.0  # of the first layer's copy beside the noise of all layers
#: Up to this width the noise of other tokens' logits makes some tokens surer than others. A wider head needs a smaller
#: scale, which leaves too little of it: one step would be sure of all or of none.
_NOISY_WIDTH = 512
_SPREAD = 0.2  # standard deviation of a wider head's rows, relative


class Trunk(NamedTuple):
    """Layers and width of a random model, written ``4x256``; ``llada-8b`` has LLaDA-8B's sizes.

    Attributes:
        head_width: of attention; mlp: of the feed-forward part, 0: four times ``width``.
    """

    layers: int
    width: int
    head_width: int = _HEAD_WIDTH
    mlp: int = 0

    def __str__(self) -> str:
        return _LLADA_8B if self == LLADA_8B else f"{self.layers}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Trunk:
        """Raises ``ValueError`` unless ``text`` is ``llada-8b`` or like ``4x256``, the width an even number."""
        if text == _LLADA_8B:
            return LLADA_8B
        layers, _, width = text.partition("x")
        if not (layers.isdecimal() and width.isdecimal() and int(layers) > 0 and int(width) > 0) or int(width) % 2:
            raise ValueError(f"trunk: expected {_LLADA_8B} or LAYERSxWIDTH such as 4x256, width even, got {text!r}")
        if int(width) > _HEAD_WIDTH and int(width) % _HEAD_WIDTH:
            raise ValueError(f"trunk: expected a width below or a multiple of {_HEAD_WIDTH}, got {text!r}")
        return cls(int(layers), int(width))


LLADA_8B = Trunk(32, 4096, head_width=128, mlp=12288)


def random_model(
    trunk: Trunk,
    vocabulary: int,
    *,
    scale: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    seed: int = 0,
    max_length: int = 4096,
) -> LLaDAModelLM:
    """A model as described above; ``scale`` is the standard deviation of an unrelated token's logit.

    The mask and end tokens are never predicted: their rows of the head are zero, and a sure logit is far above. The
    weights are drawn in float32 where the model is to be, and cast: that takes four bytes a parameter at first.
    """
    if vocabulary < 4:
        raise ValueError(f"vocabulary: expected at least 4 tokens, got {vocabulary}")
    mask_id = _MASK_ID if vocabulary > _MASK_ID else vocabulary - 1
    config = LLaDAConfig(
        d_model=trunk.width,
        n_heads=max(1, trunk.width // trunk.head_width),
        n_layers=trunk.layers,
        mlp_hidden_size=trunk.mlp or 4 * trunk.width,
        vocab_size=vocabulary,
        max_sequence_length=max_length,
        rope_theta=10000.0,
        mask_token_id=mask_id,
        eos_token_id=mask_id - 1,
        pad_token_id=mask_id - 1,
        include_qkv_bias=True,
        init_std=1 / math.sqrt(trunk.width),
    )
    # Drawn where it is to be: the CPU takes minutes over 8 billion numbers.
    where = torch.device(device or "cpu")
    forked = [where] if where.type == "cuda" else []
    with torch.random.fork_rng(forked), where, torch.no_grad():
        torch.manual_seed(seed)
        model = LLaDAModelLM(config).eval()
        model.model.transformer["wte"].weight.normal_()
        order = torch.randperm(vocabulary)
        _look_back(model.model.transformer["blocks"][0], config, OFFSET)
        _know_successors(model, order, head_scale(trunk, vocabulary) if scale is None else scale)
    return model.to(dtype=dtype)


def _look_back(block: Any, config: LLaDAConfig, offset: int) -> None:
    """Attention to the token ``offset`` positions earlier: a query is the key, rotated by as much."""
    head_width = config.d_model // config.n_heads
    key = torch.zeros(1, 1, 1, head_width)
    key[..., : head_width // 2] = _SHARPNESS * math.sqrt(_HEAD_WIDTH / head_width)
    query = rotate(key, *rotary_table(config, torch.tensor([-offset])), True)
    for projection, vector in ((block.q_proj, query), (block.k_proj, key)):
        projection.weight.mul_(0.1)
        projection.bias.copy_(vector.flatten().repeat(config.n_heads))
    block.attn_out.weight.mul_(_SIGNAL * math.sqrt(config.n_layers))


def _know_successors(model: LLaDAModelLM, order: Tensor, scale: float | Tensor) -> None:
    """Row ``order[v]`` of the head points where the hidden row goes that copies token v."""
    if model.config.d_model > _NOISY_WIDTH:
        scale = scale * (1 + _SPREAD * torch.randn(len(order), 1))
    config, transformer = model.config, model.model.transformer
    embedding = transformer["wte"].weight
    block = transformer["blocks"][0]
    value = F.linear(block.attn_norm(embedding), block.v_proj.weight)
    rows = F.normalize(F.linear(value, block.attn_out.weight), dim=-1)
    head = transformer["ff_out"].weight
    head[order] = scale * rows
    head[[config.mask_token_id, config.eos_token_id]] = 0.0
    embedding[config.mask_token_id] = 0.0


def head_scale(trunk: Trunk, vocabulary: int, cosine: float = 0.47, sure: float = 3.0) -> float:
    """The scale at which a hidden row with this ``cosine`` to its token's row has that token's log odds ``sure``.

    The logits of all other tokens are normal with standard deviation ``scale``, so the logarithm of the sum of their
    exponentials is ln V + scale^2 / 2 while scale^2 < 2 ln V.
    """
    wanted, slope = math.log(vocabulary) + sure, cosine * math.sqrt(trunk.width)
    return slope - math.sqrt(max(0.0, slope**2 - 2 * wanted))


class Calibrated(NamedTuple):
    """A model, and what a decode of one prompt made of it."""

    model: LLaDAModelLM
    tokens_per_forward: float
    remasked: int


def peaked_model(
    trunk: Trunk,
    vocabulary: int,
    prompt: Tensor,
    config: GenerationConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Calibrated:
    """A random model whose decode of ``prompt`` accepts 3 to 10 tokens a step and takes some back.

    The head's scale is bisected, from the one :func:`head_scale` expects; the same arguments give the same model.

    Raises:
        RuntimeError: no scale does; says what the last one gave.
    """
    low, high = 0.0, math.inf
    scale = head_scale(trunk, vocabulary)
    model = random_model(trunk, vocabulary, scale=scale, dtype=dtype, device=device, seed=seed)
    for _ in range(12):
        accepted, remasked = tokens_per_forward(model, prompt, config)
        if TOKENS_PER_FORWARD[0] <= accepted <= TOKENS_PER_FORWARD[1] and remasked:
            return Calibrated(model, accepted, remasked)
        low, high = (scale, high) if accepted < TOKENS_PER_FORWARD[0] else (low, scale)
        wanted = math.sqrt(low * high) if low and high < math.inf else scale * (1.2 if high == math.inf else 1 / 1.2)
        with torch.no_grad():
            model.model.transformer["ff_out"].weight.mul_(wanted / scale)
        scale = wanted
    raise RuntimeError(
        f"no peaked model of trunk {trunk} over {vocabulary} tokens: at the last scale {scale:.3g} a step accepted "
        f"{accepted:.2f} tokens and {remasked} were taken back"
    )


def tokens_per_forward(model: Any, prompt: Tensor, config: GenerationConfig) -> tuple[float, int]:
    """Generated tokens per forward pass over a whole decode, and how many tokens were taken back."""
    out = generate(model, prompt, None, config, return_trace=True)
    trace = out.trace or []
    taken_back = sum(len(step.remasked_positions) for steps in trace for step in steps)
    return len(prompt) * config.max_new_tokens / int(out.steps.sum()), taken_back


def random_prompts(batch: int, length: int, vocabulary: int, mask_id: int, seed: int = 0) -> Tensor:
    """(batch, length) int64 ids that are not special."""
    high = min(vocabulary, mask_id - 1)
    return torch.randint(high, (batch, length), generator=torch.Generator().manual_seed(seed))
