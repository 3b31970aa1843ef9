"""What every picture shares: its looks, and how it comes to lie in a file.

Dark on white whatever the user's matplotlib settings, and colours that colour-blind readers can
tell apart (Okabe & Ito, 2008). Nothing outside the `with` block is changed.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, HELD_OUT, OTHER = "#0072B2", "#D55E00", "#4D4D4D"
COLOURS = (TRAIN, HELD_OUT, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SPREAD = 30  # from the smallest loss to the largest; beyond, the axis is logarithmic
DASHES = ("-", "--", ":", "-.")

STYLE = {
    "figure.facecolor": "white", "savefig.dpi": 160, "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#808080",
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.8,
    "xtick.color": "#808080", "xtick.labelcolor": "black", "ytick.color": "#808080",
    "ytick.labelcolor": "black", "lines.linewidth": 1.5, "lines.markersize": 3.5,
    "legend.frameon": False,
}  # fmt: skip


@contextmanager
def figure(path: str | os.PathLike[str], width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure of so many inches; after the block it is a PNG at `path`, or nothing.

    It is drawn without pyplot, so no window, no global state and no figure that must be closed.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        drawing = Figure(figsize=(width, height), layout="constrained")
        yield drawing
        _save(drawing, Path(path))


def _save(drawing: Figure, path: Path) -> None:
    encoded = io.BytesIO()
    with warnings.catch_warnings():  # a box stands for what the font lacks of a class's name
        warnings.filterwarnings("ignore", "Glyph .* missing")
        drawing.savefig(encoded, format="png")
    atomic.write(path, encoded.getvalue())


def series(history: list[dict[str, Any]], key: str) -> list[float]:
    """Read one figure of every epoch; where it is missing, null or not finite: NaN."""
    values = [record.get(key) for record in history]
    return [v if isinstance(v, int | float) and math.isfinite(v) else math.nan for v in values]


def errors(history: list[dict[str, Any]], key: str) -> list[float]:
    """Turn accuracies into errors in %."""
    return [100 * (1 - accuracy) for accuracy in series(history, key)]


def scale(axes: Any) -> None:
    """Begin the y axis at 0; where one loss would flatten all the others, make it logarithmic."""
    values = [y for line in axes.lines for y in line.get_ydata() if math.isfinite(y)]
    if axes.get_title(loc="left") == "loss" and values and 0 < min(values) < max(values) / SPREAD:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.08 * max(values, default=1) or 1)


def whole_numbers(axes: Any, values: list[float], label: str = "epoch") -> None:
    """Name the x axis and put its ticks on whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.set_xlabel(label)
    if len(values) == 1:  # else the only tick is on no whole number
        axes.set_xlim(values[0] - 1, values[0] + 1)
