"""Callbacks of a run: checkpoints, pictures, and an end where numbers have gone wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import checkpoint
from .folder import RunFolder, write_lines
from .trainer import Record, Trainer


class Diverged(RuntimeError):
    """The loss is no number any more."""


class StopAtNaN:
    """End the training before the update that would make the weights infinite or NaN.

    With cuda_graphs it ends when the loss is read, before such weights would be saved.
    """

    def on_loss(self, trainer: Trainer, step: int, loss: float) -> None:
        """Look at the loss."""
        if not math.isfinite(loss):
            epoch = (step - 1) // len(trainer.loader) + 1
            lr = trainer.schedule(step - 1) if trainer.schedule else trainer.lr
            raise Diverged(
                f"the loss is {loss} at step {step} (epoch {epoch}, learning rate {lr:g}); "
                "lower the learning rate, or let it warm up over more steps"
            )


class Checkpoints:
    """Keep the two newest states of a run, and the best on held-out images.

    A state is saved after each epoch, and with `every` also after so many steps. `about` is what
    the checkpoint shall say of the run besides the trainer's state, `arrays` belong to that.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        about: Mapping[str, Any],
        arrays: Mapping[str, Any],
        every: int | None = None,
    ) -> None:
        self.folder, self.about, self.arrays, self.every = folder, about, arrays, every

    def on_step(self, trainer: Trainer) -> None:
        """Save every so many steps."""
        if self.every and trainer.step % self.every == 0:
            self.save(trainer)

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Save, the best first: killed in between, this epoch is done again, and both are saved."""
        write_lines(self.folder.history, trainer.history)
        write_lines(self.folder.timings, trainer.timings)
        if _is_best(trainer.history):
            self._write(trainer, self.folder.best)
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Make this state the last one, and the last one the one before it."""
        self._write(trainer, self.folder.last, keep=self.folder.previous)

    def _write(self, trainer: Trainer, path: Path, *, keep: Path | None = None) -> None:
        state = trainer.state_dict()
        arrays, facts = {**state["arrays"], **self.arrays}, {**state["facts"], **self.about}
        checkpoint.save(path, arrays, facts, keep=keep)


def _is_best(history: list[Record]) -> bool:
    """Tell whether the last epoch beats all before it on held-out images; the first of equals."""
    *before, last = (record["validation_accuracy"] for record in history)
    return last is not None and all(last > accuracy for accuracy in before)


class Plot:
    """Redraw a picture of the history after every epoch: `draw(history, path)`."""

    def __init__(self, draw: Callable[[list[Record], Path], Any], path: Path) -> None:
        self.draw, self.path = draw, path

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Draw."""
        self.draw(trainer.history, self.path)
