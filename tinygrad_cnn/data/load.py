"""Data sets by their names."""

from __future__ import annotations

import os

import numpy as np

from ..suggestion import suggestion
from .archives import ARCHIVES
from .cifar import train_and_test, where
from .dataset import Dataset
from .download import download
from .folder import image_folder
from .shapes import shapes

NAMES = (*ARCHIVES, "shapes", "folder:PATH")


def open_data(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    images: int | None = None,
    seed: int = 0,
    size: int = 32,
    border: float = 0.0,
    fetch: bool = True,
) -> tuple[Dataset, Dataset]:
    """Give (training set, test set) of "cifar10", "cifar100", "shapes" or "folder:PATH".

    A CIFAR archive that does not lie in data_folder(data_dir) is downloaded, unless `fetch` is
    False. `images` takes only the first so many to train and a fifth of that to test; of shapes,
    so many are drawn, else 10,000. `seed` draws the shapes, and what a folder without train and
    test sets aside; `size` and `border` are image_folder's. Raises DataError where the data can't
    be had.
    """
    check_name(name)
    if images is not None and images < 5:
        raise ValueError(f"images is {images}; expected at least 5, to test on a fifth")
    if name == "shapes":
        n = images or 10_000
        return shapes(n, seed=seed), shapes(n // 5, seed=seed, train=False)
    if name.startswith("folder:"):
        path = name.removeprefix("folder:")
        train, test = image_folder(path, size=size, border=border, seed=seed)
    else:
        train, test = _archived(name, data_dir, fetch=fetch)
    return _first(train, images), _first(test, images and images // 5)


def _archived(
    name: str, data_dir: str | os.PathLike[str] | None, *, fetch: bool
) -> tuple[Dataset, Dataset]:
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
    """Open CIFAR-10 where `data_dir` names its folder, else the built-in shapes."""
    name = "shapes" if data_dir is None else "cifar10"
    return open_data(name, data_dir, images=images, seed=seed, fetch=False)


def _first(dataset: Dataset, n: int | None) -> Dataset:
    return dataset if n is None else dataset.subset(np.arange(min(n, len(dataset))))
