"""The curves of several runs in one picture."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .figure import COLOURS, DASHES, errors, figure, scale, series, whole_numbers
from .runs import Run


def plot_comparison(runs: Sequence[Run], path: str | os.PathLike[str]) -> None:
    """Draw loss and error of several runs by epoch as a PNG.

    The lines are of validation where every run has one, else of training.
    """
    held_out = all(any(_known(run, "validation_loss")) for run in runs)
    which = "validation" if held_out else "train"
    names = short_names([run.path for run in runs])
    with figure(path, 10, 3.4) as drawing:
        loss, error = drawing.subplots(1, 2)
        loss.set_title("loss")
        error.set_title("error (%)")
        for i, (run, name) in enumerate(zip(runs, names, strict=True)):
            at = dict(label=name, color=COLOURS[i % len(COLOURS)],
                      linestyle=DASHES[i // len(COLOURS) % len(DASHES)])  # fmt: skip
            epochs = series(run.history, "epoch")
            at |= {"marker": "o"} if len(epochs) <= 12 else {}
            loss.plot(epochs, series(run.history, f"{which}_loss"), **at)
            error.plot(epochs, errors(run.history, f"{which}_accuracy"), **at)
        for axes in (loss, error):
            axes.set_ylabel(which)
            whole_numbers(axes, series(max((r.history for r in runs), key=len), "epoch"))
            scale(axes)
        drawing.legend(*loss.get_legend_handles_labels(), loc="outside right upper")


def _known(run: Run, key: str) -> list[bool]:
    return [math.isfinite(value) for value in series(run.history, key)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name each folder by as few of its last parts as tell all of them apart.

    >>> short_names([Path("a/quick/1"), Path("b/quick/1"), Path("b/quick/2")])
    ['a/quick/1', 'b/quick/1', 'b/quick/2']
    >>> short_names([Path("runs/plain"), Path("runs/residual")])
    ['plain', 'residual']
    """
    parts: list[tuple[Any, ...]] = [path.absolute().parts for path in paths]
    for n in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(p[-n:]) for p in parts]
        if len(set(names)) == len(set(paths)):
            return names
    return [str(path) for path in paths]
