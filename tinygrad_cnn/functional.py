"""The ops under their usual names: `from tinygrad_cnn import functional as F`.

Names and argument order are PyTorch's, axes are NumPy's (`axis`, `keepdims`). What a user can get
wrong is checked here; below this file, shapes fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import numpy

from .autograd import setting
from .backends import geometry
from .ops import conv, elementwise, loss, norm, pool, reduce, shape
from .ops.elementwise import erf, relu, sigmoid, tanh
from .random import generator
from .state import fed, uses
from .tensor import Tensor

__all__ = [
    "avg_pool2d", "batch_norm", "concatenate", "conv2d", "cross_entropy", "dropout", "erf", "gelu",
    "global_avg_pool2d", "hinge_loss", "leaky_relu", "linear", "local_response_norm", "log_softmax",
    "max_pool2d", "mse_loss", "pad", "relu", "relu_rule", "sigmoid", "softmax", "stack", "tanh",
    "unfused", "where",
]  # fmt: skip

_unfused: ContextVar[bool] = ContextVar("unfused", default=False)


def unfused() -> Any:
    """Run fused layers as layer, add and relu inside a `with` block: hooks see each part."""
    return setting(_unfused, True)


def relu_rule(rule: str) -> Any:
    """Change what a ReLU recorded inside a `with` block passes back, to see what a net has learned.

    "gradient" is calculus; "deconv" passes the positive gradients (Zeiler & Fergus, arXiv
    1311.2901); "guided" passes the positive gradients where the input was positive (Springenberg
    et al., arXiv 1412.6806).
    """
    if rule not in elementwise.RELU_RULES:
        known = ", ".join(elementwise.RELU_RULES)
        raise ValueError(f"relu_rule: got {rule!r}; expected one of {known}")
    return setting(elementwise.rule_in_force, rule)


def in_parts(relu: bool) -> bool:
    """Tell whether a fused layer, perhaps with a ReLU, is to be run part by part."""
    return _unfused.get() or (relu and elementwise.rule_in_force.get() != "gradient")


def _finished(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def _check_float(x: Any, *, op: str) -> None:
    """Demand a Tensor of real numbers."""
    came = x.dtype if isinstance(x, Tensor) else type(x).__name__
    if not isinstance(x, Tensor) or x.dtype.kind != "f":
        raise TypeError(f"{op}: got {came}; expected a Tensor of float32 or float64")


# ---- layers ----


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x (N, in) times w (out, in) transposed, plus b (out,) -> (N, out)."""
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        hint = " Images? x.flatten(1)" if x.ndim == 4 else ""
        raise ValueError(
            f"linear: x is {x.shape}, w is {w.shape}; expected (N, in) and (out, in).{hint}"
        )
    _check_bias(b, w, op="linear")
    y = x @ w.T
    return y if b is None else y + b


def conv2d(
    x: Tensor, w: Tensor, b: Tensor | None = None, stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0, dilation: int | Sequence[int] = 1, groups: int = 1,
    *, residual: Tensor | None = None, relu: bool = False,
) -> Tensor:  # fmt: skip
    """Cross-correlate x (N, C, H, W) with w (O, C/groups, kh, kw) -> (N, O, H', W').

    H' = floor((H + pads - dilation * (kh - 1) - 1) / stride) + 1. Padding is a number, a pair,
    "same" (stride 1 only) or "valid". CS231n, "Convolutional Networks".

    A `residual` like the result is added, and relu applied; with a bias b in one op, which is made
    for inference: most kernels do both where they write, but each gradient has to mask anew.
    """
    _check_float(x, op="conv2d")
    at = _conv2d_settings(
        x.shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    _check_bias(b, w, op="conv2d")
    if residual is not None:
        _check_residual(residual, _convolved(x.shape, w.shape, **at), op="conv2d")
    bias, more = ([] if t is None else [t] for t in (b, residual))
    if b is None or in_parts(relu):
        return _finished(conv.conv2d(x, w, *bias, **at), residual, relu)
    return conv.conv2d(x, w, *bias, *more, relu=relu, **at)


_known_settings = lru_cache(typed=True)(geometry.conv2d_settings)


def _conv2d_settings(x: geometry.Shape, w: geometry.Shape, **settings: Any) -> dict[str, Any]:
    try:  # of one image a layer is done so soon that checking anew would count
        return _known_settings(x, w, **settings)
    except TypeError:  # a setting is wrong, or a list, which can't be remembered
        return geometry.conv2d_settings(x, w, **settings)


def _convolved(x: geometry.Shape, w: geometry.Shape, *, groups: int, **at: Any) -> geometry.Shape:
    return (x[0], w[0], *geometry.output_size((x[2], x[3]), kernel=(w[2], w[3]), **at))


def _check_bias(b: Tensor | None, w: Tensor, *, op: str) -> None:
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"{op}: b is {b.shape}; expected {w.shape[:1]}, one for each output")


def _check_residual(residual: Tensor, y: geometry.Shape, *, op: str) -> None:
    if residual.shape != y:
        raise ValueError(f"{op}: the result is {y}, but residual is {residual.shape}")


def max_pool2d(
    x: Tensor, kernel_size: int | Sequence[int], stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
) -> Tensor:  # fmt: skip
    """Take the largest pixel of each window: (N, C, H, W) -> (N, C, H', W').

    stride=None is kernel_size. Padding, at most half a kernel, never wins. Of equal pixels the
    first gets the gradient (of a window of nothing but -inf, perhaps none).
    """
    _check_float(x, op="max_pool2d")
    at = geometry.pool2d_settings(x.shape, kernel_size, stride, padding, op="max_pool2d")
    return pool.max_pool2d(x, **at)


def avg_pool2d(
    x: Tensor, kernel_size: int | Sequence[int], stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
) -> Tensor:  # fmt: skip
    """Average each window, zeros of the padding included: (N, C, H, W) -> (N, C, H', W')."""
    _check_float(x, op="avg_pool2d")
    at = geometry.pool2d_settings(x.shape, kernel_size, stride, padding, op="avg_pool2d")
    return pool.avg_pool2d(x, **at)


def global_avg_pool2d(x: Tensor) -> Tensor:
    """Average each channel's map: (N, C, H, W) -> (N, C). Lin et al., arXiv 1312.4400, 3.2."""
    geometry.check_images(x.shape, op="global_avg_pool2d")
    return avg_pool2d(x, x.shape[2:]).flatten(1)


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Normalise x (N, C, H, W) per channel; then add `residual` and apply relu, in the same pass.

    In training the statistics are the batch's, and the running ones (C,) move towards them by
    `momentum` (with the unbiased variance, as PyTorch). Ioffe & Szegedy, arXiv 1502.03167.
    """
    per_channel = dict(running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    _check_batch_norm(x, per_channel, residual, training=training)
    if in_parts(relu):
        return _batch_norm_in_parts(
            x, running_mean, running_var, weight, bias, training, momentum, eps,
            residual=residual, relu=relu,
        )  # fmt: skip

    uses(running_mean, running_var)

    def update(mean: Any, var: Any) -> None:
        count = x.size // x.shape[1]
        unbiased = count / (count - 1)
        for running, new, scale in (running_mean, mean, 1.0), (running_var, var, unbiased):
            at = dict(new=new, momentum=momentum, scale=scale)
            running.data = x.backend.running_average(running.data, **at)

    mean, var = (None, None) if training else (running_mean.data, running_var.data)
    return norm.batch_norm(
        x, weight, bias, *([] if residual is None else [residual]),
        mean=mean, var=var, eps=eps, relu=relu, on_statistics=update,
    )  # fmt: skip


def _check_batch_norm(
    x: Tensor, per_channel: dict[str, Tensor], residual: Tensor | None, *, training: bool
) -> None:
    _check_float(x, op="batch_norm")
    geometry.check_images(x.shape, op="batch_norm")
    for name, t in per_channel.items():
        if x.lift(t, op="batch_norm").shape != (x.shape[1],):
            raise ValueError(
                f"batch_norm: x {x.shape} has {x.shape[1]} channels, but {name} is {t.shape}"
            )
    if residual is not None:
        _check_residual(residual, x.shape, op="batch_norm")
    if training and x.size // max(x.shape[1], 1) < 2:
        raise ValueError(
            f"batch_norm: x {x.shape} has one value per channel or none, which has no variance; "
            "train with a larger batch, or call model.eval()"
        )


def _batch_norm_in_parts(
    x: Tensor, *args: Any, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    with setting(_unfused, False):
        y = batch_norm(x, *args)
    return _finished(y, residual, relu)


def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Divide x by (k + alpha/size * sum of squares of `size` neighbouring channels) ** beta.

    Krizhevsky et al., NIPS 2012, section 3.3; their alpha is not divided by size, PyTorch's and
    ours is: AlexNet has size 5, alpha 5e-4, beta 0.75, k 2.
    """
    _check_float(x, op="local_response_norm")
    geometry.check_images(x.shape, op="local_response_norm")
    if size < 1:
        raise ValueError(f"local_response_norm: size is {size}; expected at least 1 channel")
    alpha, beta, k = float(alpha), float(beta), float(k)  # NumPy's float64 would spread
    return norm.local_response_norm(x, size=size, alpha=alpha, beta=beta, k=k)


def dropout(
    x: Tensor, p: float = 0.5, training: bool = True, rng: numpy.random.Generator | None = None
) -> Tensor:
    """Zero each value with probability p, scale the rest by 1 / (1 - p); in evaluation do nothing.

    Srivastava et al., JMLR 15, 2014. The mask is drawn on the host, so all backends see the same.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p is {p}; expected 0 <= p < 1")
    if not training or p == 0:
        return x

    shape, dtype = x.shape, x.dtype  # drawing may be kept for later, and x need not be

    def draw() -> Any:
        return ((generator(rng).random(shape) >= p) / (1 - p)).astype(dtype)

    return x * x.constant(fed(x.backend, draw))


# ---- activations ----


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where positive, else negative_slope * x."""
    return elementwise.where(x, x * negative_slope, condition=x.data > 0)


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution's CDF at x. Hendrycks & Gimpel, arXiv 1606.08415."""
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))


def softmax(x: Tensor, axis: int) -> Tensor:
    """exp(x) / sum(exp(x)) along axis."""
    return reduce.softmax(x, axis=axis)


def log_softmax(x: Tensor, axis: int) -> Tensor:
    """log(softmax(x)) along axis, without overflow."""
    return reduce.log_softmax(x, axis=axis)


# ---- losses ----


def cross_entropy(
    logits: Tensor, targets: Any, label_smoothing: float = 0, reduction: str = "mean"
) -> Tensor:
    """-log softmax(logits)[target], for logits (N, K) and integer targets (N,).

    With s = `label_smoothing` the target's probability is 1 - s + s/K, the others' s/K each.
    Reduction is "mean", "sum" or "none" (one value per row).

    >>> round(cross_entropy(Tensor([[0.0] * 10]), [3]).item(), 3)  # ln 10: ten classes, no idea
    2.303
    """
    targets = _class_numbers(logits, targets, op="cross_entropy")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}; expected 0 to 1")
    losses = loss.softmax_cross_entropy(
        logits, targets=targets, label_smoothing=float(label_smoothing)
    )
    return _reduced(losses, reduction, op="cross_entropy")


def hinge_loss(scores: Tensor, targets: Any, margin: float = 1, reduction: str = "mean") -> Tensor:
    """Sum over j of max(0, s_j - s_target + margin), for scores (N, K): CS231n's multiclass SVM.

    Unlike PyTorch's multi_margin_loss it isn't divided by the number of classes.

    >>> hinge_loss(Tensor([[0.0] * 10]), [3]).item()  # at chance: 9 wrong classes, margin 1 each
    9.0
    """
    targets = _class_numbers(scores, targets, op="hinge_loss")
    losses = loss.multiclass_hinge(scores, targets=targets, margin=float(margin))
    return _reduced(losses, reduction, op="hinge_loss")


def mse_loss(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """(x - target)**2, averaged or summed."""
    target = x.lift(target, op="mse_loss")
    if target.shape not in (x.shape, ()):
        raise ValueError(f"mse_loss: x is {x.shape}, but target is {target.shape}")
    difference = x - target
    return _reduced(difference * difference, reduction, op="mse_loss")


def _reduced(losses: Tensor, reduction: str, *, op: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{op}: reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")
    return losses if reduction == "none" else getattr(losses, reduction)()


def _class_numbers(scores: Tensor, targets: Any, *, op: str) -> Any:
    """Check targets against scores (N, K) and give them as an integer array of the backend."""
    _check_float(scores, op=op)
    values = targets.numpy() if isinstance(targets, Tensor) else numpy.asarray(targets)
    if scores.ndim != 2 or values.shape != scores.shape[:1]:
        raise ValueError(
            f"{op}: got scores {scores.shape} and targets {values.shape}; expected (N, K) and (N,)"
        )
    if values.dtype.kind not in "iu" and values.size:
        raise TypeError(
            f"{op}: targets are {values.dtype}; expected integer class numbers "
            "(tg.tensor makes float32 of lists: pass the list itself)"
        )
    classes = scores.shape[1]
    uses(values)

    def checked() -> Any:
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(
                f"{op}: targets run from {values.min()} to {values.max()}; "
                f"expected 0 to {classes - 1} for {classes} classes"
            )
        return values.astype(numpy.int64)

    return fed(scores.backend, checked)


# ---- shape ----


def pad(x: Tensor, pad: Sequence[int]) -> Tensor:
    """Surround x with zeros; `pad` lists (before, after) from the last axis backwards, as PyTorch.

    For images: (left, right, top, bottom).
    """
    if len(pad) % 2 or len(pad) > 2 * x.ndim or any(n < 0 for n in pad):
        raise ValueError(
            f"pad: got {tuple(pad)} for x {x.shape}; expected (before, after) for the last axis, "
            "then the one before it, ..., none negative"
        )
    pairs = [(0, 0)] * (x.ndim - len(pad) // 2)
    pairs += [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    return shape.pad(x, pad_width=tuple(pairs))


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Join tensors along an existing axis."""
    shapes = [t.shape for t in tensors]
    ndim = min(map(len, shapes), default=0)
    others = {(*s[: axis % ndim], None, *s[axis % ndim + 1 :]) for s in shapes if ndim}
    if not -ndim <= axis < ndim or len(others) > 1:
        raise ValueError(
            f"concatenate: got shapes {shapes}; expected one or more, alike but along axis {axis}"
        )
    return shape.concatenate(*tensors, axis=axis)


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Join tensors of equal shape along a new axis."""
    shapes = {t.shape for t in tensors}
    if len(shapes) != 1:
        raise ValueError(f"stack: got shapes {sorted(shapes)}; expected one or more, all equal")
    (old,) = shapes
    if not -len(old) - 1 <= axis <= len(old):
        raise ValueError(f"stack: axis is {axis}; expected {-len(old) - 1} to {len(old)}")
    at = axis % (len(old) + 1)
    return concatenate([t.reshape(*old[:at], 1, *old[at:]) for t in tensors], at)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where `condition` (boolean) holds, else y."""
    if isinstance(condition, Tensor):
        condition = condition.data
    return elementwise.where(x, y, condition=condition)
