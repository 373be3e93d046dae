"""Images of any kind to square RGB pixels as MMaDA takes them, and pixels to images."""

from __future__ import annotations

import os
import struct
import warnings
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

Source = str | os.PathLike[str] | IO[bytes] | Image.Image

_LONGEST = 16  # sides further apart than this are cut before they are scaled: the middle alone is kept anyway


def open_image(source: Source) -> Image.Image:
    """One RGB image of a file, an open file or a Pillow image of any mode; the first frame of an animation.

    Turned upright as its EXIF orientation says, if that can be read. Transparent pixels are laid over white; 16 bits a
    channel are scaled to 8, and so are 32-bit integers above 255. (MMaDA's own code drops the alpha channel and clips
    16-bit grey; for other images the result is the same.)

    Raises:
        TypeError: ``source`` is none of those; bytes go into an ``io.BytesIO``.
        FileNotFoundError: no such file.
        ValueError: not an image, a truncated one, one without pixels or with more than twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, or one of floating-point pixels, whose range is unknown. Names the source.
    """
    if not isinstance(source, str | os.PathLike | Image.Image) and not hasattr(source, "read"):
        kind = type(source).__name__
        raise TypeError(f"source: expected a path, an open binary file or a Pillow image, got {kind}")
    name = f"image {_name(source)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but not yet an error
        try:
            image = source if isinstance(source, Image.Image) else Image.open(source)
            width, height = image.size
            if width * height == 0:
                raise ValueError(f"{name}: has no pixels ({width} x {height})")
            image.load()
            return _as_rgb(_upright(image), name)
        except FileNotFoundError:
            raise
        except UnidentifiedImageError:
            raise ValueError(f"{name}: is not an image that Pillow can read") from None
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}: {error}") from error
        except (OSError, SyntaxError, EOFError) as error:  # what Pillow's plugins raise for a broken file
            raise ValueError(f"{name}: is broken ({error})") from error


def to_pixels(source: Source, size: int, fit: Literal["crop", "squash"] = "crop") -> Tensor:
    """Pixels as the image tokenizer takes them: (3, size, size) float32 in [-1, 1].

    Args:
        source: as for :func:`open_image`.
        size: side of the square.
        fit: "crop": scale the shorter side to ``size`` (bicubic) and keep the middle, as MMaDA does for pictures;
            "squash": scale both sides to ``size``, as it does for diagrams and documents.

    Raises:
        ValueError: a bad ``size`` or ``fit``, or what :func:`open_image` refuses.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size: expected a positive integer, got {size!r}")
    if fit not in ("crop", "squash"):
        raise ValueError(f"fit: expected 'crop' or 'squash', got {fit!r}")
    image = open_image(source)
    image = image.resize((size, size), Image.Resampling.BICUBIC) if fit == "squash" else _middle(image, size)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def from_pixels(pixels: Tensor) -> list[Image.Image]:
    """Images of (B, 3, H, W) in [-1, 1]; what lies outside is clipped."""
    if pixels.dim() != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels: expected shape (B, 3, H, W), got {tuple(pixels.shape)}")
    bytes_ = ((pixels.detach().float().cpu() + 1) * 127.5).clamp(0, 255).byte()
    return [Image.fromarray(array) for array in bytes_.permute(0, 2, 3, 1).contiguous().numpy()]


def _middle(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short, long = sorted((width, height))
    if long > _LONGEST * short:
        keep = _LONGEST * short
        left, top = (max(side - keep, 0) // 2 for side in (width, height))
        image = image.crop((left, top, left + min(width, keep), top + min(height, keep)))
        width, height = image.size
        short, long = sorted((width, height))
    scaled = size * long // short
    width, height = (size, scaled) if width <= height else (scaled, size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in (width, height))
    return image.crop((left, top, left + size, top + size))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (ValueError, struct.error, SyntaxError):  # EXIF that is broken; the pixels are not
        return image


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, in one of four notations, or 32
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{name}: integer pixels must lie in [0, 65535], got {values.min()} to {values.max()}")
        eight_bits = image.mode == "I" and values.max() <= 255
        image = Image.fromarray((values if eight_bits else values // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError(f"{name}: has floating-point pixels, of which nothing tells the range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _name(source: Source) -> str:
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"in memory ({source.mode})"
    if isinstance(source, str | os.PathLike):
        return str(source)
    return str(getattr(source, "name", "in memory"))
