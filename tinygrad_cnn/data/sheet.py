"""A data set at a glance: some images of each class, as one picture."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset

if TYPE_CHECKING:
    from PIL import Image

LABEL_WIDTH, GAP, SCALE = 120, 2, 2  # in pixels; small images are doubled to be seen


def draw_sheet(dataset: Dataset, path: str | os.PathLike[str], *, per_class: int = 10) -> None:
    """Draw a row for each class, its name and its first images, into a file such as sheet.png."""
    from PIL import Image, ImageDraw

    _, _, H, W = dataset.images.shape
    height, width = SCALE * H + GAP, SCALE * W + GAP
    size = (LABEL_WIDTH + per_class * width, len(dataset.classes) * height)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(dataset.classes):
        draw.text((4, row * height + height // 3), name, fill="black")
        for column, k in enumerate(np.flatnonzero(dataset.labels == row)[:per_class]):
            place = LABEL_WIDTH + column * width, row * height
            sheet.paste(Image.fromarray(_enlarged(dataset.images[k])), place)
    _save(sheet, Path(path))


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    pixels = image.transpose(1, 2, 0)  # (H, W, C)
    rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return np.ascontiguousarray(rgb.repeat(SCALE, axis=0).repeat(SCALE, axis=1))


def _save(sheet: Image.Image, path: Path) -> None:
    from PIL import Image

    suffix = path.suffix.lower()
    if suffix not in Image.registered_extensions():
        raise ValueError(
            f"{path} ends in {path.suffix!r}; expected .png, .jpg or another picture's"
        )
    encoded = io.BytesIO()
    sheet.save(encoded, Image.registered_extensions()[suffix])
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(encoded.getvalue())
    part.replace(path)
