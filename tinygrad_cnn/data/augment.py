"""Normalisation and augmentation of images.

Every result is (N, C, H, W) and channels-last in memory: x.transpose(0, 2, 3, 1) is C-contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .. import backends

Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]
# Takes normalised images (N, C, H, W) and a generator; gives new images.
Augment = Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]


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


def colour_covariance(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Measure the covariance (C, C) of a pixel's colours over all images, on the scale 0 to 1."""
    _check("colour_covariance", images)
    if not images.size:
        raise ValueError("colour_covariance: got no images; expected at least one")
    mean = images.mean(axis=(0, 2, 3), dtype=np.float64)
    square = np.zeros((len(mean), len(mean)))
    for image in images:  # one by one: all as float64 would take eight times their memory
        colours = image.reshape(len(mean), -1).astype(np.float64)
        square += colours @ colours.T  # sums of integers, so exact
    pixels = images.size // len(mean)
    covariance: NDArray[np.float64] = (square / pixels - np.outer(mean, mean)) / 255**2
    return covariance


def normalize(
    images: NDArray[np.uint8], mean: ArrayLike, std: ArrayLike, *, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """Turn images uint8 (N, C, H, W) into (images / 255 - mean) / std."""
    _check("normalize", images)
    N, C, H, W = images.shape
    scale, shift = scale_and_shift(mean, std, (C, H, W), dtype)
    # NumPy is quick on long rows and slow on many short ones
    rows = images.transpose(0, 2, 3, 1).reshape(N, H * W * C)
    x: NDArray[Any] = rows * scale.ravel()
    x -= shift.ravel()
    return x.reshape(N, H, W, C).transpose(0, 3, 1, 2)


def scale_and_shift(
    mean: ArrayLike, std: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give a and b, each (H, W, C), of (x / 255 - mean) / std = a * x - b."""
    mean, std = (np.broadcast_to(s, shape).transpose(1, 2, 0) for s in (mean, std))
    return (1 / (255 * std)).astype(dtype, order="C"), (mean / std).astype(dtype, order="C")


def crop_and_flip(
    x: NDArray[Any], offsets: NDArray[np.integer], flips: NDArray[np.bool_], *, padding: int = 4
) -> NDArray[Any]:
    """Shift each image of x (N, C, H, W) by up to `padding` pixels, mirror it where `flips` says.

    offsets (N, 2) are top and left of the crop in the padded image, 0 to 2 * padding; flips is
    (N,). Padding is with zero and after normalisation, so with the mean, as in the ResNet paper
    (section 4.2); torchvision's usual recipe pads the raw pixels, so with black.
    """
    _check_crops(len(x), offsets, flips, padding)
    y: NDArray[Any] = backends.get("numpy").crop_and_flip(x, offsets, flips, padding=padding)
    return y


def normalized_crop_and_flip(
    images: NDArray[np.uint8], offsets: NDArray[np.integer], flips: NDArray[np.bool_],
    mean: ArrayLike, std: ArrayLike, *, padding: int = 4, dtype: DTypeLike = np.float32,
) -> NDArray[Any]:  # fmt: skip
    """Do crop_and_flip(normalize(images, mean, std), offsets, flips), to the last bit, in one pass.

    One image after the other is normalised, put into a frame of zeros and cut out of it; what lies
    between the bytes and the result never leaves the processor's nearest cache.
    """
    _check("normalized_crop_and_flip", images)
    _check_crops(len(images), offsets, flips, padding)
    N, C, H, W = images.shape
    scale, shift = scale_and_shift(mean, std, (C, H, W), dtype)
    pixels = np.empty((H, W, C), dtype)
    frame = np.zeros((H + 2 * padding, W + 2 * padding, C), dtype)
    middle = frame[padding : padding + H, padding : padding + W]
    y: NDArray[Any] = np.empty((N, H, W, C), dtype)
    for i, (top, left) in enumerate(offsets.tolist()):
        np.multiply(images[i].transpose(1, 2, 0), scale, out=pixels)
        middle[:] = np.subtract(pixels, shift, out=pixels)
        crop = frame[top : top + H, left : left + W]
        y[i] = crop[:, ::-1] if flips[i] else crop
    return y.transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class RandomCropAndFlip:
    """Apply crop_and_flip with random offsets and, if `flip`, to every other image on average."""

    padding: int = 4
    flip: bool = True

    def __call__(self, x: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Augment normalised images (N, C, H, W)."""
        return crop_and_flip(x, *self.draw(len(x), rng), padding=self.padding)

    def draw(
        self, n: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """Draw offsets (n, 2) and flips (n,) for crop_and_flip."""
        offsets = rng.integers(0, 2 * self.padding + 1, (n, 2))
        return offsets, rng.random(n) < (0.5 if self.flip else 0.0)


random_crop_and_flip = RandomCropAndFlip()


@dataclass(frozen=True, eq=False)
class ColourJitter:
    """Add a random colour to each image, mostly along the colours in which pixels differ most.

    AlexNet's (Krizhevsky et al. 2012, section 4.1): p1 a1 l1 + p2 a2 l2 + p3 a3 l3, where p and l
    are eigenvectors and eigenvalues of the colours' covariance V, and a is normal with deviation
    `deviation`. That has the distribution of V a, for which no eigenvectors are needed. As l is a
    variance, the scale counts: it is that of colour_covariance, 0 to 1. `std` (C, 1, 1) is what
    the images were divided by when they were normalised.
    """

    covariance: NDArray[np.float64]
    std: NDArray[np.float64]
    deviation: float = 0.1

    def __call__(self, x: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Augment normalised images (N, C, H, W)."""
        N, C, _, _ = x.shape
        colours = rng.normal(0, self.deviation, (N, C)) @ self.covariance / self.std.ravel()
        y: NDArray[Any] = x + colours[:, :, None, None].astype(x.dtype)
        return y


@dataclass(frozen=True)
class Cutout:
    """Hide a square of size x size pixels in each image behind the mean colour.

    Its middle is anywhere in the image, so that part of it may lie outside. DeVries & Taylor,
    arXiv 1708.04552.
    """

    size: int

    def __call__(self, x: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Augment normalised images (N, C, H, W)."""
        y = x.copy(order="K")
        corners = rng.integers(0, x.shape[2:], (len(x), 2)) - self.size // 2
        for image, (top, left) in zip(y, corners.tolist(), strict=True):
            image[:, max(top, 0) : top + self.size, max(left, 0) : left + self.size] = 0
        return y


def _check_crops(
    n: int, offsets: NDArray[np.integer], flips: NDArray[np.bool_], padding: int
) -> None:
    if offsets.shape != (n, 2) or flips.shape != (n,):
        raise ValueError(
            f"crop_and_flip: offsets are {offsets.shape} and flips {flips.shape}; "
            f"expected ({n}, 2) and ({n},) for {n} images"
        )
    if n and not 0 <= offsets.min() <= offsets.max() <= 2 * padding:
        raise ValueError(
            f"crop_and_flip: offsets run from {offsets.min()} to {offsets.max()}; "
            f"expected 0 to {2 * padding} for padding {padding}"
        )


def _check(name: str, images: NDArray[Any]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{name}: images are {images.dtype} {images.shape}; expected uint8 (N, C, H, W)"
        )
