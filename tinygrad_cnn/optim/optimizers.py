"""Optimisers: each is one update rule, a method `update` on raw arrays.

>>> import tinygrad_cnn as tg
>>> w = tg.tensor([3.0, -2.0], requires_grad=True)
>>> optimizer = SGD([w], lr=0.1, momentum=0.5)
>>> for step in range(50):
...     optimizer.zero_grad()
...     (w * w).sum().backward()
...     optimizer.step()
>>> bool((abs(w) < 1e-3).numpy().all())
True
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

from ..backends import Array, Backend
from ..suggestion import suggestion
from ..tensor import Tensor
from .values import VALUES

Group = dict[str, Any]
Params = Iterable[Tensor | Group]


class Optimizer:
    """What all optimisers share; a subclass names the `arrays` it keeps and gives the `update`.

    `params` are Tensors, or groups: dicts with "params" and settings that differ from the defaults.
    `param_groups` holds them with all settings. Move a model to its backend before making its
    optimiser: the arrays are made here.
    """

    arrays: ClassVar[tuple[str, ...]] = ()  # names; each starts as zeros in the parameter's shape
    # Whether `update` takes as lr an array of one, too, and does at every t the same.
    takes_lr_array: ClassVar[bool] = False

    def __init__(self, params: Params, *, lr: float, **defaults: Any) -> None:
        self.kind = type(self).__name__
        self.defaults = self._checked({"lr": lr, **defaults})
        given = _listed(params, f"{self.kind}: got")
        grouped = all(isinstance(entry, Mapping) for entry in given)
        groups = given if grouped else [{"params": given}]
        self.param_groups = [self._group(group, i) for i, group in enumerate(groups)]
        self._slots = [self._slot(p, group) for group in self.param_groups for p in group["params"]]
        _refuse_twice([slot.p for slot in self._slots], self.kind)

    @property
    def lr(self) -> float:
        """The learning rate. Setting it sets that of every group, keeping their proportions.

        They are those of construction: with lr=0.1 and a group of lr=0.01, `optimizer.lr = 1` gives
        that group 0.1.
        """
        return float(self.defaults["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self.defaults |= self._checked({"lr": value})
        for group in self.param_groups:
            group["lr"] = self.lr * group["lr_scale"]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for slot in self._slots:
            slot.p.grad = None

    def step(self) -> None:
        """Update, in place, every parameter that has a gradient."""
        for slot in self._slots:
            p = slot.p
            if p.grad is not None:
                slot.steps += 1
                settings = {name: slot.group[name] for name in self.defaults}
                self.update(p.backend, slot.steps, p.data, p.grad.data, *slot.arrays, **settings)
                p.version[0] += 1  # a graph that needs the old values must not be walked any more

    def update(
        self, backend: Backend, t: int, p: Array, g: Array, *arrays: Any, **settings: Any
    ) -> None:
        """Change `p` and `arrays` in place by its gradient g; t counts p's updates from 1."""
        raise NotImplementedError(f"{self.kind}: give it a method update")

    @property
    def steps(self) -> list[int]:
        """How often each parameter has been updated; a recorded step sets it, having done so."""
        return [slot.steps for slot in self._slots]

    @steps.setter
    def steps(self, counts: list[int]) -> None:
        for slot, count in zip(self._slots, counts, strict=True):
            slot.steps = count

    # ---- saving and loading ----

    def state_dict(self) -> dict[str, Any]:
        """Copy all that the next step depends on, besides the parameters.

        "state" maps "<number of the parameter>.<name>" to a NumPy array; all the rest is JSON.
        """
        arrays = {
            f"{i}.{name}": slot.p.backend.to_numpy(array).copy()
            for i, slot in enumerate(self._slots)
            for name, array in zip(self.arrays, slot.arrays, strict=True)
        }
        groups = [{**group, "params": len(group["params"])} for group in self.param_groups]
        facts = {"kind": self.kind, "lr": self.lr, "groups": groups, "steps": self.steps}
        return {**facts, "state": arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was called; one that doesn't fit changes nothing."""
        came, wanted = _outline(state), _outline(self.state_dict())
        for fact in wanted | came:
            if came.get(fact) != wanted.get(fact):
                raise ValueError(
                    f"{self.kind}.load_state_dict: {fact}: the state has {came.get(fact)}; "
                    f"expected {wanted.get(fact)}. Make the optimiser as the one that was saved"
                )
        settings = [self._checked(group) for group in state["groups"]]
        self.defaults |= self._checked({"lr": state["lr"]})
        for group, loaded in zip(self.param_groups, settings, strict=True):
            group |= loaded | {"params": group["params"]}
        self.steps = state["steps"]
        for i, slot in enumerate(self._slots):
            for name, array in zip(self.arrays, slot.arrays, strict=True):
                array[...] = slot.p.backend.asarray(state["state"][f"{i}.{name}"])

    # ---- reading what came ----

    def _group(self, given: Group, number: int) -> Group:
        """Fill a group up with the defaults."""
        where = f"{self.kind}: group {number}"
        for name in given.keys() - {"params", *self.defaults}:
            raise ValueError(f"{where} sets {name!r}{suggestion(name, self.defaults)}")
        params = [_leaf(p, self.kind) for p in _listed(given.get("params", ()), f"{where} has")]
        group = self._checked({**self.defaults, **given, "params": params})
        if group["lr"] != self.lr == 0:
            raise ValueError(
                f"{where} has lr={group['lr']}, and no proportion to the default lr=0; "
                "give the optimiser an lr above 0"
            )
        return {**group, "lr_scale": group["lr"] / self.lr if self.lr else 1.0}

    def _checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Check the settings' values."""
        for name, value in settings.items():
            fits, wanted = _VALUES.get(name, (lambda value: True, ""))
            if not fits(value):
                raise ValueError(f"{self.kind}: {name} is {value!r}; expected {wanted}")
        if settings.get("nesterov") and not settings.get("momentum"):
            raise ValueError(f"{self.kind}: nesterov needs a momentum; set it too, such as 0.9")
        return {name: _plain(value) for name, value in settings.items()}

    def _slot(self, p: Tensor, group: Group) -> _Slot:
        return _Slot(p, group, [p.backend.xp.zeros_like(p.data) for _ in self.arrays])


class SGD(Optimizer):
    """v <- momentum*v + g, p <- p - lr*v; with Nesterov's look ahead, p <- p - lr*(g + momentum*v).

    As in PyTorch, a new lr acts on the old velocity too, and weight decay adds weight_decay*p to g.
    Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013,
    section 2.
    """

    arrays = ("velocity",)
    takes_lr_array = True

    def __init__(
        self, params: Params, lr: float, *, momentum: float = 0.0, nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        settings = dict(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        super().__init__(params, lr=lr, **settings)

    def update(
        self, backend: Backend, t: int, p: Array, g: Array, velocity: Array, **settings: Any
    ) -> None:
        """Leave it to the backend, which does it in one pass."""
        backend.sgd_update(p, g, velocity, **settings)


class RMSprop(Optimizer):
    """Divide the gradient by a running root mean square of itself.

    Tieleman & Hinton, Coursera lecture 6.5, 2012; with momentum, Graves, arXiv 1308.0850,
    section 4.2, but not centred, and with eps outside the root, as PyTorch.
    """

    arrays = ("square", "velocity")

    def __init__(
        self, params: Params, lr: float, *, alpha: float = 0.99, eps: float = 1e-8,
        momentum: float = 0.0, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        settings = dict(alpha=alpha, eps=eps, momentum=momentum, weight_decay=weight_decay)
        super().__init__(params, lr=lr, **settings)

    def update(
        self, backend: Backend, t: int, p: Array, g: Array, square: Array, velocity: Array, *,
        lr: float, alpha: float, eps: float, momentum: float, weight_decay: float,
    ) -> None:  # fmt: skip
        """square <- average of g^2, v <- momentum*v + g / (sqrt(square) + eps), p <- p - lr*v."""
        g = g + weight_decay * p if weight_decay else g
        _average(square, g * g, alpha)
        velocity *= momentum
        velocity += g / (backend.xp.sqrt(square) + eps)
        p -= lr * velocity


class Adam(Optimizer):
    """Divide the gradient's running mean by its running root mean square.

    Kingma & Ba, arXiv 1412.6980, algorithm 1. Weight decay adds weight_decay*p to the gradient.
    """

    arrays = ("mean", "square")

    def __init__(
        self, params: Params, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(
        self, backend: Backend, t: int, p: Array, g: Array, m: Array, v: Array, *,
        lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
    ) -> None:  # fmt: skip
        """m <- average of g, v <- average of g^2, p <- p - lr * m_hat / (sqrt(v_hat) + eps)."""
        g = g + weight_decay * p if weight_decay else g
        _average(m, g, betas[0])
        _average(v, g * g, betas[1])
        m_hat = m / (1 - betas[0] ** t)  # m and v began at 0: without this, early steps are short
        v_hat = v / (1 - betas[1] ** t)
        p -= lr * m_hat / (backend.xp.sqrt(v_hat) + eps)


class AdamW(Adam):
    """Adam with weights that decay on their own: by lr*weight_decay, whatever the gradient's size.

    Loshchilov & Hutter, arXiv 1711.05101, algorithm 2; the decay is multiplied by lr, as PyTorch.
    """

    def __init__(
        self, params: Params, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(
        self, backend: Backend, t: int, p: Array, g: Array, m: Array, v: Array, *,
        lr: float, weight_decay: float, **settings: Any,
    ) -> None:  # fmt: skip
        """p <- p - lr*weight_decay*p, then Adam's update."""
        p *= 1 - lr * weight_decay
        super().update(backend, t, p, g, m, v, lr=lr, weight_decay=0.0, **settings)


@dataclass(eq=False, slots=True)
class _Slot:
    """A parameter, the group it belongs to, and what is remembered of its updates."""

    p: Tensor
    group: Group
    arrays: list[Array]
    steps: int = 0


def _average(average: Array, new: Array, decay: float) -> None:
    average *= decay
    average += (1 - decay) * new


def _outline(state: Mapping[str, Any]) -> dict[str, Any]:
    """List what must be equal between two optimisers' states."""
    groups = state.get("groups", ())
    return {
        "kind": state.get("kind"),
        "number of groups": len(groups),
        **{f"parameters in group {i}": group["params"] for i, group in enumerate(groups)},
        **{f"settings of group {i}": sorted(group) for i, group in enumerate(groups)},
        "number of step counts": len(state.get("steps", ())),
        **{name: f"{a.dtype} {a.shape}" for name, a in state.get("state", {}).items()},
    }


def _listed(params: Any, came: str) -> list[Any]:
    """Read an iterable of parameters; a Tensor is one too, of its rows."""
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(
            f"{came} {type(params).__name__} as parameters; expected a list of Tensors, "
            "such as [w, b] or model.parameters()"
        )
    listed = list(params)
    if not listed:
        raise ValueError(
            f"{came} no parameters; expected at least one. A generator can be used only once: "
            "make a list of it"
        )
    return listed


def _leaf(p: Any, kind: str) -> Tensor:
    """Check that p is a tensor which gets a gradient."""
    if not isinstance(p, Tensor):
        raise TypeError(
            f"{kind}: got {type(p).__name__} as a parameter; expected a Tensor. "
            "Pass model.parameters(), or groups: [{'params': [...], 'lr': 0.1}]"
        )
    if p.node is None or p.node.op:
        what = f"is the result of {p.node.op}" if p.node else "requires no gradient"
        raise ValueError(
            f"{kind}: a parameter of shape {p.shape} {what}; expected a leaf with "
            "requires_grad=True. Leave out what is frozen: [p for p in params if p.requires_grad]"
        )
    return p


def _refuse_twice(params: list[Tensor], kind: str) -> None:
    first = dict[int, int]()
    for i, p in enumerate(params):
        before = first.setdefault(id(p), i)
        if before != i:
            raise ValueError(f"{kind}: parameter {i} is parameter {before} again; list each once")


def _plain(value: Any) -> Any:
    """Turn numbers into Python's: times a NumPy float64, a float32 array becomes float64."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    return value


_VALUES = {**VALUES, "lr_scale": VALUES["lr"]}  # which a group has, and nobody sets
