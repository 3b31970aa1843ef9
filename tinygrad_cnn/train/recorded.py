"""Training steps that the device does by itself: recorded once, as a CUDA graph, then replayed.

What Python does in a step it does while the step is recorded, and never again. What changes from
one step to the next therefore lies in the device's memory, and is put there before each replay:

    images, targets, dropout's masks    what is given to state.fed
    learning rates                      the optimiser's kernels read them
    the loss and the hits               a row for each step, which is read when somebody asks
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
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
from ..tensor import Tensor
from .loop import gradients_in_parts

RESTLESS = 10  # changes without a replay between them, after which there are no more attempts
WARM_UP = 3  # steps that are done without a recording first, in which every kernel is compiled
ROWS = 64  # steps by which the host may be ahead of the device: their results wait there
PLAIN = (bool, int, float, str)  # what is compared by its value
UNSTEADY = "it is not the same from step to step: other arrays go into it"

Found = tuple[float, int]  # by a step: its loss, and how many images were right


class RecordedStep:
    """The training step of a model, for batches of `batch_size` images.

    Calling it does a step and gives True; or it does nothing and gives False, and the step has to
    be done as usual: with a batch of another size, while there are hooks, and if the step can't be
    recorded, of which a warning tells. `take` gives what the steps have found.

    The recording is made anew, after three steps without, where the images' shape, an attribute of
    a layer, a parameter's array or a setting of the optimiser is another than before. What else
    Python decides, it decides while it records.

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
        self.depends: dict[Any, Any] = {}
        self.restless = 0  # changes since the last replay
        self._forget()

    def _forget(self) -> None:
        self.graph: Callable[[], None] | None = None
        self.warm, self.refused, self.inputs = 0, False, _Inputs()
        self.updates: list[int] = []
        self.grads: list[Tensor | None] = []
        self.homes = [(buffer, buffer.data) for _, buffer in self.model.named_buffers()]

    def __call__(self, x: Any, targets: Any) -> bool:
        """Do a step on images x (N, C, H, W), if it can be done here; tell whether it was."""
        modules = [*self.model.modules()]
        if not self._fits(targets) or _watched(modules):
            return False
        self._notice_changes(x, modules)
        if self.refused:
            return False
        if self.full:
            self.found = self.take()
        self.row[...] = self.pending
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
            self.pending = 0
        found, self.found = self.found, []
        return found

    @property
    def full(self) -> bool:
        """Whether no row is left for another step: `take` makes room."""
        return self.pending == ROWS

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimiser updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    # ---- when ----

    def _fits(self, targets: Any) -> bool:
        """Tell whether these are class numbers of as many images as were expected."""
        known = isinstance(targets, numpy.ndarray) and targets.shape == self.targets.shape
        return known and targets.dtype.kind in "iu"

    def _notice_changes(self, x: Any, modules: list[Module]) -> None:
        """Forget a recording that is of no use any more; get buffers ready for this step."""
        depends = {"images": (x.shape, x.dtype), **self._depends(modules)}
        if depends != self.depends:
            changed = next(n for n in depends if depends[n] != self.depends.get(n))
            self._forget()
            self.depends, self.restless = depends, self.restless + 1
            if self.restless == RESTLESS:
                self._refuse(ValueError(f"it has another {changed} each time"))
            self.refused = self.restless >= RESTLESS
        self._bring_home()

    def _depends(self, modules: list[Module]) -> dict[Any, Any]:
        """Map what a recording takes as it is from names to values."""
        groups = self.optimizer.param_groups
        found = {
            "precision": getattr(self.backend, "precision", None),
            "loss": _Known(self.model.loss), "unfused": F.in_parts(False),
            "relu_rule": rule_in_force.get(),
        }  # fmt: skip
        for i, group in enumerate(groups):
            fixed = {name: v for name, v in group.items() if name not in ("lr", "params")}
            found |= {f"{name} of group {i}": v for name, v in _settings(fixed).items()}
        for i, module in enumerate(modules):
            settings = {"training": module.training, **_settings(vars(module))}
            found |= {f"{type(module).__name__}.{name} ({i})": v for name, v in settings.items()}
        for i, p in enumerate((*self.model.parameters(), *self.parameters)):
            found[f"parameter {i}"] = _Known(p), _Known(p.data), p.requires_grad
        return found

    # ---- recording ----

    def _rehearse(self) -> None:
        """Do a step just as it will be recorded."""
        with self._fed_by(self.inputs.filled):
            self._step()
        self.warm += 1

    def _record(self) -> bool:
        """Record a step, doing none of it; tell whether that can be done."""
        before, grads = self.optimizer.steps, [p.grad for p in self.parameters]
        try:
            self._check_parameters()
            with self._fed_by(self.inputs.reserved), listening(self._refuse_use):
                graph = self.backend.record(self._step)  # type: ignore[attr-defined]
            self.inputs.check()
            self.updates = [b - a for a, b in zip(before, self.optimizer.steps, strict=True)]
            self.grads, self.graph = [p.grad for p in self.parameters], graph
        except Exception as error:  # whatever it is: done as usual, the step shows it, or is right
            self._refuse(error)
        finally:
            self.optimizer.steps = before
            for p, grad in zip(self.parameters, grads, strict=True):
                p.grad = grad
            for buffer, home in self.homes:
                buffer.data = home
        return self.graph is not None

    def _refuse(self, error: Exception) -> None:
        self.refused = True
        message = f"training steps are not recorded as a CUDA graph, but done as usual: {error}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)

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
        mask = self.backend.xp.arange(ROWS) == self.row
        for rows, value in (self.losses, loss), (self.hits, hits):
            rows[...] = self.backend.xp.where(mask, value, rows)

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
        self.inputs.begin()
        try:
            with feeding(feeder):
                for group in groups:
                    group["lr"] = fed(self.backend, partial(_rate, group))
                yield
        except BaseException:
            self.inputs.runs.pop()
            raise
        finally:
            for group, lr in zip(groups, before, strict=True):
                group["lr"] = lr

    def _check_parameters(self) -> None:
        """Refuse an optimiser that is not the whole model's, and of nothing else."""
        ours = {id(p): p.shape for p in self.model.parameters() if p.requires_grad}
        theirs = {id(p): p.shape for p in self.parameters if p.requires_grad}
        for one, other, lacks in ((ours, theirs, "optimiser"), (theirs, ours, "model")):
            for shape in (shape for key, shape in one.items() if key not in other):
                raise ValueError(
                    f"the {lacks} lacks a parameter of shape {shape}; give it to both, or freeze it"
                )

    def _refuse_use(self, thing: Any) -> None:
        """Refuse what the host decides or computes in a step: a replay would repeat it."""
        if isinstance(thing, numpy.random.Generator):
            raise ValueError(
                "it draws random numbers for more than dropout, or computes activations again "
                "(checkpoint_activations); do without, or leave cuda_graphs out"
            )
        if isinstance(thing, numpy.ndarray) and not numpy.may_share_memory(thing, self.targets):
            raise ValueError("its loss computes with the targets; do that before, in the data")

    # ---- replaying ----

    def _replay(self) -> None:
        """Do a step on self.x and self.targets as it was recorded."""
        assert self.graph is not None
        self.restless = 0
        self.inputs.fill(self.backend)
        self.graph()
        pairs = zip(self.optimizer.steps, self.updates, strict=True)
        self.optimizer.steps = [a + b for a, b in pairs]
        for p, grad, updated in zip(self.parameters, self.grads, self.updates, strict=True):
            p.grad = grad
            p.version[0] += updated
        for buffer, _ in self.homes:
            buffer.version[0] += 1


class _Inputs:
    """Arrays of the device that the host fills before each step, in the order of their use.

    They are made in rehearsals: what is allocated while a graph is recorded shares its memory.
    """

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self.runs: list[list[Any]] = []  # of each rehearsal, and the recording: shapes and dtypes

    def begin(self) -> None:
        """Begin with the first array again."""
        self.runs.append([])
        self.makes: list[Callable[[], Array]] = []

    def filled(self, backend: Backend, make: Callable[[], Array]) -> Array:
        """Give the next one with its values."""
        values, number = make(), len(self.makes)
        if [(values.shape, values.dtype)] != [*map(_outline, self.arrays[number : number + 1])]:
            self.arrays[number : number + 1] = [backend.empty(values.shape, values.dtype)]
        self.arrays[number][...] = backend.asarray(values)
        return self.reserved(backend, make)

    def reserved(self, backend: Backend, make: Callable[[], Array]) -> Array:
        """Give the next one, which `fill` will fill."""
        if len(self.makes) == len(self.arrays):
            raise ValueError(UNSTEADY)
        array = self.arrays[len(self.makes)]
        self.makes.append(make)
        self.runs[-1].append(_outline(array))
        return array

    def check(self) -> None:
        """Refuse a step that has wanted other arrays each time."""
        if len(self.makes) < len(self.arrays) or any(run != self.runs[-1] for run in self.runs):
            raise ValueError(UNSTEADY)

    def fill(self, backend: Backend) -> None:
        """Let the host make all values anew."""
        for array, make in zip(self.arrays, self.makes, strict=True):
            array[...] = backend.asarray(make())


def _outline(a: Array) -> tuple[Any, Any]:
    return a.shape, a.dtype


def _rate(group: dict[str, Any]) -> Array:
    return numpy.array([group["lr"]], numpy.float64)


def _watched(modules: list[Module]) -> bool:
    """Tell whether hooks want to see what a replay doesn't show them."""
    return bool(op_hooks.get()) or any(m._pre_hooks or m._forward_hooks for m in modules)


class _Known:
    """An object, compared by what it is; held, for a later one might have its id."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Make attributes comparable, those in dicts too."""
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": _comparable(v) for key, v in value.items()}
        else:
            found[name] = _comparable(value)
    return found


def _comparable(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_comparable, value))
    return value if isinstance(value, PLAIN) else _Known(value)


def _check(backend: Backend, optimizer: Optimizer) -> None:
    if not hasattr(backend, "record"):
        raise ValueError(
            f"cuda_graphs: the backend {backend.name!r} has none; take 'cupy', or leave them out"
        )
    if not vars(type(optimizer)).get("takes_lr_array"):
        raise ValueError(
            f"cuda_graphs: the step of {optimizer.kind} has numbers that would be repeated as they "
            "are, such as the learning rate; take SGD, or leave cuda_graphs out"
        )
