"""Labelled images in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .randomness import rng_at


class DataError(RuntimeError):
    """Say why a data set cannot be had, and what to do about it."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Hold images uint8 (n, C, H, W), labels int64 (n,), the classes' names and the set's own."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        images, labels, classes = self.images, self.labels, len(self.classes)
        types = images.dtype == np.uint8 and labels.dtype == np.int64
        if not types or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"Dataset: images are {images.dtype} {images.shape}, labels {labels.dtype} "
                f"{labels.shape}; expected uint8 (n, C, H, W) and int64 (n,)"
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(
                f"Dataset: labels run from {labels.min()} to {labels.max()}; "
                f"expected 0 to {classes - 1} for {classes} classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[1:]))
        return f"Dataset({self.name!r}, {len(self)} images {size}, {len(self.classes)} classes)"

    def subset(self, indices: NDArray[np.integer]) -> Dataset:
        """Take the images at `indices`, in that order and channels-last in memory."""
        images = channels_last(self.images[indices])
        return replace(self, images=images, labels=self.labels[indices])


def split(dataset: Dataset, n_validation: int, *, seed: int) -> tuple[Dataset, Dataset]:
    """Set `n_validation` random images aside: (the others, these), both in their old order."""
    n = len(dataset)
    if not 0 < n_validation < n:
        raise ValueError(f"cannot hold out {n_validation} of {n} images; expected 1 to {n - 1}")
    aside = np.zeros(n, np.bool_)
    aside[rng_at(seed, "split").permutation(n)[:n_validation]] = True
    return dataset.subset(np.flatnonzero(~aside)), dataset.subset(np.flatnonzero(aside))


def channels_last(x: NDArray[Any]) -> NDArray[Any]:
    """Lay x (N, C, H, W) out in memory as (N, H, W, C), without a copy if it lies so already."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
