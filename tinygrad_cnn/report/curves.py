"""The course of a training: loss, error and learning rate by epoch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from .figure import HELD_OUT, OTHER, TRAIN, errors, figure, scale, series, whole_numbers


def plot_curves(history: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw loss, error in % and learning rate of a history, a dict per epoch, as a PNG.

    Its keys: epoch, lr, train_loss, train_accuracy, validation_loss, validation_accuracy. What is
    missing, None or NaN is left out of the lines, and epochs without a training loss are marked.
    """
    records = list(history)
    epochs = series(records, "epoch")
    with figure(path, 10, 3) as drawing:
        losses, error, rate = drawing.subplots(1, 3)
        _lines(losses, "loss", epochs, *_both(records, "loss", series))
        _lines(error, "error (%)", epochs, *_both(records, "accuracy", errors))
        rate.set_title("learning rate")
        rate.plot(epochs, series(records, "lr"), color=OTHER, **_marker(epochs))
        losses.legend()
        _note_best(error)
        _mark_missing(losses, records)
        for axes in (losses, error, rate):
            whole_numbers(axes, epochs)
            scale(axes)


def _both(records: list[dict[str, Any]], what: str, read: Any) -> tuple[list[float], list[float]]:
    return read(records, f"train_{what}"), read(records, f"validation_{what}")


def _lines(
    axes: Any, title: str, epochs: list[float], train: list[float], held_out: list[float]
) -> None:
    """Draw training and, if there is one, validation."""
    axes.set_title(title)
    axes.plot(epochs, train, color=TRAIN, label="train", **_marker(train))
    if any(map(math.isfinite, held_out)):
        axes.plot(epochs, held_out, color=HELD_OUT, label="validation", **_marker(held_out))


def _marker(values: list[float]) -> dict[str, str]:
    """Mark the points of a short line: one that stands alone would not be seen."""
    return {"marker": "o"} if sum(map(math.isfinite, values)) <= 12 else {}


def _note_best(axes: Any) -> None:
    """Write the smallest error, of validation if there is one, at its point."""
    line = axes.lines[-1]
    points = [(y, x) for x, y in line.get_xydata() if math.isfinite(y)]
    if points:
        best, epoch = min(points)
        axes.annotate(
            f"{best:.1f} %", (epoch, best), xytext=(0, -4), textcoords="offset points",
            ha="center", va="top", color=line.get_color(), fontsize=8,
        )  # fmt: skip


def _mark_missing(axes: Any, records: list[dict[str, Any]]) -> None:
    """Shade the epochs whose training loss is no number."""
    losses = series(records, "train_loss")
    lost = [e for e, y in zip(series(records, "epoch"), losses, strict=True) if math.isnan(y)]
    for epoch in lost:
        axes.axvspan(epoch - 0.5, epoch + 0.5, color="#F0E0D6", linewidth=0)
    if lost:
        axes.text(
            0.03, 0.05, "shaded: the loss was no number", transform=axes.transAxes,
            color=HELD_OUT, fontsize=8,
        )  # fmt: skip
