"""One call for the two data sets of the course."""

from __future__ import annotations

import os
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from .cifar import cifar10, cifar100
from .dataset import DataError, Dataset
from .shapes import shapes


def load(
    data_dir: str | os.PathLike[str] | None = None, *, images: int = 10_000, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """Give (training set, test set): the first `images` and a fifth as many.

    They are CIFAR-10's where `data_dir` names its folder, else the built-in shapes.
    """
    if images < 5:
        raise ValueError(f"load: images is {images}; expected at least 5, to test on a fifth")
    if data_dir is None:
        return shapes(images, seed=seed), shapes(images // 5, seed=seed, train=False)
    train, test = cifar10(data_dir), cifar10(data_dir, train=False)
    return _first(train, images), _first(test, images // 5)


def _first(dataset: Dataset, n: int) -> Dataset:
    return dataset.subset(np.arange(min(n, len(dataset))))


def open_data(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """Give (training set, test set) of "shapes", "cifar10" or "cifar100"."""
    if name == "shapes":
        return shapes(10_000, seed=seed), shapes(2_000, seed=seed, train=False)
    readers = {"cifar10": cifar10, "cifar100": cifar100}
    if name not in readers:
        near = get_close_matches(name, ("shapes", *readers), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no data {name!r}; {hint}There are: shapes, {', '.join(readers)}")
    read = readers[name]
    return read(data_dir), read(data_dir, train=False)


def read_image(
    path: str | os.PathLike[str], shape: tuple[int, int, int] = (3, 32, 32)
) -> NDArray[np.uint8]:
    """Read a picture as uint8 (C, H, W), resized."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize(shape[:0:-1]))
    except UnidentifiedImageError:
        raise DataError(f"{path} is no image that Pillow can read") from None
    return pixels.transpose(2, 0, 1)
