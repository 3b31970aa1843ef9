"""What a training run shows: a live line in a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .loop import EpochResult, Metrics


class Progress:
    """Show epoch, batch, loss, accuracy, images per second and the time that is left."""

    def __init__(self, epochs: int, batches: int) -> None:
        from rich import progress as rich

        self.epochs, self.batches = epochs, batches
        self.bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[status]}"),
            rich.TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        )
        self.task = self.bar.add_task("epoch 1", total=epochs * batches, status="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def update(self, epoch: int, batch: int, metrics: Metrics) -> None:
        """Show the state after a batch."""
        self.bar.update(
            self.task,
            completed=epoch * self.batches + batch + 1,
            description=f"epoch {epoch + 1}/{self.epochs}",
            status=f"{metrics}, {metrics.images_per_second:.0f} images/s",
        )

    def finish(self, result: EpochResult) -> None:
        """Leave a line for an epoch."""
        line = f"epoch {result.epoch + 1}/{self.epochs}: {result.train}"
        if result.validation is not None:
            line += f"; held out: {result.validation}"
        line += f"; {result.train.images_per_second:.0f} images/s"
        self.bar.console.print(line, highlight=False, soft_wrap=True)
