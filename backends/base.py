"""The backend protocol, its reference implementation and its fallback, in one class.

Every kernel has a body here, written against `self.xp` (NumPy or a module that mimics it). A new
backend gives five members (`name`, `xp`, `asarray`, `to_numpy`, `synchronize`), is right at once,
and overrides kernel by kernel what it can do faster. Falling back is inheritance.

Arrays are positional (None, where one that may be missing is), resolved settings are keywords:
`stride` and `dilation` are pairs, `padding` is ((top, bottom), (left, right)). Shapes are
(N, C, H, W) and (O, C, kh, kw), as in the textbooks. In memory any strides are legal, but 4-D
results are channels-last: `nhwc(result)` is C-contiguous. The channels of a pixel then lie side by
side, and a 1x1 convolution is one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy

from .geometry import Padding, Pair, Shape, output_size

Array = Any  # an array of the backend's own library


class BackendUnavailable(RuntimeError):
    """A backend that exists but can't run on this machine; says why and what to try."""

    def __init__(self, name: str, reason: str, remedy: str) -> None:
        super().__init__(f"backend {name!r} can't run here: {reason}; try: {remedy}")
        self.reason, self.remedy = reason, remedy


def nhwc(a: Array) -> Array:
    """View (N, C, H, W) as (N, H, W, C)."""
    return a.transpose(0, 2, 3, 1)


def nchw(a: Array) -> Array:
    """View (N, H, W, C) as (N, C, H, W)."""
    return a.transpose(0, 3, 1, 2)


def shifted(
    a: Array, *, kernel: Pair, out: Pair, stride: Pair, dilation: Pair = (1, 1)
) -> Iterator[tuple[Pair, Array]]:
    """Yield each position (i, j) of a kernel with the view of `a` that it meets.

    `a` is a padded (N, H, W, C); each view is (N, H', W', C): the pixels under that one position,
    for all places of the kernel at once. Reading the views is a convolution's forward pass,
    adding into them its gradient.
    """
    (sh, sw), (dh, dw) = stride, dilation
    for i, j in product(range(kernel[0]), range(kernel[1])):
        rows = slice(i * dh, i * dh + sh * (out[0] - 1) + 1, sh)
        columns = slice(j * dw, j * dw + sw * (out[1] - 1) + 1, sw)
        yield (i, j), a[:, rows, columns]


def split(a: Array, *, groups: int) -> Array:
    """View (N, H, W, C) as (G, N, H, W, C/G), so that one matmul serves all groups."""
    n, h, w, c = a.shape
    return a.reshape(n, h, w, groups, c // groups).transpose(3, 0, 1, 2, 4)


def join(a: Array) -> Array:
    """Undo `split`: (G, N, H, W, C/G) -> (N, H, W, C)."""
    g, n, h, w, c = a.shape
    return a.transpose(1, 2, 3, 0, 4).reshape(n, h, w, g * c)


class Backend:
    """The kernels of one array library on one device."""

    name: str
    xp: Any

    def __repr__(self) -> str:
        return f"<backend {self.name}>"

    # ---- the members that a new backend must give, with `name` and `xp` ----

    def asarray(self, a: Array, dtype: Array = None) -> Array:
        """Give `a` (a NumPy array or this backend's own) as an array of this backend."""
        raise NotImplementedError

    def to_numpy(self, a: Array) -> Array:
        """Give an array of this backend as a NumPy array."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until all work that was asked for is done."""
        raise NotImplementedError

    # ---- memory and elementwise work ----

    def choose(self, kernel: str, *, shapes: tuple[Shape, ...], dtype: Any, **settings: Any) -> str:
        """Name the algorithm that serves a kernel: a pure function of geometry and dtype."""
        return "reference"

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """Allocate an array; a 4-D one is channels-last."""
        if len(shape) != 4:
            return self.xp.empty(shape, dtype)
        n, c, h, w = shape
        return nchw(self.xp.empty((n, h, w, c), dtype))

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        """Allocate zeros; a 4-D array is channels-last."""
        a = self.empty(shape, dtype)
        a[...] = 0
        return a

    def map(self, f: Callable[..., Array], *arrays: Array) -> Array:
        """Apply an elementwise function with broadcasting, keeping 4-D arrays channels-last.

        NumPy keeps its inputs' layout by itself, CuPy does not; on channels-last views both do.
        """
        if max(a.ndim for a in arrays) != 4:
            return f(*arrays)
        four = (a.reshape((1,) * (4 - a.ndim) + a.shape) if a.ndim else a for a in arrays)
        return nchw(f(*(nhwc(a) if a.ndim else a for a in four)))

    def add(self, x: Array, y: Array, *, out: Array = None) -> Array:
        """x + y, into `out` if given."""
        return self.map(self.xp.add, x, y) if out is None else self.xp.add(x, y, out=out)

    def relu(self, x: Array) -> Array:
        """max(x, 0)."""
        return self.map(lambda a: self.xp.maximum(a, 0), x)

    def relu_grad(self, g: Array, y: Array) -> Array:
        """Pass g where y = relu(x) is positive; at 0 the subgradient is 0."""
        return self.map(lambda g, y: self.xp.where(y > 0, g, 0), g, y)

    def erf(self, x: Array) -> Array:
        """Compute the error function, element by element on the host: right, not fast."""
        values = numpy.frompyfunc(math.erf, 1, 1)(self.to_numpy(x))
        return self.asarray(numpy.asarray(values, dtype=x.dtype))

    def matmul(self, x: Array, y: Array) -> Array:
        """x @ y for matrices and stacks of matrices."""
        return x @ y

    # ---- convolution ----
    # A convolution is a sum of kh*kw shifted 1x1 convolutions, each one a matrix product over the
    # channels. Its two gradients are the two transposes of the same sum.

    def conv2d(
        self, x: Array, w: Array, bias: Array = None, residual: Array = None, *, stride: Pair,
        padding: Padding, dilation: Pair, groups: int, relu: bool = False,
    ) -> Array:  # fmt: skip
        """Cross-correlate x (N, C, H, W) with w (O, C/groups, kh, kw) -> (N, O, H', W').

        Then add bias (O,) and, to that, the residual (N, O, H', W'); apply relu.
        """
        kernel = w.shape[2:]
        at = dict(kernel=kernel, stride=stride, dilation=dilation)
        out = output_size(x.shape[2:], padding=padding, **at)
        y = self.zeros((x.shape[0], w.shape[0], *out), x.dtype)
        y_groups, taps = split(nhwc(y), groups=groups), self._taps(w, groups)
        for (i, j), pixels in shifted(self._pad(x, padding), out=out, **at):
            y_groups += split(pixels, groups=groups) @ taps[i, j]
        return self._finished(y, bias, residual, relu=relu)

    def _finished(self, y: Array, bias: Array, residual: Array, *, relu: bool) -> Array:
        """Add bias (O,) and residual (N, O, H, W) to a fresh y if given; apply relu if wanted."""
        if bias is not None:
            y = self._per_channel(self.xp.add, y, bias)
        if residual is not None:
            y = self.add(y, residual, out=y)
        return self.relu(y) if relu else y

    def conv2d_input_grad(
        self, g: Array, w: Array, *, x_shape: Shape, stride: Pair, padding: Padding,
        dilation: Pair, groups: int, plus: Array = None,
    ) -> Array:  # fmt: skip
        """Gradient of conv2d with respect to x, and `plus` if given: -> (N, C, H, W)."""
        reach = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
        around: Any = tuple((r - a, r - b) for r, (a, b) in zip(reach, padding, strict=True))
        if stride == (1, 1) and min(map(min, around)) >= 0:
            # then it is a convolution too, and reading shifted views is quicker than adding to them
            at = dict(stride=stride, padding=around, dilation=dilation, groups=groups)
            dx = self.conv2d(g, self._flipped(w, groups), **at)
        else:
            taps = self.xp.ascontiguousarray(self._taps(w, groups).swapaxes(-1, -2))
            g_groups = split(nhwc(g), groups=groups)
            at = dict(kernel=w.shape[2:], out=g.shape[2:], stride=stride, dilation=dilation)
            dx = self._scatter(
                lambda i, j: join(g_groups @ taps[i, j]),
                x_shape=x_shape, dtype=g.dtype, padding=padding, **at,
            )  # fmt: skip
        return dx if plus is None else self.add(dx, plus, out=dx)

    def conv2d_weight_grad(
        self, g: Array, x: Array, *, w_shape: Shape, stride: Pair, padding: Padding,
        dilation: Pair, groups: int,
    ) -> Array:  # fmt: skip
        """Gradient of conv2d with respect to w: g (N, O, H', W'), x (N, C, H, W) -> w's shape."""
        o, c, kh, kw = w_shape
        at = dict(kernel=(kh, kw), out=g.shape[2:], stride=stride, dilation=dilation)
        dw = self.xp.empty((kh, kw, groups, c, o // groups), x.dtype)
        pixels = math.prod((g.shape[0], *g.shape[2:]))
        g_rows = split(nhwc(g), groups=groups).reshape(groups, pixels, o // groups)
        for (i, j), x_part in shifted(self._pad(x, padding), **at):
            x_rows = split(x_part, groups=groups).reshape(groups, pixels, c)  # (G, N*H'*W', C/G)
            dw[i, j] = x_rows.swapaxes(1, 2) @ g_rows
        return self.xp.ascontiguousarray(dw.transpose(2, 4, 3, 0, 1)).reshape(w_shape)

    def _flipped(self, w: Array, groups: int) -> Array:
        """Turn filters round, exchange inputs and outputs: (O, C/G, kh, kw) -> (C, O/G, kh, kw)."""
        o, c, kh, kw = w.shape
        turned = w[:, :, ::-1, ::-1].reshape(groups, o // groups, c, kh, kw)
        return turned.swapaxes(1, 2).reshape(groups * c, o // groups, kh, kw)

    def _taps(self, w: Array, groups: int) -> Array:
        """Arrange w (O, C/G, kh, kw) as the 1x1 convolutions (kh, kw, G, 1, 1, C/G, O/G)."""
        o, c, kh, kw = w.shape
        taps = w.reshape(groups, o // groups, c, kh, kw).transpose(3, 4, 0, 2, 1)
        return self.xp.ascontiguousarray(taps)[:, :, :, None, None]

    def _pad(self, x: Array, padding: Padding, *, value: float = 0) -> Array:
        """Pad x (N, C, H, W) and give it as (N, H+, W+, C)."""
        (top, bottom), (left, right) = padding
        if not (top or bottom or left or right):
            return nhwc(x)
        n, c, h, w = x.shape
        padded = self.xp.full((n, top + h + bottom, left + w + right, c), value, x.dtype)
        padded[:, top : top + h, left : left + w] = nhwc(x)
        return padded

    def _scatter(
        self, part: Callable[[int, int], Array], *, x_shape: Shape, dtype: Any, padding: Padding,
        **at: Any,
    ) -> Array:  # fmt: skip
        """Add part(i, j) (N, H', W', C) to the pixels under each position -> (N, C, H, W)."""
        n, c, h, w = x_shape
        (top, bottom), (left, right) = padding
        padded = self.xp.zeros((n, top + h + bottom, left + w + right, c), dtype)
        for (i, j), pixels in shifted(padded, **at):
            pixels += part(i, j)
        return nchw(self.xp.ascontiguousarray(padded[:, top : top + h, left : left + w]))

    # ---- pooling ----

    def max_pool2d(
        self, x: Array, *, kernel_size: Pair, stride: Pair, padding: Padding
    ) -> tuple[Array, Array]:
        """Take the largest pixel of each window: (y, argmax), both (N, C, H', W').

        argmax numbers the positions of the window row by row; of equal values the first counts. A
        NaN is the largest of all, as in PyTorch.
        """
        out = output_size(x.shape[2:], kernel=kernel_size, stride=stride, padding=padding)
        best = self.xp.full((len(x), *out, x.shape[1]), -numpy.inf, x.dtype)
        argmax = self.xp.zeros(best.shape, numpy.min_scalar_type(math.prod(kernel_size)))
        padded = self._pad(x, padding, value=-numpy.inf)
        for (i, j), pixels in shifted(padded, kernel=kernel_size, out=out, stride=stride):
            wins = (pixels > best) | (pixels != pixels)
            self.xp.copyto(best, pixels, where=wins)
            self.xp.copyto(argmax, i * kernel_size[1] + j, where=wins)
        return nchw(best), nchw(argmax)

    def max_pool2d_grad(
        self, g: Array, argmax: Array, *, x_shape: Shape, kernel_size: Pair, stride: Pair,
        padding: Padding,
    ) -> Array:  # fmt: skip
        """Send each gradient of g (N, C, H', W') to the pixel that won -> (N, C, H, W)."""
        at = dict(kernel=kernel_size, out=g.shape[2:], stride=stride)
        return self._scatter(
            lambda i, j: self.xp.where(nhwc(argmax) == i * kernel_size[1] + j, nhwc(g), 0),
            x_shape=x_shape, dtype=g.dtype, padding=padding, **at,
        )  # fmt: skip

    def max_pool2d_gather(
        self, x: Array, argmax: Array, *, kernel_size: Pair, stride: Pair, padding: Padding
    ) -> Array:
        """Read x (N, C, H, W) at the pixels that won -> (N, C, H', W'); the gradient's adjoint."""
        y = nhwc(self.zeros(argmax.shape, x.dtype))
        at = dict(kernel=kernel_size, out=argmax.shape[2:], stride=stride)
        for (i, j), pixels in shifted(self._pad(x, padding), **at):
            self.xp.copyto(y, pixels, where=nhwc(argmax) == i * kernel_size[1] + j)
        return nchw(y)

    def avg_pool2d(self, x: Array, *, kernel_size: Pair, stride: Pair, padding: Padding) -> Array:
        """Average each window -> (N, C, H', W'); zeros of the padding count."""
        out = output_size(x.shape[2:], kernel=kernel_size, stride=stride, padding=padding)
        y = nhwc(self.zeros((*x.shape[:2], *out), x.dtype))
        at = dict(kernel=kernel_size, out=out, stride=stride)
        for _, pixels in shifted(self._pad(x, padding), **at):
            y += pixels
        y /= math.prod(kernel_size)
        return nchw(y)

    def avg_pool2d_grad(
        self, g: Array, *, x_shape: Shape, kernel_size: Pair, stride: Pair, padding: Padding
    ) -> Array:
        """Spread each gradient of g (N, C, H', W') evenly over its window -> (N, C, H, W)."""
        share = nhwc(g) / math.prod(kernel_size)
        at = dict(kernel=kernel_size, out=g.shape[2:], stride=stride)
        return self._scatter(
            lambda i, j: share, x_shape=x_shape, dtype=g.dtype, padding=padding, **at
        )

    # ---- normalisation ----

    def batch_norm(
        self, x: Array, weight: Array, bias: Array, residual: Array = None, *,
        mean: Array = None, var: Array = None, eps: float, relu: bool = False,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """Normalise x (N, C, H, W) per channel, add `residual`, apply relu: (y, mean, var).

        Without `mean` and `var` (training) they are those of the batch, var biased; both are
        float64. Ioffe & Szegedy, arXiv 1502.03167, algorithm 1.
        """
        if mean is None:
            mean = self._channel_mean(x)
        centred = self._per_channel(self.xp.subtract, x, mean)
        if var is None:
            var = self._channel_mean(self.xp.square(centred))
        y = self._per_channel(self.xp.multiply, centred, weight / self.xp.sqrt(var + eps))
        return self._finished(y, bias, residual, relu=relu), mean, var

    def batch_norm_grad(
        self, g: Array, x: Array, weight: Array, bias: Array, *, mean: Array, var: Array,
        y: Array = None, eps: float, training: bool, residual: bool = False,
        overwrite_g: bool = False, plus: Array = None,
    ) -> tuple[Array, Array, Array, Array]:  # fmt: skip
        """Give batch_norm's gradients: dx + plus, dweight, dbias and, if any, its residual's.

        y is its output if relu was applied. (With x and bias a kernel can do without reading it.)
        With `overwrite_g` a kernel may write a result over g, whose memory is in the caches then.
        """
        xp, per_channel = self.xp, self._per_channel
        dx = g = g if y is None else self.relu_grad(g, y)
        inv_std = 1 / xp.sqrt(var + eps)
        x_hat = per_channel(xp.multiply, per_channel(xp.subtract, x, mean), inv_std)
        pixels = g.size // max(g.shape[1], 1)
        mean_g, mean_gx = self._channel_mean(g), self._channel_mean(g * x_hat)
        if training:  # mean and var depend on x too: remove g's components along 1 and x_hat
            dx = per_channel(xp.subtract, g, mean_g) - per_channel(xp.multiply, x_hat, mean_gx)
        dx = per_channel(xp.multiply, dx, weight * inv_std)
        dx = dx if plus is None else self.add(dx, plus, out=dx)
        dweight, dbias = ((m * pixels).astype(x.dtype) for m in (mean_gx, mean_g))
        return dx, dweight, dbias, g if residual else None

    def running_average(self, old: Array, *, new: Array, momentum: float, scale: float) -> Array:
        """(1 - momentum) * old + momentum * scale * new, in a new array of old's dtype."""
        return ((1 - momentum) * old + momentum * (scale * new)).astype(old.dtype)

    def _channel_mean(self, x: Array) -> Array:
        """Average x (N, C, H, W) over all but C, in float64; 0 for an empty batch."""
        n, c, h, w = x.shape
        rows = nhwc(x).reshape(n * h, w * c)  # long rows: NumPy is slow at short inner loops
        sums = rows.sum(axis=0, dtype=numpy.float64).reshape(w, c).sum(axis=0)
        return sums / max(n * h * w, 1)

    def _per_channel(self, f: Callable[..., Array], x: Array, v: Array) -> Array:
        """Apply f(x, v) with one value of v (C,) per channel, in x's dtype."""
        n, c, h, w = x.shape
        row = self.xp.tile(v.astype(x.dtype), w)
        return nchw(f(nhwc(x).reshape(n * h, w * c), row).reshape(n, h, w, c))

    def local_response_norm(
        self, x: Array, *, size: int, alpha: float, beta: float, k: float
    ) -> tuple[Array, Array]:
        """Divide x by scale**beta; scale = k + alpha/size * sum of squares of `size` channels."""
        squares = self._window_sum(nhwc(x) ** 2, before=size // 2, after=(size - 1) // 2)
        scale = k + alpha / size * squares
        return nchw(nhwc(x) * scale**-beta), nchw(scale)

    def local_response_norm_grad(
        self, g: Array, x: Array, scale: Array, *, size: int, alpha: float, beta: float
    ) -> Array:
        """Gradient of local_response_norm with respect to x."""
        g, x, scale = nhwc(g), nhwc(x), nhwc(scale)
        power = scale**-beta
        # mirrored: channel c is in the windows of the channels whose windows reach back to c
        spread = self._window_sum(g * x * power / scale, before=(size - 1) // 2, after=size // 2)
        return nchw(g * power - 2 * alpha * beta / size * x * spread)

    def _window_sum(self, a: Array, *, before: int, after: int) -> Array:
        """Sum a (N, H, W, C) over the channels c - before ... c + after."""
        padded = self.xp.pad(a, ((0, 0), (0, 0), (0, 0), (before, after)))
        c = a.shape[-1]
        return sum(padded[..., i : i + c] for i in range(before + after + 1))

    # ---- loss, update, augmentation ----

    def softmax_cross_entropy(
        self, logits: Array, targets: Array, *, label_smoothing: float
    ) -> tuple[Array, Array]:
        """Give each row's loss (N,) and its gradient softmax(logits) - target distribution (N, K).

        The target's distribution is 1 - s + s/K at the target and s/K elsewhere. Szegedy et al.,
        arXiv 1512.00567, section 7.
        """
        rows, classes = logits.shape
        shifted_logits = logits - logits.max(axis=1, keepdims=True)
        exponentials = self.xp.exp(shifted_logits)
        sums = exponentials.sum(axis=1, keepdims=True)
        log_p = shifted_logits - self.xp.log(sums)
        q = self.xp.full((rows, classes), label_smoothing / classes, logits.dtype)
        q[self.xp.arange(rows), targets] += 1 - label_smoothing
        losses = -(q * self.xp.where(q > 0, log_p, 0)).sum(axis=1)  # log_p may be -inf where q is 0
        return losses, exponentials / sums - q

    def sgd_update(
        self, p: Array, g: Array, velocity: Array, *, lr: float, momentum: float,
        weight_decay: float, nesterov: bool,
    ) -> None:  # fmt: skip
        """Update p and velocity in place: v <- momentum*v + d, p <- p - lr*v, d = g + decay*p."""
        d = g + weight_decay * p if weight_decay else g
        velocity *= momentum
        velocity += d
        p -= lr * (d + momentum * velocity if nesterov else velocity)

    def crop_and_flip(self, images: Array, offsets: Array, flips: Array, *, padding: int) -> Array:
        """Pad images (N, C, H, W) with zeros, crop (H, W) at offsets (N, 2), mirror by flips (N,).

        An offset counts from the padded image's top left corner: 0 to 2 * padding.
        """
        n, _, h, w = images.shape
        padded = self._pad(images, ((padding, padding), (padding, padding)))
        out = nhwc(self.empty(images.shape, images.dtype))
        for i, (top, left) in enumerate(offsets.tolist()):
            crop = padded[i, top : top + h, left : left + w]
            out[i] = crop[:, ::-1] if flips[i] else crop
        return nchw(out)
