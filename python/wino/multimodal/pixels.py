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

#: What is read of Pillow's: none that starts another program, as PostScript would.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
#: Above that a picture is refused: decoded and turned upright it takes about a gigabyte.
MOST_PIXELS = 1 << 27
_ROWS = 256
_LONGEST = 16  # sides further apart than this are cut before they are scaled: the middle alone is kept anyway


def open_image(source: Source) -> Image.Image:
    """One RGB image of a file, an open file or a Pillow image of any mode; the first frame of an animation.

    Turned upright as its EXIF orientation says, if that can be read. Transparent pixels are laid over white; 16 bits a
    channel are scaled to 8, and so are 32-bit integers above 255. (MMaDA's own code drops the alpha channel and clips
    16-bit grey; for other images the result is the same.)

    Raises:
        TypeError: ``source`` is none of those; bytes go into an ``io.BytesIO``.
        FileNotFoundError: no such file.
        ValueError: not an image of one of ``FORMATS``, a truncated one, one without pixels or with more than
            ``MOST_PIXELS`` (told before it is decoded), or one of floating-point pixels, whose range is unknown. Names
            the source.
    """
    if not isinstance(source, str | os.PathLike | Image.Image) and not hasattr(source, "read"):
        kind = type(source).__name__
        raise TypeError(f"source: expected a path, an open binary file or a Pillow image, got {kind}")
    name = f"image {_name(source)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MOST_PIXELS is what counts
        try:
            image = source if isinstance(source, Image.Image) else _opened(source)
            width, height = image.size
            if not 0 < width * height <= MOST_PIXELS:
                raise ValueError(f"has {width} x {height} pixels, expected 1 to {MOST_PIXELS}")
            image.load()
            return _as_rgb(_upright(image))
        except FileNotFoundError:
            raise
        except UnidentifiedImageError:
            raise ValueError(f"{name}: is not an image of the formats {', '.join(FORMATS)}") from None
        except (ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{name}: {error}") from error
        except Exception as error:  # Pillow's plugins raise what they come across in a broken file
            raise ValueError(f"{name}: is broken ({error})") from error


def _opened(source: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    Image.init()  # knows what this Pillow was built with
    return Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])


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


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, in one of four notations, or 32
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"integer pixels must lie in [0, 65535], got {values.min()} to {values.max()}")
        eight_bits = image.mode == "I" and values.max() <= 255
        image = Image.fromarray((values if eight_bits else values // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("has floating-point pixels, of which nothing tells the range")
    if not image.has_transparency_data:
        return image.convert("RGB")
    width, height = image.size
    seen = Image.new("RGB", image.size)
    for top in range(0, height, _ROWS):  # a few rows at a time: of a large picture four copies would be gigabytes
        rows = image.crop((0, top, width, min(top + _ROWS, height))).convert("RGBA")
        white = Image.new("RGBA", rows.size, (255, 255, 255, 255))
        seen.paste(Image.alpha_composite(white, rows).convert("RGB"), (0, top))
    return seen


def _name(source: Source) -> str:
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"in memory ({source.mode})"
    if isinstance(source, str | os.PathLike):
        return str(source)
    return str(getattr(source, "name", "in memory"))
