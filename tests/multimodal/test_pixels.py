"""Images of every kind: read as what they show, or refused by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from wino.multimodal import from_pixels, open_image, to_pixels


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack((x, y, np.full_like(x, 77)), axis=-1).astype(np.uint8))


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_files_of_the_usual_formats(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"picture.{extension}"
    ramp(40, 30).save(path)
    image = open_image(path)
    assert image.mode == "RGB" and image.size == (40, 30)
    assert abs(as_array(image) - as_array(ramp(40, 30))).mean() < 6
    with path.open("rb") as file:
        assert (as_array(open_image(file)) == as_array(image)).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64).reshape(8, 8)
    path = tmp_path / "deep.png"
    Image.fromarray(grey.astype(np.uint16)).save(path)
    for image in (path, Image.fromarray(grey.astype(np.int32)), Image.fromarray(grey.astype(np.uint16))):
        shown = as_array(open_image(image))
        assert abs(shown - (grey / 257)[:, :, None]).max() <= 1


def test_integers_of_eight_bits_are_not_scaled() -> None:
    grey = np.linspace(0, 255, 64).reshape(8, 8).astype(np.int32)
    for image in (Image.fromarray(grey), Image.fromarray(grey.astype(np.uint8)).convert("I")):
        assert (as_array(open_image(image)) == grey[:, :, None]).all()


def test_palettes_bits_and_inks() -> None:
    picture = ramp(40, 30)
    for mode in ("P", "L", "1", "CMYK", "YCbCr", "HSV"):
        image = open_image(picture.convert(mode))
        assert image.mode == "RGB" and image.size == (40, 30)
    adapted = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    assert abs(as_array(open_image(adapted)) - as_array(picture)).mean() < 8


def test_what_is_transparent_is_white() -> None:
    clear = Image.new("RGBA", (6, 4), (200, 10, 10, 0))
    assert (as_array(open_image(clear)) == 255).all()
    half = as_array(open_image(Image.new("RGBA", (6, 4), (0, 0, 0, 128))))
    assert (abs(half - 127) <= 1).all()
    assert (as_array(open_image(Image.new("LA", (6, 4), (30, 255)))) == 30).all()
    palette = Image.new("P", (6, 4), 0)
    palette.putpalette([9, 9, 9, 100, 100, 100])
    palette.putpixel((1, 1), 1)
    palette.info["transparency"] = 0
    shown = as_array(open_image(palette))
    assert (shown[0, 0] == 255).all() and (shown[1, 1] == 100).all()


def test_orientation_and_animations(tmp_path: Path) -> None:
    upright, path = ramp(40, 30), tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).save(path, exif=exif, quality=95)
    assert abs(as_array(open_image(path)) - as_array(upright)).mean() < 6
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (as_array(open_image(tmp_path / "moving.gif"))[:, :, 0] > 250).all()


@pytest.mark.parametrize("broken", [b"II*\0", b"Exif\0\0", b"MM\0*\0\0\xff\xff", b"nonsense"])
def test_a_broken_orientation_leaves_the_pixels(tmp_path: Path, broken: bytes) -> None:
    for extension in ("png", "jpg", "webp"):
        ramp(40, 30).save(tmp_path / f"odd.{extension}", exif=broken)
        assert open_image(tmp_path / f"odd.{extension}").size == (40, 30)
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n4\nnot hexadecimal")
    ramp(40, 30).save(tmp_path / "profile.png", pnginfo=text)
    assert open_image(tmp_path / "profile.png").size == (40, 30)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_a_truncated_file(tmp_path: Path, extension: str, share: float) -> None:
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "JPEG" if extension == "jpg" else extension.upper())
    path = tmp_path / f"cut.{extension}"
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
    with pytest.raises(ValueError, match=rf"image .*cut\.{extension}: is (broken|not an image)"):
        open_image(path)


def test_what_is_no_image(tmp_path: Path) -> None:
    for name, content in (("empty.png", b""), ("text.jpg", b"hello"), ("zeros.png", bytes(1000))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"image .*{name}: is not an image of the formats PNG"):
            open_image(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "nowhere.png")
    file = io.BytesIO(b"hello")
    with pytest.raises(ValueError, match="image in memory: is not an image of the formats PNG"):
        open_image(file)
    file.name = "row 7"
    with pytest.raises(ValueError, match="image row 7: is not an image of the formats PNG"):
        open_image(file)
    others: list[tuple[Any, str]] = [(b"\x89PNG", "bytes"), (np.zeros((4, 4, 3)), "ndarray"), (None, "NoneType")]
    for source, kind in others:
        with pytest.raises(TypeError, match=f"source: expected a path, .* or a Pillow image, got {kind}"):
            open_image(source)
    with pytest.raises(ValueError, match=r"image in memory \(RGB\): has 0 x 5 pixels"):
        open_image(Image.new("RGB", (0, 5)))
    with pytest.raises(ValueError, match=r"image in memory \(F\): has floating-point pixels"):
        open_image(Image.new("F", (5, 5)))
    with pytest.raises(ValueError, match=r"integer pixels must lie in \[0, 65535\], got -3 to 7"):
        open_image(Image.fromarray(np.array([[-3, 7]], dtype=np.int32)))


def test_huge_images(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (12000, 9000)).save(path)  # Pillow would warn
    assert to_pixels(path, 32).shape == (3, 32, 32)
    Image.new("1", (17000, 16000)).save(path)
    with pytest.raises(ValueError, match=r"large\.png: Image size \(272000000 pixels\) exceeds limit"):
        open_image(path)


def transformed(image: Image.Image, size: int) -> torch.Tensor:
    """Resize, CenterCrop, ToTensor, Normalize(0.5, 0.5) as torchvision documents them."""
    width, height = image.size
    if width <= height:
        image = image.resize((size, int(size * height / width)), Image.Resampling.BICUBIC)
    else:
        image = image.resize((int(size * width / height), size), Image.Resampling.BICUBIC)
    left, top = int(round((image.width - size) / 2.0)), int(round((image.height - size) / 2.0))  # noqa: RUF046
    array = np.asarray(image.crop((left, top, left + size, top + size))).astype(np.float32)
    return (torch.from_numpy(array).permute(2, 0, 1) / 255 - 0.5) / 0.5


@pytest.mark.parametrize("shape", [(40, 30), (30, 41), (33, 33), (512, 100), (7, 100), (1, 1), (64, 3)])
def test_pixels_are_those_of_mmadas_transform(shape: tuple[int, int]) -> None:
    pixels = to_pixels(ramp(*shape), 32)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.float32
    if max(shape) <= 16 * min(shape):
        torch.testing.assert_close(pixels, transformed(ramp(*shape), 32), atol=1e-6, rtol=0)


def test_squashing_keeps_the_edges() -> None:
    pixels = to_pixels(ramp(200, 50), 32, fit="squash")
    assert pixels[0, :, 0].max() < -0.9 and pixels[0, :, -1].min() > 0.9
    assert to_pixels(ramp(200, 50), 32)[0, :, 0].min() > -0.5


def test_a_stripe_costs_no_memory() -> None:
    assert to_pixels(Image.new("RGB", (200000, 2), (255, 0, 0)), 64)[0].min() > 0.99


def test_pixels_to_images_and_back() -> None:
    pixels = torch.stack((to_pixels(ramp(32, 32), 32), torch.full((3, 32, 32), 3.0)))
    first, second = from_pixels(pixels)
    assert abs(as_array(first) - as_array(ramp(32, 32))).max() <= 1
    assert (as_array(second) == 255).all()
    with pytest.raises(ValueError, match=r"pixels: expected shape \(B, 3, H, W\), got \(3, 32, 32\)"):
        from_pixels(pixels[0])


def test_bad_arguments() -> None:
    for size in (0, -3, 2.5, True):
        with pytest.raises(ValueError, match="size: expected a positive integer"):
            to_pixels(ramp(8, 8), size)
    with pytest.raises(ValueError, match="fit: expected 'crop' or 'squash', got 'pad'"):
        to_pixels(ramp(8, 8), 8, fit="pad")
