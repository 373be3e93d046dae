"""The image tokenizer: the published layout's names, codes and pixels of a plain transcription, files, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from wino.multimodal import MagvitConfig, MAGVITv2

SMALL = MagvitConfig(
    channels=8,
    encoder_multipliers=(1, 2, 2),
    decoder_multipliers=(1, 1, 2),
    encoder_blocks=(2, 1, 2),
    decoder_blocks=(1, 2, 1),
    code_bits=5,
    norm_groups=4,
)


def small(seed: int = 0) -> MAGVITv2:
    torch.manual_seed(seed)
    return MAGVITv2(SMALL).eval()


def residual(x: Tensor, of: dict[str, Tensor], name: str) -> Tensor:
    def conv(h: Tensor, part: str, padding: int) -> Tensor:
        return F.conv2d(h, of[f"{name}.{part}.weight"], of[f"{name}.{part}.bias"], padding=padding)

    def norm(h: Tensor, part: str) -> Tensor:
        h = F.group_norm(h, SMALL.norm_groups, of[f"{name}.{part}.weight"], of[f"{name}.{part}.bias"], 1e-6)
        return h * torch.sigmoid(h)

    h = conv(norm(conv(norm(x, "norm1"), "conv1", 1), "norm2"), "conv2", 1)
    return h + (conv(x, "nin_shortcut", 0) if f"{name}.nin_shortcut.weight" in of else x)


def attention(x: Tensor, of: dict[str, Tensor], name: str) -> Tensor:
    """As the published code writes it: scores over all pairs of places."""
    h = F.group_norm(x, SMALL.norm_groups, of[f"{name}.norm.weight"], of[f"{name}.norm.bias"], 1e-6)
    q, k, v = (F.conv2d(h, of[f"{name}.{p}.weight"], of[f"{name}.{p}.bias"]).flatten(2) for p in "qkv")
    scores = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(dim=2)
    attended = (v @ scores.transpose(1, 2)).view(x.shape)
    return x + F.conv2d(attended, of[f"{name}.proj_out.weight"], of[f"{name}.proj_out.bias"])


def plain_grid(model: MAGVITv2, pixels: Tensor) -> Tensor:
    of = {name.removeprefix("encoder."): value for name, value in model.state_dict().items()}
    x = F.conv2d(pixels, of["conv_in.weight"], of["conv_in.bias"], padding=1)
    for level, blocks in enumerate(SMALL.encoder_blocks):
        for block in range(blocks):
            x = residual(x, of, f"down.{level}.block.{block}")
        if level < len(SMALL.encoder_blocks) - 1:
            name = f"down.{level}.downsample.conv"
            x = F.conv2d(F.pad(x, (0, 1, 0, 1)), of[f"{name}.weight"], of[f"{name}.bias"], stride=2)
    x = residual(attention(residual(x, of, "mid.block_1"), of, "mid.attn_1"), of, "mid.block_2")
    x = F.group_norm(x, SMALL.norm_groups, of["norm_out.weight"], of["norm_out.bias"], 1e-6)
    x = F.conv2d(x * torch.sigmoid(x), of["conv_out.weight"], of["conv_out.bias"], padding=1)
    return F.conv2d(x, of["quant_conv.weight"], of["quant_conv.bias"])


def plain_pixels(model: MAGVITv2, bits: Tensor) -> Tensor:
    of = {name.removeprefix("decoder."): value for name, value in model.state_dict().items() if "decoder" in name}
    x = F.conv2d(bits, of["post_quant_conv.weight"], of["post_quant_conv.bias"])
    x = F.conv2d(x, of["conv_in.weight"], of["conv_in.bias"], padding=1)
    x = residual(attention(residual(x, of, "mid.block_1"), of, "mid.attn_1"), of, "mid.block_2")
    for level in reversed(range(len(SMALL.decoder_blocks))):
        for block in range(SMALL.decoder_blocks[level]):
            x = residual(x, of, f"up.{level}.block.{block}")
        if level:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            name = f"up.{level}.upsample.conv"
            x = F.conv2d(x, of[f"{name}.weight"], of[f"{name}.bias"], padding=1)
    x = F.group_norm(x, SMALL.norm_groups, of["norm_out.weight"], of["norm_out.bias"], 1e-6)
    return F.conv2d(x * torch.sigmoid(x), of["conv_out.weight"], of["conv_out.bias"], padding=1)


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (4, 4)])
def test_codes_and_pixels_of_a_plain_transcription(shape: tuple[int, int]) -> None:
    model, pixels = small(), torch.rand(3, 3, *shape) * 2 - 1
    codes = model.get_code(pixels)
    grid = plain_grid(model, pixels)
    assert codes.shape == (3, shape[0] // 4 * (shape[1] // 4)) and codes.dtype == torch.int64
    for picture in range(3):
        for place, code in enumerate(codes[picture].tolist()):
            channels = grid[picture].flatten(1)[:, place]
            if channels.abs().min() > 1e-5:
                assert f"{code:05b}" == "".join("1" if value > 0 else "0" for value in channels)
    bits = torch.tensor([[[-1.0, 1.0][int(bit)] for bit in f"{code:05b}"] for code in codes.flatten().tolist()])
    bits = bits.view(3, shape[0] // 4, shape[1] // 4, 5).permute(0, 3, 1, 2)
    decoded = model.decode_code(codes, (shape[0] // 4, shape[1] // 4))
    assert decoded.shape == pixels.shape
    torch.testing.assert_close(decoded, plain_pixels(model, bits), atol=1e-5, rtol=0)


def test_the_defaults_are_the_published_tokenizer() -> None:
    """Names and shapes as in ``showlab/magvitv2``; 512 x 512 pixels are MMaDA's 1024 codes of 8192."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in MAGVITv2().state_dict().items()}
    assert shapes["quantize.embedding"] == (8192, 13) and shapes["quantize.power_vals"] == (13,)
    assert shapes["encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert shapes["encoder.down.1.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert shapes["encoder.down.3.downsample.conv.weight"] == (512, 512, 3, 3)
    assert "encoder.down.4.downsample.conv.weight" not in shapes and "decoder.up.0.upsample.conv.weight" not in shapes
    assert shapes["encoder.mid.attn_1.proj_out.bias"] == (512,)
    assert shapes["encoder.quant_conv.weight"] == (13, 13, 1, 1)
    assert shapes["decoder.up.4.block.2.conv2.weight"] == (512, 512, 3, 3)
    assert shapes["decoder.up.3.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert shapes["decoder.conv_out.weight"] == (3, 128, 3, 3)
    assert MagvitConfig().patch == 16 and (512 // MagvitConfig().patch) ** 2 == 1024


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin"])
def test_files(tmp_path: Path, name: str) -> None:
    model = small()
    model.save(tmp_path)
    saved = tmp_path / "model.safetensors"
    if name.endswith("bin"):
        torch.save(load_file(saved), tmp_path / name)
        saved.unlink()
    else:
        saved.rename(tmp_path / name)
    again = MAGVITv2.load(tmp_path)
    assert again.config == SMALL and not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    pixels = torch.rand(1, 3, 16, 16)
    assert torch.equal(again.get_code(pixels), model.get_code(pixels))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has none of model\.safetensors"):
        MAGVITv2.load(tmp_path)
    small().save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["extra"] = tensors.pop("encoder.conv_in.bias")
    tensors["decoder.conv_out.bias"] = torch.zeros(5)
    save_file(tensors, tmp_path / "model.safetensors")
    message = (
        r"misses tensors encoder\.conv_in\.bias; it has unexpected tensors extra; it has misshapen tensors decoder"
    )
    with pytest.raises(ValueError, match=message):
        MAGVITv2.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "decoder_blocks": [1]}))
    with pytest.raises(ValueError, match="must name the same number of levels"):
        MAGVITv2.load(tmp_path)


def test_the_hub_is_asked_for_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small().save(tmp_path)
    monkeypatch.setattr("wino.models.loading.snapshot_download", lambda name, allow_patterns: str(tmp_path))
    assert MAGVITv2.load("showlab/magvitv2").config == SMALL

    def refuse(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("wino.models.loading.snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"showlab/magvitv2: no such folder, .*no route to host"):
        MAGVITv2.load("showlab/magvitv2")


@pytest.mark.parametrize(
    ("pixels", "match"),
    [
        (torch.zeros(3, 16, 16), r"expected shape \(B, 3, H, W\)"),
        (torch.zeros(1, 1, 16, 16), r"expected shape \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 16, 18), "sides multiples of 4"),
        (torch.zeros(1, 3, 0, 16), "not empty"),
        (torch.zeros(0, 3, 16, 16), "not empty"),
    ],
)
def test_pixels_that_do_not_fit(pixels: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        small().get_code(pixels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_pixels_of_another_kind(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"pixels: expected floating point in \[-1, 1\], got {dtype}"):
        small().get_code(torch.zeros(1, 3, 16, 16, dtype=dtype))


@pytest.mark.parametrize(
    ("codes", "shape", "kind", "match"),
    [
        (torch.full((1, 16), 32), None, ValueError, r"codes: must lie in \[0, 32\), got 32"),
        (torch.full((1, 16), -1), None, ValueError, r"codes: must lie in \[0, 32\), got -1"),
        (torch.zeros(1, 15, dtype=torch.int64), None, ValueError, "15 of them do not fill a grid of 3 x 3"),
        (torch.zeros(1, 16, dtype=torch.int64), (3, 5), ValueError, "16 of them do not fill a grid of 3 x 5"),
        (torch.zeros(16, dtype=torch.int64), None, ValueError, r"expected shape \(B, N\)"),
        (torch.zeros(1, 0, dtype=torch.int64), None, ValueError, "not empty"),
        (torch.zeros(1, 16), None, TypeError, r"codes: expected int64, got torch\.float32"),
    ],
)
def test_codes_that_do_not_fit(codes: Tensor, shape: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        small().decode_code(codes, shape)


def test_configurations_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="norm_groups must divide channels, got 3, 8"):
        MagvitConfig(channels=8, norm_groups=3)
