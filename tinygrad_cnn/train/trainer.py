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
from .recorded import RecordedStep

Record = dict[str, Any]


class Callback:
    """What can be done at certain moments of a training; override some of these.

    Any object with some of the methods will do.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Act before the first step, of a resumed run too."""

    def on_loss(self, trainer: Trainer, step: int, loss: float) -> None:
        """Act when the loss of a step is known: before the update; with cuda_graphs, when read."""

    def on_before_update(self, trainer: Trainer) -> None:
        """Act between the gradients and the update; then there are no CUDA graphs."""

    def on_step(self, trainer: Trainer) -> None:
        """Act after an update; the gradients are there until the next step."""

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

    With `cuda_graphs` the device repeats whole steps by itself: see RecordedStep. What they found,
    `last_loss` and `metrics`, is then read, and waited for, only when somebody asks for it.
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
        cuda_graphs: bool = False,
        callbacks: Sequence[Any] = (),
    ) -> None:
        check_smoothing(model, label_smoothing)
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self.steps, self.schedule, self.validation = steps, schedule, validation
        self.settings: dict[str, Any] = dict(label_smoothing=label_smoothing, parts=parts)
        self.average = WeightAverage(model, ema) if ema else None
        self.test_flip = test_flip
        self.callbacks = list(callbacks)
        self.recorded: RecordedStep | None = None
        if cuda_graphs:
            size = loader.batch_size
            self.recorded = RecordedStep(model, optimizer, batch_size=size, **self.settings)
        self.step, self.epoch, self._last_loss = 0, 0, float("nan")
        self.history: list[Record] = []
        self.timings: list[Record] = []
        self._metrics, self.pace = Metrics(), Pace()
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
    def last_loss(self) -> float:
        """The loss of the last step, before its update."""
        self._catch_up()
        return self._last_loss

    @property
    def metrics(self) -> Metrics:
        """The running epoch's loss and accuracy."""
        self._catch_up()
        return self._metrics

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
            if self.batch == len(self.loader) or self.step == self.steps:
                self._read()  # what the device still does belongs to this epoch's time
            now = time.perf_counter()
            self.pace.add(len(targets), now - started, self.loader.waited - waited)
            self._tell("on_step")
            self._heed_interrupt()
        self._close_epoch()

    def _do_step(self, x: Any, targets: Any) -> None:
        if self.schedule is not None:
            self.optimizer.lr = self.schedule(self.step)
        if not self._replay_step(x, targets):
            self._compute_step(x, targets)
        self.step += 1
        if self.average:
            self.average.update(self.model, self.step)

    def _replay_step(self, x: Any, targets: Any) -> bool:
        """Let the device do a step by itself, if it can; tell whether it does."""
        own = self.recorded
        if own is None or any(map(_acts_within_steps, self.callbacks)):
            return False
        if (own.model, own.optimizer, own.settings) != (self.model, self.optimizer, self.settings):
            return False
        if own.full:
            self._read()
        with self._own_numbers():
            return own(x, targets)

    def _compute_step(self, x: Any, targets: Any) -> None:
        self._read()
        self.optimizer.zero_grad()
        with self._own_numbers():
            loss, scores = compute_gradients(self.model, x, targets, **self.settings)
        self._note_loss(self.step + 1, loss)
        self._tell("on_before_update")
        self.optimizer.step()
        self._metrics.add(loss, scores, targets)

    def _own_numbers(self) -> Any:
        """Let dropout draw the numbers of this step."""
        return use_generator(rng_at(self.loader.seed, "dropout", self.epoch, self.batch))

    def _read(self) -> None:
        """Learn what steps have found that the device did by itself."""
        if self.recorded is None:
            return
        found = self.recorded.take()
        for step, (loss, correct) in enumerate(found, self.step - len(found) + 1):
            self._metrics.count(self.recorded.batch_size, loss, correct)
            self._note_loss(step, loss)

    def _catch_up(self) -> None:
        """Read, outside of a step's time; what the device needs for its steps is counted, too."""
        started = time.perf_counter()
        self._read()
        self.pace.seconds += time.perf_counter() - started

    def _note_loss(self, step: int, loss: float) -> None:
        self._last_loss = loss
        self._tell("on_loss", step, loss)

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
        self._metrics, self.pace = Metrics(), Pace()
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
        self._catch_up()
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
        if self.recorded:
            self.recorded.take()  # of the steps so far, which count no more
        arrays, facts = state["arrays"], copy.deepcopy(state["facts"])
        self.model.load_state_dict(under("model.", arrays))
        if self.average:
            self.average.model.load_state_dict(under("average.", arrays))
        optimizer = facts["optimizer"] | {"state": under("optimizer.", arrays)}
        self.optimizer.load_state_dict(optimizer)
        self.step, self.epoch, self.history = facts["step"], facts["epoch"], facts["history"]
        self._metrics, self.pace = Metrics(**facts["metrics"]), Pace()


def under(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Take the entries whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _acts_within_steps(callback: Any) -> bool:
    """Tell whether a callback has a say between a step's gradients and its update."""
    method = getattr(callback, "on_before_update", _nothing)
    return getattr(method, "__func__", method) not in (_nothing, Callback.on_before_update)


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
