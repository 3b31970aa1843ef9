"""Pictures from files, as the networks want them."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .dataset import DataError

if TYPE_CHECKING:
    from PIL import Image

# What Pillow decodes by itself; some of its other formats start programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def read_image(
    path: str | os.PathLike[str], shape: tuple[int, int, int] = (3, 32, 32), *, border: float = 0.0
) -> NDArray[np.uint8]:
    """Read a picture as uint8 (C, H, W): C is 3 for colours or 1 for grey.

    It is turned upright as its camera noted (EXIF), laid on white where it is transparent, scaled
    until it covers H x W and cut to its middle. `border` is the part of it that is left out on each
    side, 0 to below 1/2. Raises DataError for a file that is no picture, is
    cut short, or claims more pixels than Pillow takes for safe.
    """
    from PIL import Image

    C, H, W = shape
    if C not in (1, 3) or min(H, W) < 1:
        raise ValueError(f"read_image: shape is {shape}; expected (1 or 3, height, width)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.draft(
                    "RGB", (2 * W, 2 * H)
                )  # a large JPEG is decoded at half its size or less
                pixels = np.asarray(_fitted(image, "RGB" if C == 3 else "L", (W, H), border))
    except Exception as error:  # a damaged file makes nearly every kind of error
        raise DataError(
            f"{os.fspath(path)} is no picture that can be read: {_why(error)}"
        ) from error
    return np.ascontiguousarray(pixels.reshape(H, W, C).transpose(2, 0, 1))


def _fitted(image: Image.Image, mode: str, size: tuple[int, int], border: float) -> Image.Image:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    return ImageOps.fit(_on_white(_eight_bits(upright)).convert(mode), size, bleed=border)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits to 8; Pillow's convert() would cut off all above 255."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown scale")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) // 256).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """Lay a transparent picture on white: what is hidden in its colours is arbitrary."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white


def _why(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    match error:
        case UnidentifiedImageError():
            return f"it is none of {', '.join(FORMATS)}"
        case Image.DecompressionBombWarning() | Image.DecompressionBombError():
            return f"it claims more than {Image.MAX_IMAGE_PIXELS:,} pixels"
        case OSError(strerror=str(reason)):
            return reason
    return " ".join(str(error).split()) or type(error).__name__
