"""The trainer: step after step, epoch after epoch, and callbacks that look on.

All that a run depends on is its settings and one number, `step`: shuffling, augmentation, dropout
and the learning rate are functions of it. That is why a run can stop and go on anywhere.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy

from ..data import Loader, rng_at
from ..models import Classifier
from ..optim import Optimizer
from ..random import use_generator
from .averaging import WeightAverage
from .loop import Metrics, check_smoothing, compute_gradients, evaluate
from .progress import Progress

Record = dict[str, Any]


class Callback:
    """What can be done at certain moments of a training; override some of these.

    Any object with some of the methods will do.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Act before the first step, of a resumed run too."""

    def on_before_update(self, trainer: Trainer) -> None:
        """Act between the gradients and the update; the loss is trainer.last_loss."""

    def on_step(self, trainer: Trainer) -> None:
        """Act after an update; the gradients are still there."""

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Act after an epoch; `record` is the new last entry of trainer.history."""

    def on_end(self, trainer: Trainer) -> None:
        """Act after the last step, and also when an error ends the training."""


class Interrupted(RuntimeError):
    """Training ended between two steps because trainer.interrupt was set."""


@dataclass
class Pace:
    """Where the time of an epoch's steps went, since it began or was resumed."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0  # of these, for the loader

    def add(self, images: int, seconds: float, waited: float) -> None:
        """Count a step."""
        self.images += images
        self.seconds += seconds
        self.waited += waited

    def to_dict(self) -> dict[str, float]:
        """Give what is worth keeping."""
        return {
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "loader_share": self.loader_share,
        }

    images_per_second = property(lambda self: self.images / max(self.seconds, 1e-9))
    loader_share = property(lambda self: self.waited / max(self.seconds, 1e-9))


class Trainer:
    """Train a model for so many steps; attributes tell callbacks all there is to know.

    `step` counts updates, `epoch` whole epochs; `history` has a record for each epoch, `timings`
    how long it took here; `metrics` and `pace` are the running epoch's. `label_smoothing` and
    `parts` are compute_gradients', `ema` is the decay of a WeightAverage, which is then what
    `validation` measures, with `test_flip` by judge's mean of two views.
    """

    def __init__(
        self,
        model: Classifier,
        optimizer: Optimizer,
        loader: Loader,
        *,
        steps: int,
        schedule: Callable[[int], float] | None = None,
        validation: Loader | None = None,
        label_smoothing: float = 0.0,
        parts: int = 1,
        ema: float = 0.0,
        test_flip: bool = False,
        callbacks: Sequence[Any] = (),
    ) -> None:
        check_smoothing(model, label_smoothing)
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self.steps, self.schedule, self.validation = steps, schedule, validation
        self.settings: dict[str, Any] = dict(label_smoothing=label_smoothing, parts=parts)
        self.average = WeightAverage(model, ema) if ema else None
        self.test_flip = test_flip
        self.callbacks = list(callbacks)
        self.step, self.epoch, self.last_loss = 0, 0, float("nan")
        self.history: list[Record] = []
        self.timings: list[Record] = []
        self.metrics, self.pace = Metrics(), Pace()
        self.interrupt: Any = None  # set it, as a signal handler may, to end after this step

    @property
    def epochs(self) -> int:
        """The number of epochs, the last one perhaps not whole."""
        return -(-self.steps // len(self.loader))

    @property
    def batch(self) -> int:
        """The number of this epoch's batches that are done."""
        return self.step - self.epoch * len(self.loader)

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.lr

    @property
    def eval_model(self) -> Classifier:
        """The averaged model if there is one, else the trained one."""
        return self.average.model if self.average else self.model

    def run(self) -> list[Record]:
        """Train from wherever `step` is to the end; gives the history."""
        self._tell("on_start")
        try:
            with numpy.errstate(over="ignore", invalid="ignore"):  # the loss tells, and StopAtNaN
                while self.epoch < self.epochs:
                    self._run_epoch()
        finally:
            self._tell("on_end")
        return self.history

    def _run_epoch(self) -> None:
        self.model.train()
        batches = iter(self.loader.epoch(self.epoch, start=self.batch))
        for _ in range(min(len(self.loader) - self.batch, self.steps - self.step)):
            started, waited = time.perf_counter(), self.loader.waited
            x, targets = next(batches)
            self._do_step(x, targets)
            now = time.perf_counter()
            self.pace.add(len(targets), now - started, self.loader.waited - waited)
            self._tell("on_step")
            self._heed_interrupt()
        self._close_epoch()

    def _do_step(self, x: Any, targets: Any) -> None:
        if self.schedule is not None:
            self.optimizer.lr = self.schedule(self.step)
        self.optimizer.zero_grad()
        with use_generator(rng_at(self.loader.seed, "dropout", self.epoch, self.batch)):
            self.last_loss, scores = compute_gradients(self.model, x, targets, **self.settings)
        self._tell("on_before_update")
        self.optimizer.step()
        self.step += 1
        if self.average:
            self.average.update(self.model, self.step)
        self.metrics.add(self.last_loss, scores, targets)

    def _close_epoch(self) -> None:
        held_out = self._validate()
        self.epoch += 1
        record = {
            "epoch": self.epoch, "step": self.step, "lr": self.lr,
            "train_loss": self.metrics.loss, "train_accuracy": self.metrics.accuracy,
            "validation_loss": held_out.loss if held_out else None,
            "validation_accuracy": held_out.accuracy if held_out else None,
        }  # fmt: skip
        self.history.append(record)
        self.timings.append({"epoch": self.epoch, **self.pace.to_dict()})
        self.metrics, self.pace = Metrics(), Pace()
        self._tell("on_epoch", record)
        self._heed_interrupt()

    def _validate(self) -> Metrics | None:
        if self.validation is None:
            return None
        return evaluate(
            self.eval_model, self.validation.epoch(0), flip=self.test_flip,
            watch=lambda scores: self._heed_interrupt(),
        )  # fmt: skip

    def _tell(self, moment: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, moment, _nothing)(self, *args)

    def _heed_interrupt(self) -> None:
        if self.interrupt is not None:
            raise Interrupted(f"interrupted after step {self.step} of {self.steps}")

    # ---- saving and loading ----

    def state_dict(self) -> dict[str, Any]:
        """Copy all that the next step depends on: arrays by name, and "facts", which are JSON."""
        optimizer = self.optimizer.state_dict()
        arrays = {f"optimizer.{name}": a for name, a in optimizer.pop("state").items()}
        arrays |= {f"model.{name}": a for name, a in self.model.state_dict().items()}
        if self.average:
            arrays |= {f"average.{n}": a for n, a in self.average.model.state_dict().items()}
        facts = {
            "step": self.step, "epoch": self.epoch, "batch": self.batch, "history": self.history,
            "metrics": asdict(self.metrics), "optimizer": optimizer,
        }  # fmt: skip
        return {"arrays": arrays, "facts": copy.deepcopy(facts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        arrays, facts = state["arrays"], copy.deepcopy(state["facts"])
        self.model.load_state_dict(under("model.", arrays))
        if self.average:
            self.average.model.load_state_dict(under("average.", arrays))
        optimizer = facts["optimizer"] | {"state": under("optimizer.", arrays)}
        self.optimizer.load_state_dict(optimizer)
        self.step, self.epoch, self.history = facts["step"], facts["epoch"], facts["history"]
        self.metrics, self.pace = Metrics(**facts["metrics"]), Pace()


def under(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Take the entries whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _nothing(*args: Any) -> None:
    """Stand in for what a callback doesn't do."""


def fit(
    model: Classifier,
    optimizer: Optimizer,
    loader: Loader,
    *,
    epochs: int,
    schedule: Callable[[int], float] | None = None,
    validation: Loader | None = None,
) -> list[Record]:
    """Train for some epochs, showing live progress; `schedule` maps a step to its learning rate.

    Gives a record for each epoch. For more, such as callbacks, make a Trainer.
    """
    trainer = Trainer(
        model, optimizer, loader, steps=epochs * len(loader), schedule=schedule,
        validation=validation, callbacks=[Progress()],
    )  # fmt: skip
    return trainer.run()
