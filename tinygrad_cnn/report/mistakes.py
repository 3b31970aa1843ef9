"""The pictures that a model is most sure of and wrong about."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .figure import HELD_OUT, figure

COLUMNS = 8


def most_confident_mistakes(
    targets: NDArray[Any], probabilities: NDArray[Any], n: int
) -> NDArray[np.intp]:
    """Find the images whose wrong prediction has the largest probability, the largest first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != targets)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:n]


def plot_mistakes(
    images_uint8: NDArray[np.uint8], targets: ArrayLike, probabilities: ArrayLike,
    classes: Sequence[str], path: str | os.PathLike[str], n: int = 32,
) -> None:  # fmt: skip
    """Draw the n most confident mistakes among images (N, C, H, W) as a PNG.

    Above each stand the predicted class with its probability, from `probabilities` (N, K), and the
    true one.
    """
    targets, probabilities = np.asarray(targets), np.asarray(probabilities)
    if not len(images_uint8) == len(targets) == len(probabilities):
        raise ValueError(
            f"plot_mistakes: got {len(images_uint8)} images, {len(targets)} targets and "
            f"{len(probabilities)} rows of probabilities; expected as many of each"
        )
    found = most_confident_mistakes(targets, probabilities, n)
    rows = max(1, -(-len(found) // COLUMNS))
    with figure(path, 1.3 * COLUMNS, 1.65 * rows + 0.3) as drawing:
        drawing.suptitle(_title(targets, probabilities), x=0.01, ha="left", fontsize=9)
        axes = drawing.subplots(rows, COLUMNS, squeeze=False).ravel()
        for place in axes:
            place.set_axis_off()
        for place, i in zip(axes, found, strict=False):
            predicted = int(probabilities[i].argmax())
            text = f"{classes[predicted]} {_percent(probabilities[i, predicted])}"
            _show(place, images_uint8[i], text, f"is {classes[targets[i]]}")


def _title(targets: NDArray[Any], probabilities: NDArray[Any]) -> str:
    wrong = int((probabilities.argmax(axis=1) != targets).sum())
    return f"{wrong:,} of {len(targets):,} images wrong; the surest first: what it said, what it is"


def _percent(p: float) -> str:
    """Round down, so that only certainty is called 100 %."""
    return f"{np.floor(1000 * p) / 10:.1f} %" if p < 1 else "100 %"


def _show(axes: Any, image: NDArray[np.uint8], said: str, true: str) -> None:
    grey = image.shape[0] == 1
    picture = image[0] if grey else image.transpose(1, 2, 0)
    axes.imshow(picture, cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest")
    axes.text(0, 1.2, said, transform=axes.transAxes, fontsize=7, color=HELD_OUT)
    axes.text(0, 1.05, true, transform=axes.transAxes, fontsize=7)
