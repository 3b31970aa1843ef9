"""Data sets by their names."""

from __future__ import annotations

import os

import numpy as np

from ..suggestion import suggestion
from .archives import ARCHIVES
from .cifar import cifar10, train_and_test, where
from .dataset import Dataset
from .download import download
from .folder import image_folder
from .shapes import shapes

NAMES = (*ARCHIVES, "shapes", "folder:PATH")


def open_data(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    size: int = 32,
    fetch: bool = True,
) -> tuple[Dataset, Dataset]:
    """Give (training set, test set) of "cifar10", "cifar100", "shapes" or "folder:PATH".

    A CIFAR archive that does not lie in data_folder(data_dir) is downloaded, unless `fetch` is
    False. `seed` draws the shapes (10,000 and 2,000), and what a folder without train and test
    sets aside; `size` is that of a folder's images. Raises DataError where the data can't be had.
    """
    check_name(name)
    if name == "shapes":
        return shapes(10_000, seed=seed), shapes(2_000, seed=seed, train=False)
    if name.startswith("folder:"):
        return image_folder(name.removeprefix("folder:"), size=size, seed=seed)
    archive = ARCHIVES[name]
    if fetch and where(archive, data_dir) is None:
        download(archive, data_dir)
    return train_and_test(archive, data_dir)


def check_name(name: str) -> None:
    """Refuse a name that open_data does not know."""
    kind, colon, path = name.partition(":")
    if name in NAMES[:-1] or (kind == "folder" and path):
        return
    typed = f"{kind}:PATH" if colon else name  # what the path is doesn't matter
    raise ValueError(f"no data set {name!r}{suggestion(typed, NAMES)}")


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
