"""Which classes are taken for which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .figure import figure

READABLE = 20  # classes; with more, a cell is too small for its number
LISTED = 20  # of the commonest confusions, beside a matrix whose cells have no numbers


def confusion_matrix(
    targets: ArrayLike, predictions: ArrayLike, n_classes: int
) -> NDArray[np.int64]:
    """Count the images (true class, predicted class) -> (n_classes, n_classes)."""
    true, predicted = np.asarray(targets), np.asarray(predictions)
    if true.shape != predicted.shape or true.ndim != 1:
        raise ValueError(
            f"confusion_matrix: targets are {true.shape}, predictions {predicted.shape}; "
            "expected (n,) both"
        )
    matrix = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(matrix, (true.astype(np.intp), predicted.astype(np.intp)), 1)
    return matrix


def plot_confusion(
    matrix: NDArray[np.integer[Any]], classes: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draw a confusion matrix (true, predicted) as a PNG; each row is in % of its class.

    Colours grow with the square root, so that rare confusions are seen beside the diagonal.
    """
    K = len(classes)
    if np.shape(matrix) != (K, K):
        raise ValueError(f"plot_confusion: the matrix is {np.shape(matrix)}; expected {(K, K)}")
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = 2 + 0.42 * K if K <= READABLE else 12
    with figure(path, size + (0 if K <= READABLE else 2.6), size) as drawing:
        axes = drawing.subplots()
        _draw(axes, share, classes, fontsize=9 if K <= READABLE else max(3.5, 6.5 - K / 60))
        correct = np.trace(matrix) / max(matrix.sum(), 1)
        axes.set_title(f"{correct:.1%} of {matrix.sum():,} images right; rows in %", pad=8)
        (_write_numbers if K <= READABLE else _list_confusions)(axes, matrix, share, classes)


def _draw(axes: Any, share: NDArray[Any], classes: Sequence[str], fontsize: float) -> None:
    from matplotlib.colors import PowerNorm

    axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=fontsize)
    axes.set_yticks(range(len(classes)), classes, fontsize=fontsize)
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _write_numbers(
    axes: Any, matrix: NDArray[Any], share: NDArray[Any], classes: Sequence[str]
) -> None:
    """Write each cell's share, in white on the dark ones."""
    for (i, j), percent in np.ndenumerate(share):
        if matrix[i, j]:
            text = f"{percent:.0f}" if percent >= 0.95 else f"{percent:.1f}"
            colour = "white" if percent > 40 else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)


def _list_confusions(
    axes: Any, matrix: NDArray[Any], share: NDArray[Any], classes: Sequence[str]
) -> None:
    """Name the commonest confusions beside the matrix."""
    wrong = matrix * (1 - np.eye(len(classes), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    pairs = [divmod(int(k), len(classes)) for k in order if wrong.flat[k]]
    lines = [f"{wrong[i, j]:>4}  {classes[i]} as {classes[j]}" for i, j in pairs]
    axes.text(
        1.02, 1, "commonest mistakes\n\n" + "\n".join(lines), transform=axes.transAxes, va="top",
        fontsize=8, linespacing=1.5,
    )  # fmt: skip
