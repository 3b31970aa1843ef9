"""Check every op on a backend: a table of cases, and the checks that each of them must pass.

`tinygrad-cnn selftest` prints what `run` yields; the tests run the same checks one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, NamedTuple
from zlib import crc32

import numpy

from . import functional  # noqa: F401  (fills OPS)
from .autograd import OPS
from .backends import current, use_backend
from .backends.base import nhwc
from .backends.geometry import Shape, output_size
from .gradcheck import gradcheck
from .tensor import Tensor, grad
from .testing import assert_adjoint, assert_multilinear_adjoint, ladder_values

VALUES: dict[str, Callable[[Shape, numpy.random.Generator], Any]] = {
    "normal": lambda shape, rng: rng.standard_normal(shape),
    "positive": lambda shape, rng: rng.uniform(0.5, 2, shape),
    "ladder": ladder_values,  # for ops with kinks
}


class Case:
    """An op with the shapes and the kind of its inputs, and its settings."""

    def __init__(self, op: str, *shapes: Shape, values: str = "normal", **settings: Any) -> None:
        self.op, self.shapes, self.values, self.settings = op, shapes, values, settings

    def __repr__(self) -> str:
        return " ".join([self.op, *("x".join(map(str, s)) or "scalar" for s in self.shapes)])

    def inputs(self, dtype: str = "float64") -> list[Tensor]:
        """Draw the inputs, the same every time, as leaves on the current backend."""
        rng = numpy.random.default_rng(crc32(repr(self).encode()))
        arrays = [VALUES[self.values](shape, rng).astype(dtype) for shape in self.shapes]
        return [Tensor(_on_backend(a), requires_grad=True) for a in arrays]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Call the op; arrays among the settings are moved to where the inputs are."""
        settings = {k: _fit(v, inputs[0].dtype) for k, v in self.settings.items()}
        return OPS[self.op](*inputs, **settings)


def _fit(value: Any, dtype: Any) -> Any:
    """Move the arrays in a setting to the current backend, the real ones among them as `dtype`."""
    if isinstance(value, tuple):
        return tuple(_fit(v, dtype) for v in value)
    if not isinstance(value, numpy.ndarray):
        return value
    return _on_backend(value.astype(dtype) if value.dtype.kind == "f" else value)


def _on_backend(a: Any) -> Any:
    """Copy to the current backend; a 4-D array becomes channels-last on every one."""
    backend = current()
    own = backend.empty(a.shape, a.dtype)
    own[...] = backend.asarray(a)
    return own


# ---- the table ----

X, NO_IMAGES, UNPADDED = (2, 3, 4, 5), (0, 3, 4, 5), ((0, 0), (0, 0))
PADDED: dict[str, Any] = dict(stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)


def _pattern(shape: Shape, n: int) -> Any:
    """Fill a shape with 0 ... n-1 in diagonals."""
    return numpy.indices(shape).sum(axis=0) % n


def _convolution(x: Shape, w: Shape, **at: Any) -> list[Case]:
    """Give a row to each of the three bilinear ops."""
    at = PADDED | at
    steps = {name: at[name] for name in at if name != "groups"}
    g = (x[0], w[0], *output_size((x[2], x[3]), kernel=(w[2], w[3]), **steps))
    return [
        Case("conv2d", x, w, **at),
        Case("conv2d_input_grad", g, w, x_shape=x, **at),
        Case("conv2d_weight_grad", g, x, w_shape=w, **at),
    ]


def _pooling(x: Shape, *, kernel: Any, **at: Any) -> list[Case]:
    """Give a row to each of pooling's ops; without padding every argmax is possible."""
    y = (*x[:2], *output_size((x[2], x[3]), kernel=kernel, padding=UNPADDED, **at))
    argmax = _pattern(y, kernel[0] * kernel[1]).astype("uint8")
    plain = dict(kernel_size=kernel, padding=UNPADDED, **at)
    padded = plain | dict(padding=((1, 1), (0, 0)))
    return [
        *(Case("max_pool2d", x, values="ladder", **settings) for settings in (plain, padded)),
        *(Case("avg_pool2d", x, **settings) for settings in (plain, padded)),
        Case("max_pool2d_grad", y, argmax=argmax, x_shape=x, **plain),
        Case("max_pool2d_gather", x, argmax=argmax, **plain),
        Case("avg_pool2d_grad", y, x_shape=x, **plain),
    ]


TRAINING = dict(mean=None, var=None, eps=1e-3, on_statistics=lambda mean, var: None)
EVALUATION = TRAINING | dict(mean=_pattern((3,), 3) / 4, var=_pattern((3,), 2) + 0.5)
WINDOW: dict[str, Any] = dict(size=4, alpha=0.5, beta=0.75, k=2.0)  # even: not symmetric
ALL, ROWS = dict(axis=None, keepdims=False), dict(axis=(0, -1), keepdims=True)
SMOOTHED: dict[str, Any] = dict(targets=numpy.array([2, 0, 2]), label_smoothing=0.1)
BASIC = (slice(None, None, 2), None, 1, ..., slice(3, 0, -1))
FANCY = (numpy.array([1, 0, 1, 1]),)  # names a place three times

CASES: list[Case] = [
    Case("add", X, (3, 1, 1)),
    Case("sub", (3, 1), (1, 4)),
    Case("mul", X, (3, 1, 1)),
    Case("mul", (), (2, 3)),
    Case("div", X, (4, 1), values="positive"),
    Case("power", X, exponent=3),
    Case("power", (2, 3), exponent=0),
    Case("power", X, values="positive", exponent=-0.5),
    *(Case(op, X) for op in ("neg", "exp", "erf", "tanh", "sigmoid")),
    *(Case(op, X, values="positive") for op in ("log", "sqrt")),
    *(Case(op, X, values="ladder") for op in ("abs", "relu")),
    Case("clip", X, values="ladder", low=-1.0, high=2.0),
    Case("clip", (2, 3), values="ladder", low=None, high=0.2),
    Case("relu", NO_IMAGES),
    Case("relu_grad", X, y=_pattern(X, 3) - 1.0),
    Case("where", X, (4, 1), condition=_pattern(X, 3) > 0),
    Case("astype", X, dtype=numpy.dtype("float64")),
    Case("reshape", X, shape=(6, -1)),
    Case("permute", X, axes=(2, 0, -1, 1)),
    Case("broadcast_to", (3, 1, 5), shape=X),
    Case("getitem", X, index=BASIC),
    Case("getitem", X, index=FANCY),
    Case("index_add", (1, 1, 4, 3), index=BASIC, shape=X),
    Case("index_add", (4, 3, 4, 5), index=FANCY, shape=X),
    Case("concatenate", X, (2, 1, 4, 5), (2, 0, 4, 5), axis=-3),
    Case("pad", X, pad_width=((0, 0), (1, 0), (2, 1), (0, 3))),
    *(Case(op, X, **at) for op in ("sum", "mean", "logsumexp") for at in (ALL, ROWS)),
    *(Case(op, X, values="ladder", **at) for op in ("max", "min") for at in (ALL, ROWS)),
    *(Case(op, X, axis=axis) for op in ("softmax", "log_softmax") for axis in (1, -1)),
    Case("matmul", (3, 4), (4, 2)),
    Case("matmul", (3, 4), (2, 4, 5)),
    *_convolution((2, 4, 7, 6), (6, 2, 3, 2), groups=2, stride=(2, 1), dilation=(1, 2)),
    *_convolution((2, 4, 5, 4), (4, 1, 2, 2), groups=4, padding=((0, 1), (0, 1))),  # "same"
    *_convolution((3, 2, 1, 7), (3, 2, 1, 2), stride=(1, 3), padding=UNPADDED),
    *_convolution((0, 2, 5, 5), (3, 2, 3, 3)),
    *_convolution((1, 16, 8, 8), (16, 16, 3, 3)),  # for the fast paths
    Case("conv2d", X, (6, 1, 3, 3), (6,), **PADDED | dict(groups=3)),
    Case("conv2d", X, (4, 3, 3, 3), (4,), (2, 4, 4, 5), relu=True, **PADDED),
    Case("conv2d", (1, 16, 3, 4), (16, 16, 3, 3), (16,), (1, 16, 3, 4), relu=True, **PADDED),
    *_pooling((2, 3, 7, 6), kernel=(3, 2), stride=(2, 1)),
    *_pooling((1, 2, 4, 8), kernel=(2, 2), stride=(1, 3)),
    *_pooling((0, 2, 4, 4), kernel=(2, 2), stride=(2, 2)),
    *(Case("batch_norm", X, (3,), (3,), relu=False, **at) for at in (TRAINING, EVALUATION)),
    *(Case("batch_norm", X, (3,), (3,), X, relu=True, **at) for at in (TRAINING, EVALUATION)),
    Case("batch_norm", NO_IMAGES, (3,), (3,), relu=True, **EVALUATION),
    Case("local_response_norm", (2, 6, 2, 3), **WINDOW),
    Case("local_response_norm", NO_IMAGES, **WINDOW),
    Case("softmax_cross_entropy", (3, 4), **SMOOTHED),
    Case("multiclass_hinge", (3, 4), values="ladder", targets=SMOOTHED["targets"], margin=0.25),
]

# fn(x) = <derivative at x, x> holds for what is linear and, by Euler, for what is piecewise so
LINEAR = set(
    "add sub neg abs relu relu_grad where astype reshape permute broadcast_to getitem "
    "index_add concatenate pad sum mean max min max_pool2d max_pool2d_grad max_pool2d_gather "
    "avg_pool2d avg_pool2d_grad".split()
)
MULTILINEAR = {"mul", "matmul", "conv2d", "conv2d_input_grad", "conv2d_weight_grad"}
# CuPy gives the results of these, and parts picked by an index array, in C order; they are no
# images, so that costs nothing. NumPy keeps the inputs' order.
REDUCTIONS = {"sum", "mean", "max", "min", "logsumexp"}
NO_ACTIVATIONS = {"permute", "reshape", "getitem", "matmul", "conv2d_weight_grad"}


# ---- the checks, on the current backend; each raises an error of its own ----


def check_gradients(case: Case) -> None:
    """Compare the gradients, and the gradients of the gradients, with finite differences."""
    gradcheck(case, case.inputs(), order=2)


def check_adjoint(case: Case) -> None:
    """Check a linear op's adjoint identity in float32, through the kernels that training uses."""
    check = assert_adjoint if case.op in LINEAR else assert_multilinear_adjoint
    check(case, *case.inputs("float32"), rtol=1e-4)


def check_dtype(case: Case) -> None:
    """Demand float32 results and gradients from float32 inputs."""
    y, grads = _pass(case, case.inputs("float32"))
    wanted = case.settings.get("dtype", "float32")
    _demand(y.dtype == wanted, f"expected {wanted}, received {y.dtype}")
    _demand(all(g.dtype == "float32" for g in grads), "a gradient is not float32")


def check_layout(case: Case) -> None:
    """Demand 4-D results that are channels-last, as the inputs are, and gradients in that order.

    On CuPy not of reductions and of what an index array picks.
    """
    strict = current().xp is numpy
    y, (dx, *_) = _pass(case, case.inputs("float32"))
    if y.ndim == 4 and (strict or case.op not in REDUCTIONS):
        _demand(nhwc(y.data).flags.c_contiguous, "the result is not channels-last")
    if dx.ndim == 4 and (strict or case.op != "index_add"):  # a part of a larger gradient has gaps
        a = nhwc(dx.data)
        steps = [step for step, n in zip(a.strides, a.shape, strict=True) if n > 1]
        _demand(steps == sorted(steps, reverse=True), "the gradient is not channels-last")


def check_purity(case: Case) -> None:
    """Demand that no input is changed, and that what shares memory with one is declared a view."""
    inputs = case.inputs("float32")
    before = [x.numpy().copy() for x in inputs]
    y, _ = _pass(case, inputs)
    unchanged = all((x.numpy() == old).all() for x, old in zip(inputs, before, strict=True))
    _demand(unchanged, "an input was changed")
    others = [x.data for x in inputs if x.version is not y.version]
    shared = any(y.backend.xp.shares_memory(y.data, x) for x in others)
    _demand(not shared, "the result shares an input's memory; declare @op(view=True)")


def check_agreement(case: Case) -> None:
    """Compare results and gradients, in both dtypes, with NumPy's in float64."""
    with use_backend("numpy"):
        expected_y, expected_grads = _pass(case, case.inputs())
    for dtype, rtol in ("float64", 1e-10), ("float32", 1e-4):
        y, grads = _pass(case, case.inputs(dtype))
        for a, b in zip([y, *grads], [expected_y, *expected_grads], strict=True):
            error = numpy.abs(a.numpy() - b.numpy()).max(initial=0)
            largest = numpy.abs(b.numpy()).max(initial=0)
            _demand(error <= rtol * largest, f"{dtype}: off by {error:.1e} of {largest:.1e}")


def _pass(case: Case, inputs: list[Tensor]) -> tuple[Tensor, list[Any]]:
    """Run an op forward and backward."""
    y = case(*inputs)
    g = numpy.random.default_rng(0).uniform(-1, 1, y.shape).astype(y.dtype)
    return y, grad([y], inputs, [Tensor(_on_backend(g))])


def _demand(holds: bool, complaint: str) -> None:
    if not holds:
        raise AssertionError(complaint)


CHECKS = (check_gradients, check_adjoint, check_dtype, check_layout, check_purity, check_agreement)


def applies(check: Callable[[Case], None], case: Case) -> bool:
    """Tell whether a check means something for a case."""
    if check is check_adjoint:
        return case.op in LINEAR or (case.op in MULTILINEAR and len(case.shapes) == 2)
    return check is not check_layout or case.op not in NO_ACTIVATIONS


# ---- running it all ----


class Result(NamedTuple):
    """How an op fared: the checks made, and the first failure's message or ""."""

    op: str
    passed: bool
    checks: int
    seconds: float
    message: str


def run(backend: str) -> Iterator[Result]:
    """Check every op on a backend; yield one result per op, in the table's order."""
    for op in dict.fromkeys(case.op for case in CASES):
        yield _check_op(op, backend)


def _check_op(op: str, backend: str) -> Result:
    start, checks = perf_counter(), 0
    with use_backend(backend):
        todo = [(c, case) for case in CASES if case.op == op for c in CHECKS if applies(c, case)]
        for check, case in todo:
            checks += 1
            try:
                check(case)
            except Exception as error:  # whatever it is, the other ops are still worth checking
                message = f"{check.__name__}({case}): {error}"
                return Result(op, False, checks, perf_counter() - start, message)
    return Result(op, True, checks, perf_counter() - start, "")
