"""MAGVIT-v2's image tokenizer: convolutions down to a grid, the signs of its channels are the bits of a code.

Module and parameter names are those of ``showlab/magvitv2``, which MMaDA uses (Yu et al., arXiv 2310.05737).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import write_atomically
from ..foreign import read_json
from ..models.loading import check_shapes, inside, load_weights, local_folder

_LARGEST = 1 << 12  # of any size of its configuration
_WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class MagvitConfig:
    """Sizes; the defaults are those of ``showlab/magvitv2``, whose own configuration names none.

    Attributes:
        channels: of the first level; each level has as many times ``multipliers``.
        encoder_multipliers, decoder_multipliers: one per level, finest first; each level but the last halves the grid.
        encoder_blocks, decoder_blocks: residual blocks of each level.
        code_bits: channels of the grid: 2**code_bits codes.
        norm_groups: of every group norm.
    """

    channels: int = 128
    encoder_multipliers: tuple[int, ...] = (1, 2, 2, 4, 4)
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    code_bits: int = 13
    norm_groups: int = 32

    def __post_init__(self) -> None:
        lists = [getattr(self, field.name) for field in fields(self) if field.type == "tuple[int, ...]"]
        levels = {len(values) if isinstance(values, tuple) else 0 for values in lists}
        if len(levels) != 1 or levels == {0}:
            raise ValueError("MagvitConfig: multipliers and blocks must name the same number of levels")
        for field in fields(self):
            value = getattr(self, field.name)
            sizes = value if field.type == "tuple[int, ...]" and isinstance(value, tuple) else (value,)
            if not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= _LARGEST for size in sizes):
                raise ValueError(f"MagvitConfig: {field.name} must be from 1 to {_LARGEST}, got {value!r:.60}")
        if len(self.encoder_multipliers) > 8 or self.code_bits > 24:
            raise ValueError("MagvitConfig: expected at most 8 levels and 24 code_bits")
        if self.channels % self.norm_groups:
            raise ValueError(f"MagvitConfig: norm_groups must divide channels, got {self.norm_groups}, {self.channels}")

    @property
    def codebook_size(self) -> int:
        return 1 << self.code_bits

    @property
    def patch(self) -> int:
        """Pixels of a side that one code stands for."""
        return 1 << (len(self.encoder_multipliers) - 1)


class _Residual(nn.Module):
    def __init__(self, inner: int, outer: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inner, eps=1e-6)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outer, eps=1e-6)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class _Attention(nn.Module):
    """One head over all places of the grid."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = (part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(attended)


class _Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = _Residual(channels, channels, groups)
        self.attn_1 = _Attention(channels, groups)
        self.block_2 = _Residual(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Residual blocks of one resolution, and the way to the next."""

    def __init__(self, inner: int, outer: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Residual(inner if i == 0 else outer, outer, groups) for i in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class _Encoder(nn.Module):
    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        groups, width = config.norm_groups, config.channels
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        for multiplier, blocks in zip(config.encoder_multipliers, config.encoder_blocks, strict=True):
            level = _Level(width, config.channels * multiplier, blocks, groups)
            width = config.channels * multiplier
            if len(self.down) < len(config.encoder_multipliers) - 1:
                level.downsample = _Downsample(width)
            self.down.append(level)
        self.mid = _Middle(width, groups)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.code_bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.code_bits, config.code_bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class _Decoder(nn.Module):
    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        groups, width = config.norm_groups, config.channels * config.decoder_multipliers[-1]
        self.post_quant_conv = nn.Conv2d(config.code_bits, config.code_bits, 1)
        self.conv_in = nn.Conv2d(config.code_bits, width, 3, padding=1)
        self.mid = _Middle(width, groups)
        levels = []
        for index in reversed(range(len(config.decoder_multipliers))):
            outer = config.channels * config.decoder_multipliers[index]
            level = _Level(width, outer, config.decoder_blocks[index], groups)
            width = outer
            if index:
                level.upsample = _Upsample(width)
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, grid: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(grid)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Quantizer(nn.Module):
    """Lookup-free: channel c of the grid is bit ``code_bits - 1 - c`` of the code, 1 where it is positive."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        codes, shifts = torch.arange(1 << bits), torch.arange(bits - 1, -1, -1)
        self.register_buffer("embedding", (codes[:, None] >> shifts & 1).float() * 2 - 1)  # [codes, bits]
        self.register_buffer("power_vals", 1 << shifts)

    def codes(self, grid: Tensor) -> Tensor:
        """(B, bits, h, w) -> (B, h * w) int64, row by row."""
        return ((grid > 0).long() * self.power_vals[:, None, None]).sum(1).flatten(1)

    def grid(self, codes: Tensor, shape: tuple[int, int]) -> Tensor:
        """(B, h * w) -> (B, bits, h, w) of -1 and 1."""
        return self.embedding[codes].unflatten(1, shape).permute(0, 3, 1, 2).contiguous()


class MAGVITv2(nn.Module):
    """Pixels to codes and back. ``MAGVITv2.load("showlab/magvitv2")`` is MMaDA's; others are trained here."""

    def __init__(self, config: MagvitConfig | None = None) -> None:
        super().__init__()
        self.config = config or MagvitConfig()
        self.encoder = _Encoder(self.config)
        self.decoder = _Decoder(self.config)
        self.quantize = _Quantizer(self.config.code_bits)

    @torch.no_grad()
    def get_code(self, pixels: Tensor) -> Tensor:
        """Codes (B, h * w) int64 in [0, codebook_size) of pixels (B, 3, H, W) in [-1, 1], h = H / patch; row by row.

        Raises:
            TypeError: pixels that are not floating point.
            ValueError: another shape, or sides that ``patch`` does not divide.
        """
        if not pixels.is_floating_point():
            raise TypeError(f"pixels: expected floating point in [-1, 1], got {pixels.dtype}")
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels: expected shape (B, 3, H, W), got {tuple(pixels.shape)}")
        if 0 in pixels.shape or any(side % self.config.patch for side in pixels.shape[2:]):
            expected = f"not empty, sides multiples of {self.config.patch}"
            raise ValueError(f"pixels: expected an image {expected}, got {tuple(pixels.shape)}")
        return self.quantize.codes(self.encoder(pixels.to(self._dtype)))

    @torch.no_grad()
    def decode_code(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Pixels (B, 3, H, W), about in [-1, 1], of codes (B, N) int64.

        Args:
            codes: row by row.
            shape: rows and columns of the grid; None: it is square.

        Raises:
            TypeError: codes that are not int64.
            ValueError: a code outside [0, codebook_size), or a number of codes that does not fill the grid.
        """
        if codes.dtype != torch.int64:
            raise TypeError(f"codes: expected int64, got {codes.dtype}")
        if codes.dim() != 2 or not codes.numel():
            raise ValueError(f"codes: expected shape (B, N), not empty, got {tuple(codes.shape)}")
        side = math.isqrt(codes.shape[1])
        height, width = shape or (side, side)
        if height * width != codes.shape[1]:
            raise ValueError(f"codes: {codes.shape[1]} of them do not fill a grid of {height} x {width}")
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= self.config.codebook_size:
            bad = low if low < 0 else high
            raise ValueError(f"codes: must lie in [0, {self.config.codebook_size}), got {bad}")
        return self.decoder(self.quantize.grid(codes, (height, width)).to(self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        return self.encoder.conv_in.weight.dtype

    @classmethod
    def load(cls, name_or_path: str | Path, *, device: torch.device | str | None = None) -> MAGVITv2:
        """The tokenizer of a folder or hub id, in evaluation mode, in float32.

        Raises:
            FileNotFoundError: no such folder or hub id, or it holds no weights.
            ValueError: tensors are missing, unexpected or misshapen (named).
        """
        folder = local_folder(name_or_path, ["*.json", *_WEIGHTS])
        config = _read_config(folder)
        tensors = _read_weights(folder)
        with torch.device("meta"):  # nothing is taken of memory before the sizes are known to be those of the weights
            skeleton = cls(config)
        found, expected = (
            {name: tuple(value.shape) for name, value in state.items()} for state in (tensors, skeleton.state_dict())
        )
        check_shapes(f"the image tokenizer {folder}", found, expected)
        model = cls(config)
        model.load_state_dict(tensors)
        module: nn.Module = model.requires_grad_(False).eval()
        module.to(device or "cpu", torch.float32)
        return model

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors`` as :meth:`load` reads them; ``dtype``: of the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: (value.to(dtype or value.dtype) if value.is_floating_point() else value).contiguous()
            for name, value in self.state_dict().items()
        }
        save_file(tensors, folder / _WEIGHTS[0])
        write_atomically(folder / "config.json", json.dumps(asdict(self.config), indent=2) + "\n")


def _read_config(folder: Path) -> MagvitConfig:
    path = folder / "config.json"
    content = read_json(inside(folder, path)) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, got {type(content).__name__}")
    known = {field.name: content[field.name] for field in fields(MagvitConfig) if field.name in content}
    sizes: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in known.items()}
    try:
        return MagvitConfig(**sizes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_weights(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has none of {', '.join(_WEIGHTS)}")
    inside(folder, path)
    if path.suffix != ".bin":
        return load_weights(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what its reader raises depends on where the file is broken
        raise ValueError(f"{path} does not hold plain tensors ({str(error).strip().splitlines()[0]:.200})") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} does not hold plain tensors by name")
    return tensors
