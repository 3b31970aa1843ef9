"""Pictures of what the diagnoses measure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from .figure import COLOURS, HELD_OUT, TRAIN, figure, whole_numbers


def plot_lr_range(
    lrs: Sequence[float], losses: Sequence[float], smooth: Sequence[float],
    suggestion: float | None, path: str | os.PathLike[str],
) -> None:  # fmt: skip
    """Draw the loss by learning rate, and the suggested one, as a PNG."""
    with figure(path, 5, 3.2) as drawing:
        axes = drawing.subplots()
        axes.set_title("learning-rate range test")
        axes.plot(lrs, losses, color=TRAIN, alpha=0.3, linewidth=1, label="loss of each step")
        axes.plot(lrs, smooth, color=TRAIN, linewidth=2, label="smoothed")
        if suggestion is not None:
            axes.axvline(suggestion, color=HELD_OUT, linestyle="--", label=f"lr {suggestion:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        low, high = min(losses), max(losses[: 1 + len(losses) // 4])  # not where it diverges
        axes.set_ylim(low - 0.1 * (high - low or 1), high + 0.3 * (high - low or 1))
        axes.legend(loc="lower left")


def plot_responses(responses: Mapping[str, Sequence[float]], path: str | os.PathLike[str]) -> None:
    """Draw each model's standard deviations by layer, in their order and sorted, as a PNG.

    He et al., arXiv 1512.03385, figure 7.
    """
    with figure(path, 6.5, 5) as drawing:
        ordered, ranked = drawing.subplots(2, 1)
        for (name, stds), colour in zip(responses.items(), COLOURS * len(responses), strict=False):
            at = dict(color=colour, marker="o", label=name)
            ordered.plot(range(1, len(stds) + 1), stds, **at)
            ranked.plot(range(1, len(stds) + 1), sorted(stds, reverse=True), **at)
        ordered.set(title="layer responses", ylabel="standard deviation")
        ranked.set(ylabel="standard deviation")
        layers = [float(i) for i in range(1, 1 + max(map(len, responses.values())))]
        for axes, label in (ordered, "layer"), (ranked, "layer, sorted by its response"):
            whole_numbers(axes, layers, label)
            axes.set_ylim(bottom=0)
        drawing.legend(*ordered.get_legend_handles_labels(), loc="outside right upper")
