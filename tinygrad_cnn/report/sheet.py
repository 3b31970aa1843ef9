"""A data set at a glance: some images of each class, as one picture."""

from __future__ import annotations

import os

import numpy as np

from ..data import Dataset
from .figure import figure

GAP = 2  # pixels between two images


def plot_sheet(dataset: Dataset, path: str | os.PathLike[str], *, per_class: int = 10) -> None:
    """Draw a row for each class, its name and its first images, as a PNG."""
    K, (H, W) = len(dataset.classes), dataset.images.shape[2:]
    sheet = np.full((K, H + GAP, per_class, W + GAP, 3), 255, np.uint8)
    for row in range(K):
        for column, k in enumerate(np.flatnonzero(dataset.labels == row)[:per_class]):
            sheet[row, :H, column, :W] = dataset.images[k].transpose(1, 2, 0)
    with figure(path, 1.5 + 0.45 * per_class, 0.2 + 0.45 * K) as drawing:
        axes = drawing.subplots()
        axes.imshow(sheet.reshape(K * (H + GAP), -1, 3), interpolation="nearest")
        axes.set_yticks(np.arange(K) * (H + GAP) + H / 2, dataset.classes)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
