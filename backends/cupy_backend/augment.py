"""Training images: gathered, normalised, shifted and mirrored on the device, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from ..base import Array, nhwc
from .launch import Program, blocks

if TYPE_CHECKING:
    from . import CupyBackend

FLOATS, BYTES = (f"crop_and_flip<T, {pixel}>" for pixel in ("T", "unsigned char"))
AUGMENT = Program("augment.cu", FLOATS, BYTES)
THREADS = 256

BATCH = numpy.dtype([(field, "i4") for field in ("N", "H", "W", "C", "padding")])


def crop_and_flip(
    backend: CupyBackend, images: Array, offsets: Array, flips: Array, *, padding: int
) -> Array:
    """Pad images (N, C, H, W) with zeros, crop (H, W) at offsets (N, 2), mirror by flips (N,)."""
    out = backend.empty(images.shape, images.dtype)
    _launch(backend, FLOATS, (images, None, offsets, flips, None, None, out), padding)
    return out


def gather_crop_and_flip(
    backend: CupyBackend, images: Array, chosen: Array, offsets: Array, flips: Array,
    scale: Array, shift: Array, *, padding: int,
) -> Array:  # fmt: skip
    """Do crop_and_flip(scale * images[chosen] - shift) for a data set that lies on the device.

    images are uint8 (M, C, H, W), scale and shift (H, W, C) of the result's dtype.
    """
    out = backend.empty((len(chosen), *images.shape[1:]), scale.dtype)
    _launch(backend, BYTES, (images, chosen, offsets, flips, scale, shift, out), padding)
    return out


def _launch(backend: CupyBackend, kernel: str, arrays: tuple[Array, ...], padding: int) -> None:
    """Launch a kernel with a thread for each value of `out`, the last of its arrays."""
    asarray, (images, chosen, offsets, flips, scale, shift, out) = backend.xp.asarray, arrays
    n, c, h, w = out.shape
    args = (
        backend.images(images),
        None if chosen is None else asarray(chosen, "int64"),
        backend.flat(asarray(offsets, "int64")),
        asarray(flips, bool), scale, shift, nhwc(out), numpy.array((n, h, w, c, padding), BATCH),
    )  # fmt: skip
    backend.launch(AUGMENT, kernel, out.dtype, (blocks(out.size, THREADS),), THREADS, args)
