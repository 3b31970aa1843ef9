"""Normalisation and augmentation of images.

Every result is (N, C, H, W) and channels-last in memory: x.transpose(0, 2, 3, 1) is C-contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .. import backends

Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]


def channel_statistics(images: NDArray[np.uint8], *, per_pixel_mean: bool = False) -> Statistics:
    """Measure the mean and standard deviation of images uint8 (n, C, H, W), on the scale 0 to 1.

    Both are (C, 1, 1); with `per_pixel_mean` the mean is (C, H, W), as in the ResNet paper
    (arXiv 1512.03385, section 4.2), and the deviation is taken from it.
    """
    _check("channel_statistics", images)
    if not len(images):
        raise ValueError("channel_statistics: got no images; expected at least one")
    # Sums of integers are exact in float64: the variance below suffers no cancellation.
    mean = images.mean(axis=0, dtype=np.float64)
    square = np.einsum("nchw,nchw->chw", images, images, dtype=np.float64) / len(images)
    if not per_pixel_mean:
        mean = mean.mean(axis=(1, 2), keepdims=True)
    std = np.sqrt((square - mean**2).mean(axis=(1, 2), keepdims=True))
    return mean / 255, np.where(std > 0, std, 255) / 255  # a constant channel is left as it is


def normalize(
    images: NDArray[np.uint8], mean: ArrayLike, std: ArrayLike, *, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """Turn images uint8 (N, C, H, W) into (images / 255 - mean) / std."""
    _check("normalize", images)
    N, C, H, W = images.shape
    # (H*W*C,) each: NumPy is quick on long rows and slow on many short ones
    mean, std = (np.broadcast_to(a, (C, H, W)).transpose(1, 2, 0).ravel() for a in (mean, std))
    rows = images.transpose(0, 2, 3, 1).reshape(N, H * W * C)
    x: NDArray[Any] = rows * (1 / (255 * std)).astype(dtype)
    x -= (mean / std).astype(dtype)
    return x.reshape(N, H, W, C).transpose(0, 3, 1, 2)


def crop_and_flip(
    x: NDArray[Any], offsets: NDArray[np.integer], flips: NDArray[np.bool_], *, padding: int = 4
) -> NDArray[Any]:
    """Shift each image of x (N, C, H, W) by up to `padding` pixels, mirror it where `flips` says.

    offsets (N, 2) are top and left of the crop in the padded image, 0 to 2 * padding; flips is
    (N,). Padding is with zero and after normalisation, so with the mean, as in the ResNet paper
    (section 4.2); torchvision's usual recipe pads the raw pixels, so with black.
    """
    N = len(x)
    if offsets.shape != (N, 2) or flips.shape != (N,):
        raise ValueError(
            f"crop_and_flip: offsets are {offsets.shape} and flips {flips.shape}; "
            f"expected ({N}, 2) and ({N},) for {N} images"
        )
    if N and not 0 <= offsets.min() <= offsets.max() <= 2 * padding:
        raise ValueError(
            f"crop_and_flip: offsets run from {offsets.min()} to {offsets.max()}; "
            f"expected 0 to {2 * padding} for padding {padding}"
        )
    y: NDArray[Any] = backends.get("numpy").crop_and_flip(x, offsets, flips, padding=padding)
    return y


def random_crop_and_flip(
    x: NDArray[Any], rng: np.random.Generator, *, padding: int = 4
) -> NDArray[Any]:
    """Apply crop_and_flip with random offsets, and a flip for every other image on average."""
    offsets = rng.integers(0, 2 * padding + 1, (len(x), 2))
    return crop_and_flip(x, offsets, rng.random(len(x)) < 0.5, padding=padding)


def _check(name: str, images: NDArray[Any]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{name}: images are {images.dtype} {images.shape}; expected uint8 (N, C, H, W)"
        )
