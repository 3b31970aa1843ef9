"""What a training run shows: a live line in a terminal or notebook, elsewhere a line per epoch."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trainer import Record, Trainer

WIDE = 100  # columns; in fewer, there is room for the numbers only
EVERY = 0.1  # seconds at least between two states: with CUDA graphs, to ask for one is to wait


class Progress:
    """Show epoch, batch, loss, accuracy, images per second and the time left."""

    def on_start(self, trainer: Trainer) -> None:
        """Begin the live line, where there is one."""
        from rich import get_console
        from rich import progress as rich

        wide = get_console().width >= WIDE
        self.bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            *([rich.BarColumn(bar_width=20)] if wide else []),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[status]}"),
            rich.TimeRemainingColumn(elapsed_when_finished=True),
        )
        self.bar.disable = not _is_live(self.bar.console)
        self.task = self.bar.add_task(
            "epoch 1", total=trainer.steps, completed=trainer.step, status=""
        )
        self.bar.start()
        self.shown = 0.0

    def on_step(self, trainer: Trainer) -> None:
        """Show the state after a batch."""
        early = time.monotonic() < self.shown + EVERY and trainer.step < trainer.steps
        if self.bar.disable or early:
            return
        self.bar.update(
            self.task,
            completed=trainer.step,
            description=f"epoch {trainer.epoch + 1}/{trainer.epochs}",
            status=f"{trainer.metrics}, {trainer.pace.images_per_second:.0f} images/s",
        )
        self.shown = time.monotonic()

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Leave a line for an epoch."""
        line = f"epoch {record['epoch']}/{trainer.epochs}: {_measured(record, 'train')}"
        if record["validation_loss"] is not None:
            line += f"; held out: {_measured(record, 'validation')}"
        timing = trainer.timings[-1]
        line += f"; {timing['images_per_second']:.0f} images/s"
        line += f", loader {timing['loader_share']:.1%}"
        self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def on_end(self, trainer: Trainer) -> None:
        """Take the live line away."""
        self.bar.stop()


def _measured(record: Record, part: str) -> str:
    return f"loss {record[f'{part}_loss']:.3f}, accuracy {record[f'{part}_accuracy']:.1%}"


def _is_live(console: Any) -> bool:
    """Tell whether a line can be redrawn: a notebook needs ipywidgets for that."""
    return sys.stdout.isatty() or (console.is_jupyter and find_spec("ipywidgets") is not None)
