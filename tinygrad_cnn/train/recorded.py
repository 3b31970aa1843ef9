"""Training steps that the device does by itself: recorded once, as a CUDA graph, then replayed.

What Python does in a step it does while the step is recorded, and never again. What changes from
one step to the next therefore lies in the device's memory, and is put there before each replay:

    images, targets, dropout's masks    what is given to state.fed
    learning rates                      the optimiser's kernels read them
    the loss and the hits               a row for each step, which is read when somebody asks
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy

from .. import functional as F
from ..autograd import op_hooks
from ..backends import Array, Backend
from ..models import Classifier
from ..nn import Module
from ..ops.elementwise import rule_in_force
from ..optim import Optimizer
from ..state import Feeder, fed, feeding, listening
from .loop import gradients_in_parts

WARM_UP = 3  # steps that are done without a recording first, in which every kernel is compiled
ROWS = 64  # steps by which the host may be ahead of the device: their results wait there
PLAIN = (bool, int, float, str, tuple)  # of a layer's attributes, what are settings

Found = tuple[float, int]  # by a step: its loss, and how many images were right


class RecordedStep:
    """The training step of a model, for batches of `batch_size` images.

    Calling it does a step and gives True; or it does nothing and gives False, and the step has to
    be done as usual: with a batch of another size, while there are hooks, and always if the step
    can't be recorded, which is said once. `take` gives what the steps have found.

    The recording is made anew where arrays, modes or settings of the model or the optimiser are
    others than before. What else Python decides, it decides while it records.

    `label_smoothing` and `parts` are compute_gradients'.
    """

    def __init__(
        self, model: Classifier, optimizer: Optimizer, *, batch_size: int,
        label_smoothing: float = 0.0, parts: int = 1,
    ) -> None:  # fmt: skip
        self.backend: Backend = model.parameters()[0].backend
        _check(self.backend, optimizer)
        self.model, self.optimizer, self.batch_size = model, optimizer, batch_size
        self.settings: dict[str, Any] = dict(label_smoothing=label_smoothing, parts=parts)
        self.x: Any = None
        self.targets = numpy.zeros(batch_size, numpy.int64)
        xp, self.pending, self.found = self.backend.xp, 0, list[Found]()
        self.losses, self.hits = xp.zeros(ROWS), xp.zeros(ROWS, "int64")
        self.row = xp.zeros(1, "int64")
        self.depends: list[Any] = []
        self._forget()

    def _forget(self) -> None:
        self.graph: Callable[[], None] | None = None
        self.warm, self.refused, self.fed = 0, False, _Fed()
        self.homes = [(buffer, buffer.data) for _, buffer in self.model.named_buffers()]

    def __call__(self, x: Any, targets: Any) -> bool:
        """Do a step on images x (N, C, H, W), if it can be done here; tell whether it was."""
        if not self._fits(targets) or self._is_watched():
            return False
        self._notice_changes()
        if self.pending == ROWS:
            self.found = self.take()
        self.x, self.targets[:] = x, targets
        if self.warm < WARM_UP:
            self._rehearse()
        elif self.graph or self._record():
            self._replay()
        else:
            return False
        self.pending += 1
        return True

    def take(self) -> list[Found]:
        """Wait for the device; give what each step has found since they were taken last."""
        if self.pending:
            losses, hits = map(self.backend.to_numpy, (self.losses, self.hits))
            rows = zip(losses.tolist(), hits.tolist(), strict=True)
            self.found += [row for _, row in zip(range(self.pending), rows, strict=False)]
            self.row[...], self.pending = 0, 0
        found, self.found = self.found, []
        return found

    # ---- when ----

    def _fits(self, targets: Any) -> bool:
        """Tell whether these are class numbers of as many images as were expected."""
        known = isinstance(targets, numpy.ndarray) and targets.shape == self.targets.shape
        return known and targets.dtype.kind in "iu"

    def _is_watched(self) -> bool:
        """Tell whether hooks want to see what a replay doesn't show them."""
        modules = self.model.modules()
        return bool(op_hooks.get()) or any(m._pre_hooks or m._forward_hooks for m in modules)

    def _notice_changes(self) -> None:
        """Forget a recording that is of no use any more; get buffers ready for this step."""
        depends = self._depends()
        if depends != self.depends:
            self._forget()
            self.depends = depends
        self._bring_home()

    def _depends(self) -> list[Any]:
        """List what a recording takes as it is."""
        parameters, groups = self.model.parameters(), self.optimizer.param_groups
        self.arrays = [p.data for p in parameters]  # held, or a new one might have an old one's id
        return [
            *map(id, self.arrays), *(p.requires_grad for p in parameters),
            *({n: v for n, v in g.items() if n not in ("lr", "params")} for g in groups),
            *map(_settings, self.model.modules()),
            *(getattr(self.backend, "precision", None), F.in_parts(False), rule_in_force.get()),
        ]  # fmt: skip

    # ---- recording ----

    def _rehearse(self) -> None:
        """Do a step just as it will be recorded."""
        with self._fed_by(self.fed.filled):
            self._step()
        self.warm += 1

    def _record(self) -> bool:
        """Record a step, doing none of it; tell whether that can be done."""
        if self.refused:
            return False
        before = self.optimizer.steps
        try:
            self._check_parameters()
            with self._fed_by(self.fed.reserved), listening(_refuse_chance):
                self.graph = self.backend.record(self._step)  # type: ignore[attr-defined]
        except Exception as error:  # whatever it is: done as usual, the step shows it, or is right
            self.refused = True
            message = f"training steps are not recorded as a CUDA graph, but done as usual: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        finally:
            after, self.optimizer.steps = self.optimizer.steps, before
            for buffer, home in self.homes:
                buffer.data = home
        self.updates = [b - a for a, b in zip(before, after, strict=True)]
        self.grads = [p.grad for p in self.model.parameters()]
        return not self.refused

    def _step(self) -> None:
        """Do what is recorded: a step, and a note of what it found."""
        self.optimizer.zero_grad()
        x, targets = (fed(self.backend, make) for make in (lambda: self.x, lambda: self.targets))
        found = gradients_in_parts(self.model, x, self.targets, **self.settings)
        self.optimizer.step()
        self._bring_home()
        loss = sum(loss.data.astype("float64") for loss, _ in found)
        pairs = zip(found, numpy.array_split(targets, len(found)), strict=True)
        hits = sum((scores.data.argmax(axis=1) == part).sum() for (_, scores), part in pairs)
        own = self.backend.xp.arange(ROWS) == self.row
        for rows, value in (self.losses, loss), (self.hits, hits):
            rows[...] = self.backend.xp.where(own, value, rows)
        self.row += 1

    def _bring_home(self) -> None:
        """Put buffers back into the arrays that are recorded; a layer may have made new ones."""
        for buffer, home in self.homes:
            if buffer.data is not home:
                home[...] = buffer.data
                buffer.data = home

    @contextmanager
    def _fed_by(self, feeder: Feeder) -> Iterator[None]:
        """Let the host fill arrays for the step, of one number for each group's learning rate."""
        groups = self.optimizer.param_groups
        before = [group["lr"] for group in groups]
        self.fed.begin()
        try:
            with feeding(feeder):
                for group in groups:
                    group["lr"] = fed(self.backend, partial(_rate, group))
                yield
        finally:
            for group, lr in zip(groups, before, strict=True):
                group["lr"] = lr

    def _check_parameters(self) -> None:
        """Refuse parameters whose gradients the optimiser would not clear."""
        own = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for name, p in self.model.named_parameters():
            if p.requires_grad and id(p) not in own:
                raise ValueError(f"the optimiser hasn't got {name}; give it, or freeze it")

    # ---- replaying ----

    def _replay(self) -> None:
        """Do a step on self.x and self.targets as it was recorded."""
        assert self.graph is not None
        self.fed.fill(self.backend)
        self.graph()
        pairs = zip(self.optimizer.steps, self.updates, strict=True)
        self.optimizer.steps = [a + b for a, b in pairs]
        for p, grad in zip(self.model.parameters(), self.grads, strict=True):
            p.grad = grad
            p.version[0] += 1


class _Fed:
    """Arrays of the device that the host fills before each step, in the order of their use.

    They are made in rehearsals: what is allocated while a graph is recorded shares its memory.
    """

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self.begin()

    def begin(self) -> None:
        self.makes: list[Callable[[], Array]] = []

    def filled(self, backend: Backend, make: Callable[[], Array]) -> Array:
        """Give the next one with its values."""
        values, number = make(), len(self.makes)
        if number == len(self.arrays):
            self.arrays.append(backend.empty(values.shape, values.dtype))
        self.arrays[number][...] = backend.asarray(values)
        return self.reserved(backend, make)

    def reserved(self, backend: Backend, make: Callable[[], Array]) -> Array:
        """Give the next one, which `fill` will fill."""
        self.makes.append(make)
        return self.arrays[len(self.makes) - 1]

    def fill(self, backend: Backend) -> None:
        """Let the host make all values anew."""
        for array, make in zip(self.arrays, self.makes, strict=True):
            array[...] = backend.asarray(make())


def _rate(group: dict[str, Any]) -> Array:
    return numpy.array([group["lr"]])


def _settings(module: Module) -> dict[str, Any]:
    """Collect the settings of one module: numbers, names, tuples of them, and dicts of those."""
    plain = {n: v for n, v in vars(module).items() if isinstance(v, PLAIN)}
    inner = {n: dict(v) for n, v in vars(module).items() if n == "settings" and isinstance(v, dict)}
    return plain | inner


def _refuse_chance(thing: Any) -> None:
    """Refuse random numbers that Python uses itself: a replay would repeat what came of them."""
    if isinstance(thing, numpy.random.Generator):
        raise ValueError(
            "it uses a random generator for more than dropout, or computes activations again"
        )


def _check(backend: Backend, optimizer: Optimizer) -> None:
    if not hasattr(backend, "record"):
        raise ValueError(
            f"cuda_graphs: the backend {backend.name!r} has none; take 'cupy', or leave them out"
        )
    if not vars(type(optimizer)).get("takes_lr_array"):
        raise ValueError(
            f"cuda_graphs: {optimizer.kind} can't read its learning rate from the device's memory; "
            "take SGD, or leave them out"
        )
