"""What a run leaves to look at: pictures of one run, and several runs beside each other."""

from .comparison import plot_comparison, short_names
from .confusion import confusion_matrix, plot_confusion
from .curves import plot_curves
from .diagnosis import plot_lr_range, plot_responses
from .mistakes import most_confident_mistakes, plot_mistakes
from .runs import Run, differences, read_run, row
from .sheet import plot_sheet

__all__ = [
    "Run", "confusion_matrix", "differences", "most_confident_mistakes",
    "plot_comparison", "plot_confusion", "plot_curves", "plot_lr_range", "plot_mistakes",
    "plot_responses", "plot_sheet", "read_run", "row", "short_names",
]  # fmt: skip
