"""The Tensor: an array on a backend, its gradient, and its place in the recorded graph.

Its methods are thin: the mathematics is in `ops/`, the walk in `autograd.py`.

>>> x = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True, backend="numpy")
>>> (x * x).sum().backward()
>>> x.grad
Tensor([[2., 4.],
        [6., 8.]], shape=(2, 2), float32, numpy)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any

import numpy

from . import backends
from .autograd import Node, Variable, gradients, ops, recording, setting
from .backends import Array, Backend
from .dtypes import check_dtype, python_number, read
from .interop import ForeignLibraries

OnBackend = str | Backend | None  # None: the current one
Shape = tuple[int, ...]
Axis = int | tuple[int, ...] | None


class BackendMismatch(TypeError):
    """Tensors of two backends met in one op."""


def _operators(name: str) -> Iterator[Callable[[Tensor, Any], Tensor]]:
    """Give x + y, and y + x for where y is no Tensor."""
    yield lambda self, other: getattr(ops, name)(self, other)
    yield lambda self, other: getattr(ops, name)(other, self)


def _method(name: str, doc: str) -> Callable[[Tensor], Tensor]:
    def method(self: Tensor) -> Tensor:
        return getattr(ops, name)(self)

    method.__name__, method.__doc__ = name, doc
    return method


def _comparison(name: str) -> Callable[[Tensor, Any], Tensor]:
    """Compare elementwise; the answer is boolean and outside the graph."""

    def compare(self: Tensor, other: Any) -> Tensor:
        f = getattr(self.backend.xp, name)
        return self.constant(self.backend.map(f, self.data, self.lift(other, op=name).data))

    return compare


class Tensor(ForeignLibraries, Variable):
    """An array with a gradient.

    `data` is aliased where it is an array already. Lists become float32. Floating point is
    float32 or float64; integers and booleans may be held, but can't require a gradient.
    """

    __slots__ = ("_data", "backend", "grad")

    def __init__(
        self, data: Any, requires_grad: bool = False, dtype: Any = None, backend: OnBackend = None
    ) -> None:
        self.backend = backends.current() if backend is None else backends.get(backend)
        if isinstance(data, Tensor):
            data = data.data if data.backend is self.backend else data.numpy()
        elif not hasattr(data, "dtype"):
            data = read(data, dtype or numpy.float32)
        self._data: Array = self.backend.asarray(data, dtype)
        check_dtype(self._data.dtype, requires_grad)
        self.grad: Tensor | None = None
        self.version, self.spare = [0], False
        self.node = Node(self.shape, leaf=self) if requires_grad else None

    # ---- what it is ----

    @property
    def data(self) -> Array:
        """The array; assigning one of the same shape and dtype replaces it."""
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        value = self.backend.asarray(value.data if isinstance(value, Tensor) else value)
        if value.shape != self.shape or value.dtype != self.dtype:
            raise ValueError(
                f"data: got {value.dtype} of shape {value.shape} for a tensor that holds "
                f"{self.dtype} of shape {self.shape}; make a new Tensor instead"
            )
        self._data = value
        self.version[0] += 1

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to this tensor."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.node and self.node.op:
            raise ValueError(
                f"requires_grad: this tensor is the result of {self.node.op}; "
                "only a leaf can be changed. Use .detach()"
            )
        check_dtype(self.dtype, value)
        if value != self.requires_grad:  # a second node would be unknown to what was recorded
            self.node = Node(self.shape, leaf=self) if value else None

    shape = property(lambda self: self._data.shape)
    dtype = property(lambda self: self._data.dtype)
    ndim = property(lambda self: self._data.ndim)
    size = property(lambda self: self._data.size)
    T = property(lambda self: self.permute(*reversed(range(self.ndim))))

    def numpy(self) -> numpy.ndarray[Any, Any]:
        """Give the values as a NumPy array; on a CPU backend it shares the tensor's memory."""
        return self.backend.to_numpy(self._data)

    def item(self) -> float:
        """Give the only value as a Python number."""
        if self.size != 1:
            raise ValueError(f"item: {self.shape} is no single value; call .sum() or .mean() first")
        return self.numpy().item()

    def detach(self) -> Tensor:
        """Give the same values outside the graph; the memory is shared."""
        twin = self.constant(self._data)
        twin.version = self.version
        return twin

    def to(self, backend: str | Backend) -> Tensor:
        """Give a copy on another backend, outside the graph; itself if it is there already."""
        target = backends.get(backend)
        if target is self.backend:
            return self
        leaf = self.requires_grad and not self.node.op  # type: ignore[union-attr]
        if self.requires_grad and not leaf:
            raise ValueError(
                "to: this tensor is recorded, and no gradient can cross backends; move the inputs "
                "before the computation, or .detach() first"
            )
        return Tensor(target.asarray(self.numpy()).copy(order="K"), leaf, backend=target)

    def replace_data(self, array: Array, *, backend: Backend | None = None) -> None:
        """Put a leaf on another backend or dtype: same shape, same object, no gradient."""
        self._data, self.backend, self.grad = array, backend or self.backend, None
        self.version[0] += 1

    def __repr__(self) -> str:
        values = numpy.array2string(self.numpy(), separator=", ", threshold=20, prefix="Tensor(")
        facts = [f"shape={self.shape}", str(self.dtype), self.backend.name]
        if self.node:
            facts.append(f"op={self.node.op}" if self.node.op else "requires_grad")
        return f"Tensor({values}, {', '.join(facts)})"

    # ---- what autograd needs ----

    def lift(self, value: Any, *, op: str) -> Tensor:
        """Turn an operand of `op` into a tensor of this backend and dtype, or refuse it."""
        if not isinstance(value, Tensor):
            value = self._made_of(value, op)
        if value.backend is not self.backend:
            raise BackendMismatch(
                f"{op} got tensors on {self.backend.name!r} and {value.backend.name!r}; "
                "move one with .to(...)"
            )
        if value.dtype != self.dtype:
            raise TypeError(
                f"{op} got {self.dtype} and {value.dtype}; convert one with .astype(...)"
            )
        return value

    def _made_of(self, value: Any, op: str) -> Tensor:
        if isinstance(value, numpy.ndarray):
            if value.ndim:
                return Tensor(value, backend=self.backend)
            value = value[()]  # NumPy makes an array of its number in np.float64(1) < t
        if not isinstance(value, int | float | numpy.bool | numpy.integer | numpy.floating):
            raise TypeError(
                f"{op}: got {type(value).__name__}; expected a Tensor, a NumPy array or a number"
            )
        array = numpy.asarray(value).astype(self.dtype)
        if self.dtype.kind != "f" and array != value:
            raise TypeError(f"{op}: {value} can't be held as {self.dtype}; use .astype(...) first")
        return self.constant(self.backend.asarray(array))

    def constant(self, array: Array) -> Tensor:
        """Wrap an array of this backend, unrecorded."""
        twin = object.__new__(Tensor)  # every op does this: __init__ has too many questions
        twin._data, twin.backend, twin.grad = self.backend.asarray(array), self.backend, None
        twin.version, twin.node, twin.spare = [0], None, False
        return twin

    def add_in_place(self, other: Variable) -> None:
        """Add to this tensor's own array, unrecorded."""
        self.backend.add(self._data, other.data, out=self._data)

    # ---- gradients ----

    def backward(
        self, grad: Any = None, create_graph: bool = False, retain_graph: bool = False
    ) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf it was computed from.

        `grad` weighs the values of a tensor that has more than one. The graph is freed on the way
        unless `retain_graph` or `create_graph`. A leaf owns its gradient: writable, dense, shared
        with nobody.
        """
        node, seed = _root(self, op="backward"), _seed(self, grad, op="backward")
        found = gradients([node], [seed], create_graph=create_graph, retain_graph=retain_graph)
        with setting(recording, create_graph):
            for reached, g in found.items():
                leaf: Any = reached.leaf and reached.leaf()
                if leaf is not None:
                    leaf._accumulate_grad(g, create_graph)

    def _accumulate_grad(self, g: Tensor, create_graph: bool) -> None:
        total = g if self.grad is None else self.grad + g
        own = self.backend.xp.empty_like(self._data)
        own[...] = total._data
        self.grad = self.constant(own)
        self.grad.node = total.node if create_graph else None

    # ---- operators and methods: each is an op of the same name ----

    __add__, __radd__ = _operators("add")
    __sub__, __rsub__ = _operators("sub")
    __mul__, __rmul__ = _operators("mul")
    __truediv__, __rtruediv__ = _operators("div")
    __matmul__, __rmatmul__ = _operators("matmul")
    __lt__, __le__ = _comparison("less"), _comparison("less_equal")
    __gt__, __ge__ = _comparison("greater"), _comparison("greater_equal")
    __eq__, __ne__ = _comparison("equal"), _comparison("not_equal")  # type: ignore[assignment]
    __hash__ = object.__hash__  # by identity: == compares values
    __neg__, __abs__ = _method("neg", "-x."), _method("abs", "|x|.")

    exp = _method("exp", "Raise e to the power of each value.")
    log = _method("log", "Take the natural logarithm.")
    sqrt = _method("sqrt", "Take the square root.")
    tanh = _method("tanh", "Take the hyperbolic tangent.")
    relu = _method("relu", "max(x, 0).")
    abs = _method("abs", "Take the absolute value; its gradient at 0 is 0.")

    def __pow__(self, exponent: float) -> Tensor:
        if not isinstance(exponent, Real):
            raise TypeError(
                "power: the exponent must be a number; write (y * x.log()).exp() for x**y"
            )
        return ops.power(self, exponent=python_number(exponent))

    def __getitem__(self, index: Any) -> Tensor:
        parts = index if isinstance(index, tuple) else (index,)
        plain = tuple(part.data if isinstance(part, Tensor) else part for part in parts)
        return ops.getitem(self, index=plain)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "a Tensor's items can't be assigned: the recorded graph may need the old values. "
            "Use tg.where(...), or change t.numpy() before the computation"
        )

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len: a tensor of shape () has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Add up along `axis` (all axes if None)."""
        return ops.sum(self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Average along `axis`."""
        return ops.mean(self, axis=axis, keepdims=keepdims)

    def var(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Average the squared distance from the mean along `axis` (biased, as NumPy)."""
        centred = self - self.mean(axis, keepdims=True)
        return (centred * centred).mean(axis, keepdims)

    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Take the largest along `axis`; equal largest values share the gradient evenly."""
        return ops.max(self, axis=axis, keepdims=keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Take the smallest along `axis`; equal smallest values share the gradient evenly."""
        return ops.min(self, axis=axis, keepdims=keepdims)

    def logsumexp(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """log(sum(exp(x))) along `axis`, without overflow."""
        return ops.logsumexp(self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: int | None = None) -> Tensor:
        """Give the positions of the largest values (int64), outside the graph."""
        return self.constant(self._data.argmax(axis))

    def reshape(self, *shape: Any) -> Tensor:
        """Arrange the values in another shape; one size may be -1."""
        return ops.reshape(self, shape=unpack(shape))

    def flatten(self, start_axis: int = 0) -> Tensor:
        """Merge all axes from `start_axis` on."""
        if not -self.ndim <= start_axis < max(self.ndim, 1):
            raise ValueError(f"flatten: x is {self.shape}, which has no axis {start_axis}")
        kept = start_axis % max(self.ndim, 1)
        return self.reshape(*self.shape[:kept], math.prod(self.shape[kept:]))

    def permute(self, *axes: Any) -> Tensor:
        """Reorder the axes."""
        return ops.permute(self, axes=unpack(axes))

    def transpose(self, a: int, b: int) -> Tensor:
        """Exchange two axes."""
        axes = list(range(self.ndim))
        if not all(-self.ndim <= axis < self.ndim for axis in (a, b)):
            raise ValueError(f"transpose: x is {self.shape}, which has no axes {a} and {b}")
        axes[a], axes[b] = axes[b], axes[a]
        return self.permute(*axes)

    def clip(self, low: float | None = None, high: float | None = None) -> Tensor:
        """Limit the values to [low, high]; outside, the gradient is 0."""
        return ops.clip(self, low=python_number(low), high=python_number(high))

    def astype(self, dtype: Any) -> Tensor:
        """Convert to another dtype; gradients flow between float32 and float64, not to integers."""
        dtype = numpy.dtype(dtype)
        if dtype.kind != "f":
            return self.constant(self._data.astype(dtype))
        return ops.astype(self, dtype=dtype)


def unpack(args: tuple[Any, ...]) -> Shape:
    """Read f(2, 3) and f((2, 3)) alike."""
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], Sequence) else args


def _root(tensor: Tensor, *, op: str) -> Node:
    if tensor.node is None:
        raise ValueError(
            f"{op}: nothing was recorded for this tensor; make its inputs with "
            "requires_grad=True, and don't compute it under no_grad()"
        )
    return tensor.node


def _seed(tensor: Tensor, grad: Any, *, op: str) -> Tensor:
    if grad is None:
        if tensor.size != 1:
            raise ValueError(
                f"{op}: this tensor has shape {tensor.shape}; only a single value has an obvious "
                f"gradient. Call .sum() first, or pass the gradient: {op}(grad)"
            )
        return tensor.constant(tensor.backend.xp.ones(tensor.shape, tensor.dtype))
    grad = tensor.lift(grad, op=op)
    if grad.shape != tensor.shape:
        raise ValueError(f"{op}: the gradient is {grad.shape}; expected {tensor.shape}")
    return grad


def grad(
    outputs: Tensor | Sequence[Tensor], inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None, create_graph: bool = False, retain_graph: bool = False,
    allow_unused: bool = False,
) -> list[Tensor | None]:  # fmt: skip
    """Compute the gradients of `outputs` with respect to `inputs`; no `.grad` is touched.

    The inputs may be leaves or intermediate results. With `create_graph` the gradients are recorded
    and can be differentiated again. An input that the outputs don't depend on is an error, or None
    with `allow_unused`.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not isinstance(grad_outputs, list | tuple):
        grad_outputs = [grad_outputs] * len(outputs)
    roots = [_root(y, op="grad") for y in outputs]
    seeds = [_seed(y, g, op="grad") for y, g in zip(outputs, grad_outputs, strict=True)]
    targets = [_root(x, op="grad") for x in inputs]
    found = gradients(
        roots, seeds, targets=targets, create_graph=create_graph, retain_graph=retain_graph
    )
    for i, target in enumerate(targets):
        if target not in found and not allow_unused:
            raise ValueError(
                f"grad: the outputs don't depend on input {i} of shape {inputs[i].shape}; "
                "pass allow_unused=True to get None for it"
            )
    return [found.get(target) for target in targets]
