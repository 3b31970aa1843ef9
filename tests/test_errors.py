"""What a user can get wrong, and the one sentence that comes back.

Each says what came, what was wanted and, where one exists, the way out.
"""

import sys

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import functional as F


@pytest.fixture(autouse=True)
def on_numpy():
    with tg.use_backend("numpy"):
        yield


def refuses(call, error, message):
    """Demand exactly this error of a call."""
    with pytest.raises(error) as caught:
        call()
    assert (caught.type, str(caught.value)) == (error, message)


def ones(*shape, dtype="float32"):
    return tg.ones(*shape, dtype=dtype, backend="numpy")


X, W = (2, 4, 8, 8), (6, 4, 3, 3)
IMAGES, ROWS, GREY = ones(X), ones(3, 10), ones(5, 6, 7)
BYTES = tg.Tensor(np.zeros((1, 1, 3, 3), np.uint8), backend="numpy")
DOUBLE = ones(1, 1, 2, 2, dtype="float64")


def conv(x=X, w=W, b=None, **settings):
    return lambda: F.conv2d(ones(x), ones(w), b, **settings)


def batch_norm(x=X, *, residual=None, training=True, **shapes):
    """Call batch norm with parameters of 4 channels, but for those named."""
    names = "running_mean", "running_var", "weight", "bias"
    given = [ones(shapes.get(name, 4)) for name in names]
    residual = None if residual is None else ones(residual)
    return lambda: F.batch_norm(ones(x), *given, training, residual=residual)


def smoothed(s):
    return lambda: F.cross_entropy(ROWS, [0, 1, 2], label_smoothing=s)


def leaf():
    return tg.ones(3, requires_grad=True)


def walked():
    y = leaf().sum()
    y.backward()
    return y


def with_a_changed_input():
    x = leaf()
    y = (x * x).sum()
    x.data = x.data + 1
    return y


def too_large(op, reach, padded):
    return (
        f"{op}: the kernel covers {reach} pixels, but x {X} with its padding has only "
        f"{padded}; use a smaller kernel, more padding or larger images"
    )


def joined(shapes, axis):
    return f"concatenate: got shapes {shapes}; expected one or more, alike but along axis {axis}"


THERE_ARE = "There are: cupy, numba, numpy"
MATRICES = "expected (..., n, k) @ (..., k, m). A vector? v.reshape(1, -1) or v.reshape(-1, 1)"
FIT = "don't fit; from the right, sizes must be equal or 1"
NO_VARIANCE = "one value per channel or none, which has no variance; train with a larger batch, or"
CHANNELS = f"batch_norm: x {X} has 4 channels, but"
UNRECORDED = (
    "nothing was recorded for this tensor; make its inputs with requires_grad=True, and don't "
    "compute it under no_grad()"
)
SEVERAL = "this tensor has shape (3,); only a single value has an obvious gradient. Call .sum()"
END = "expected (before, after) for the last axis, then the one before it, ..., none negative"

VALUE_ERRORS = {
    # backends
    f"no backend 'cuda'; did you mean 'cupy'? {THERE_ARE}": lambda: tg.set_backend("cuda"),
    f"no backend 'nunba'; did you mean 'numba'? {THERE_ARE}": lambda: ROWS.to("nunba"),
    f"no backend 'tpu'. {THERE_ARE}": lambda: tg.Tensor([1.0], backend="tpu"),
    # convolution: shapes
    "conv2d: x is (64, 32, 16); expected (N, C, H, W). One grey channel? x.reshape(64, 1, 32, 16). "
    "One image? x.reshape(1, 64, 32, 16)": conv((64, 32, 16)),
    "conv2d: x is (8, 8); expected (N, C, H, W)": conv((8, 8)),
    "conv2d: w is (4, 3, 3); expected (O, C/groups, kh, kw), none of them 0": conv(w=(4, 3, 3)),
    "conv2d: w is (6, 4, 0, 3); expected (O, C/groups, kh, kw), none of them 0": conv(
        w=(6, 4, 0, 3)
    ),
    f"conv2d: x (1, 3, 8, 8) has 3 channels, but w {W} with groups=1 wants 4": conv((1, 3, 8, 8)),
    f"conv2d: x {X} has 4 channels, but w {W} with groups=2 wants 8": conv(groups=2),
    "conv2d: b is (4,); expected (6,), one for each output": conv(b=ones(4)),
    "conv2d: b is (1,); expected (6,), one for each output": conv(b=ones(1)),
    "conv2d: b is (6, 1); expected (6,), one for each output": conv(b=ones(6, 1)),
    too_large("conv2d", "9x3", "8x8"): conv(w=(6, 4, 9, 3)),
    too_large("conv2d", "3x9", "8x8"): conv(w=(6, 4, 3, 9)),
    too_large("conv2d", "3x11", "10x10"): conv(w=(6, 4, 3, 11), padding=1),
    too_large("conv2d", "11x11", "8x10"): conv(padding=(0, 1), dilation=5),
    # convolution: settings
    "conv2d: the result is (2, 6, 3, 3), but residual is (2, 6, 8, 8)": conv(
        stride=2, residual=ones(2, 6, 8, 8)
    ),
    "conv2d: stride is 0; expected at least 1": conv(stride=0),
    "conv2d: stride is (2, -1); expected at least 1": conv(stride=(2, -1)),
    "conv2d: dilation is 0; expected at least 1": conv(dilation=0),
    "conv2d: padding is 'SAME'; expected a number, 'same' or 'valid'": conv(padding="SAME"),
    "conv2d: padding 'same' needs stride 1, got (2, 2); use a number": conv(
        padding="same", stride=2
    ),
    "conv2d: padding 'same' needs stride 1, got (1, 2); use a number": conv(
        padding="same", stride=(1, 2)
    ),
    "conv2d: padding is -1; expected at least 0": conv(padding=-1),
    # pooling
    "max_pool2d: x is (5, 6, 7); expected (N, C, H, W). One grey channel? x.reshape(5, 1, 6, 7). "
    "One image? x.reshape(1, 5, 6, 7)": lambda: F.max_pool2d(GREY, 2),
    "avg_pool2d: x is (3, 10); expected (N, C, H, W)": lambda: F.avg_pool2d(ROWS, 2),
    "global_avg_pool2d: x is (3, 10); expected (N, C, H, W)": lambda: F.global_avg_pool2d(ROWS),
    too_large("max_pool2d", "9x9", "8x8"): lambda: F.max_pool2d(IMAGES, 9),
    too_large("avg_pool2d", "2x11", "10x10"): lambda: F.avg_pool2d(IMAGES, (2, 11), padding=1),
    "max_pool2d: kernel_size is 0; expected at least 1": lambda: F.max_pool2d(IMAGES, 0),
    "avg_pool2d: stride is (1, 0); expected at least 1": lambda: F.avg_pool2d(IMAGES, 2, (1, 0)),
    "max_pool2d: padding is -1; expected at least 0": lambda: F.max_pool2d(IMAGES, 2, 2, -1),
    "max_pool2d: padding (2, 2) is more than half of the kernel (3, 4)": (
        lambda: F.max_pool2d(IMAGES, (3, 4), padding=2)
    ),
    "avg_pool2d: padding (1, 3) is more than half of the kernel (3, 4)": (
        lambda: F.avg_pool2d(IMAGES, (3, 4), padding=(1, 3))
    ),
    # other layers
    "linear: x is (3, 10), w is (5, 9); expected (N, in) and (out, in).": (
        lambda: F.linear(ROWS, ones(5, 9))
    ),
    f"linear: x is {X}, w is (5, 256); expected (N, in) and (out, in). Images? x.flatten(1)": (
        lambda: F.linear(IMAGES, ones(5, 256))
    ),
    "linear: x is (3, 10), w is (10,); expected (N, in) and (out, in).": (
        lambda: F.linear(ROWS, ones(10))
    ),
    "linear: b is (10,); expected (5,), one for each output": (
        lambda: F.linear(ROWS, ones(5, 10), ones(10))
    ),
    f"batch_norm: x (1, 4, 1, 1) has {NO_VARIANCE} call model.eval()": batch_norm((1, 4, 1, 1)),
    f"batch_norm: x (0, 4, 2, 2) has {NO_VARIANCE} call model.eval()": batch_norm((0, 4, 2, 2)),
    "batch_norm: x is (2, 4); expected (N, C, H, W)": batch_norm((2, 4)),
    f"{CHANNELS} running_mean is (3,)": batch_norm(running_mean=3),
    f"{CHANNELS} running_var is (3,)": batch_norm(running_var=3, training=False),
    f"{CHANNELS} weight is (3,)": batch_norm(weight=3),
    f"{CHANNELS} bias is (1,)": batch_norm(bias=1),
    f"batch_norm: the result is {X}, but residual is (2, 1, 8, 8)": batch_norm(
        residual=(2, 1, 8, 8)
    ),
    "local_response_norm: x is (3, 10); expected (N, C, H, W)": (
        lambda: F.local_response_norm(ROWS, 5)
    ),
    "local_response_norm: size is 0; expected at least 1 channel": (
        lambda: F.local_response_norm(IMAGES, 0)
    ),
    "dropout: p is 1.0; expected 0 <= p < 1": lambda: F.dropout(ROWS, 1.0),
    "dropout: p is -0.1; expected 0 <= p < 1": lambda: F.dropout(ROWS, -0.1, training=False),
    "dropout: p is nan; expected 0 <= p < 1": lambda: F.dropout(ROWS, float("nan")),
    # losses; more of them below
    "cross_entropy: label_smoothing is 1.5; expected 0 to 1": smoothed(1.5),
    "cross_entropy: label_smoothing is -1; expected 0 to 1": smoothed(-1),
    "mse_loss: x is (3, 10), but target is (3, 1)": lambda: F.mse_loss(ROWS, ones(3, 1)),
    "mse_loss: reduction is None; expected 'mean', 'sum' or 'none'": (
        lambda: F.mse_loss(ROWS, 0.0, reduction=None)
    ),
    # arithmetic and shapes
    f"matmul: got (3, 10) @ (3, 10); {MATRICES}": lambda: ROWS @ ROWS,
    f"matmul: got (3, 10) @ (10,); {MATRICES}": lambda: ROWS @ ones(10),
    f"matmul: got (3,) @ (3, 10); {MATRICES}": lambda: ones(3) @ ROWS,
    f"add: (3, 10) and (9,) {FIT}": lambda: ROWS + ones(9),
    f"mul: {X} and (4,) {FIT}": lambda: IMAGES * ones(4),
    f"where: (3, 10) and (3, 9) {FIT}": lambda: tg.where(ROWS > 0, ROWS, ones(3, 9)),
    "reshape: (3, 10) has 30 values, which don't fill (4, 8)": lambda: ROWS.reshape(4, 8),
    "reshape: (3, 10) has 30 values, which don't fill (-1, 7)": lambda: ROWS.reshape(-1, 7),
    "permute: axes (0, 0) don't name each axis of (3, 10) once": lambda: ROWS.permute(0, 0),
    "permute: axes (0,) don't name each axis of (3, 10) once": lambda: ROWS.permute(0),
    "transpose: x is (3, 10), which has no axes 0 and 2": lambda: ROWS.transpose(0, 2),
    "transpose: x is (3, 10), which has no axes -3 and 1": lambda: ROWS.transpose(-3, 1),
    "flatten: x is (3, 10), which has no axis 2": lambda: ROWS.flatten(2),
    joined("[(3, 10), (3, 9)]", 0): lambda: tg.concatenate([ROWS, ones(3, 9)]),
    joined("[(3, 10), (3,)]", 0): lambda: tg.concatenate([ROWS, ones(3)]),
    joined("[(3, 10), (3, 10)]", 2): lambda: tg.concatenate([ROWS, ROWS], 2),
    joined("[(3, 10)]", -3): lambda: tg.concatenate([ROWS], -3),
    joined("[(), ()]", 0): lambda: tg.concatenate([ones(), ones()]),
    joined("[]", 0): lambda: tg.concatenate([]),
    "stack: got shapes [(3, 9), (3, 10)]; expected one or more, all equal": (
        lambda: tg.stack([ROWS, ones(3, 9)])
    ),
    "stack: got shapes []; expected one or more, all equal": lambda: tg.stack([]),
    f"pad: got (1,) for x (3, 10); {END}": lambda: F.pad(ROWS, (1,)),
    f"pad: got (1, -1) for x (3, 10); {END}": lambda: F.pad(ROWS, (1, -1)),
    f"pad: got (0, 0, 0, 0, 1, 1) for x (3, 10); {END}": lambda: F.pad(ROWS, [0, 0, 0, 0, 1, 1]),
    "item: (3, 10) is no single value; call .sum() or .mean() first": ROWS.item,
    # gradients
    f"backward: {UNRECORDED}": ROWS.sum().backward,
    f"grad: {UNRECORDED}": lambda: tg.grad(leaf().sum(), ROWS),
    f"backward: {SEVERAL} first, or pass the gradient: backward(grad)": lambda: leaf().backward(),
    f"grad: {SEVERAL} first, or pass the gradient: grad(grad)": lambda: tg.grad(y := leaf(), y),
    "backward: the gradient is (2,); expected (3,)": lambda: leaf().backward(np.ones(2, "f")),
    "grad: the outputs don't depend on input 0 of shape (3,); pass allow_unused=True to get None "
    "for it": lambda: tg.grad(leaf().sum(), leaf()),
}

TYPE_ERRORS = {
    "mul got float32 and float64; convert one with .astype(...)": lambda: ROWS * DOUBLE,
    "conv2d got float32 and float64; convert one with .astype(...)": (
        lambda: F.conv2d(ones(1, 1, 3, 3), DOUBLE)
    ),
    "conv2d: got uint8; expected a Tensor of float32 or float64": lambda: F.conv2d(BYTES, BYTES),
    "max_pool2d: got uint8; expected a Tensor of float32 or float64": (
        lambda: F.max_pool2d(BYTES, 2)
    ),
    "avg_pool2d: got ndarray; expected a Tensor of float32 or float64": (
        lambda: F.avg_pool2d(BYTES.numpy(), 2)
    ),
    "add: 300 can't be held as uint8; use .astype(...) first": lambda: BYTES + 300,
    "a backend is named by a string, got <class 'numpy.float32'>; dtypes: use .astype(...)": (
        lambda: ROWS.to(np.float32)
    ),
    "Tensor: uint8 can't require a gradient; use float32 or float64, for example "
    "x.astype(np.float32)": lambda: tg.tensor(BYTES.numpy(), requires_grad=True),
    "Tensor: float16 is not supported; expected float32 or float64 (integers and booleans only as "
    "constants)": lambda: tg.Tensor(np.zeros(2, "float16")),
    "add: 0.5 can't be held as uint8; use .astype(...) first": lambda: BYTES + 0.5,
    "power: the exponent must be a number; write (y * x.log()).exp() for x**y": lambda: ROWS**ROWS,
    "add: got str; expected a Tensor, a NumPy array or a number": lambda: ROWS + "1",
    "relu: expected a Tensor, got float; make one with tg.tensor(...)": lambda: F.relu(1.0),
    "where: expected a Tensor, got float, int; make one with tg.tensor(...)": (
        lambda: tg.where(np.ones(2, bool), 1.0, 2)
    ),
    "conv2d: stride is 1.5; expected an integer or a pair": conv(stride=1.5),
    "conv2d: stride is (1, 2, 3); expected an integer or a pair": conv(stride=(1, 2, 3)),
    "conv2d: stride is '2'; expected an integer or a pair": conv(stride="2"),
    "conv2d: dilation is None; expected an integer or a pair": conv(dilation=None),
    "conv2d: padding is (1, 0.5); expected an integer or a pair": conv(padding=(1, 0.5)),
    "conv2d: padding is ((1, 1), (1, 1)); expected an integer or a pair": conv(
        padding=((1, 1), (1, 1))
    ),
    "max_pool2d: kernel_size is '2'; expected an integer or a pair": (
        lambda: F.max_pool2d(IMAGES, "2")
    ),
    "a Tensor's items can't be assigned: the recorded graph may need the old values. "
    "Use tg.where(...), or change t.numpy() before the computation": (
        lambda: leaf().__setitem__(0, 1.0)
    ),
}


@pytest.mark.parametrize("message", VALUE_ERRORS)
def test_wrong_values(message):
    refuses(VALUE_ERRORS[message], ValueError, message)


@pytest.mark.parametrize("message", TYPE_ERRORS)
def test_wrong_types(message):
    refuses(TYPE_ERRORS[message], TypeError, message)


def test_the_limits_themselves_are_right():
    assert conv(w=(6, 4, 8, 8))().shape == (2, 6, 1, 1)
    assert conv(dilation=4, padding=(1, 1))().shape == (2, 6, 2, 2)
    assert F.max_pool2d(IMAGES, (2, 3), padding=1).shape == (2, 4, 5, 3)
    assert F.local_response_norm(IMAGES, 1).shape == X
    assert batch_norm((1, 4, 1, 1), training=False)().shape == (1, 4, 1, 1)
    assert batch_norm((2, 4, 1, 1))().shape == (2, 4, 1, 1)
    assert smoothed(0)().size == smoothed(1)().size == 1


@pytest.mark.parametrize(
    ("groups", "x", "w"),
    [(3, X, W), (4, X, W), (0, X, W), (-2, X, W), (3, (2, 3, 8, 8), (4, 1, 3, 3))],
)
def test_groups_that_do_not_divide(groups, x, w):
    message = (
        f"conv2d: groups={groups} must divide the {x[1]} channels of x {x} "
        f"and the {w[0]} filters of w {w}"
    )
    refuses(conv(x, w, groups=groups), ValueError, message)


CLASS_NUMBERS = (
    "expected integer class numbers (tg.tensor makes float32 of lists: pass the list itself)"
)


@pytest.mark.parametrize("loss", [F.cross_entropy, F.hinge_loss])
@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([0, 10, 1], ValueError, "targets run from 0 to 10; expected 0 to 9 for 10 classes"),
        ([0, 9, -1], ValueError, "targets run from -1 to 9; expected 0 to 9 for 10 classes"),
        ([0, 1], ValueError, "got scores (3, 10) and targets (2,); expected (N, K) and (N,)"),
        (
            np.zeros((3, 10), int),
            ValueError,
            "got scores (3, 10) and targets (3, 10); expected (N, K) and (N,)",
        ),
        (ones(3), TypeError, f"targets are float32; {CLASS_NUMBERS}"),
        ([True] * 3, TypeError, f"targets are bool; {CLASS_NUMBERS}"),
    ],
)
def test_targets(loss, targets, error, message):
    refuses(lambda: loss(ROWS, targets), error, f"{loss.__name__}: {message}")


@pytest.mark.parametrize("loss", [F.cross_entropy, F.hinge_loss])
def test_other_mistakes_with_losses(loss):
    message = "got scores (10,) and targets (1,); expected (N, K) and (N,)"
    refuses(lambda: loss(ROWS[0], [1]), ValueError, f"{loss.__name__}: {message}")
    message = "reduction is 'average'; expected 'mean', 'sum' or 'none'"
    call = lambda: loss(ROWS, [0, 9, 2], reduction="average")  # noqa: E731
    refuses(call, ValueError, f"{loss.__name__}: {message}")
    assert loss(ROWS[:0], [], reduction="sum").item() == 0  # no targets, so no wrong ones
    wanted = "expected a Tensor of float32 or float64"
    for scores, came in (np.zeros((1, 2)), "ndarray"), (ROWS.astype("int64"), "int64"):
        message = f"{loss.__name__}: got {came}; {wanted}"
        refuses(lambda s=scores: loss(s, [0]), TypeError, message)


@pytest.mark.parametrize("data", ["text", None, [[1], [2, 3]], {1: 2}, [ones(1)]])
def test_data_that_is_no_array(data):
    with pytest.raises(TypeError) as caught:
        tg.Tensor(data)
    message = str(caught.value)
    assert message.startswith(f"Tensor: can't read {type(data).__name__} as numbers (")
    assert message.endswith("); expected an array, a number or nested lists of equal lengths")


def test_cupy_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("tinygrad_cnn.backends._made", {})
    monkeypatch.setitem(sys.modules, "cupy", None)
    message = (
        "backend 'cupy' can't run here: CuPy is not installed (import of cupy halted; None in "
        "sys.modules); try: pip install 'tinygrad_cnn[cuda12]'"
    )
    refuses(lambda: ROWS.to("cupy"), tg.BackendUnavailable, message)


def test_mixed_backends():
    message = "mul got tensors on 'numpy' and 'numba'; move one with .to(...)"
    refuses(lambda: ROWS * tg.ones(10, backend="numba"), tg.BackendMismatch, message)


def test_a_second_backward():
    message = (
        "this graph was walked already and its memory given back; run the forward pass again, or "
        "walk it the first time with retain_graph=True"
    )
    refuses(walked().backward, tg.GraphFreed, message)


def test_a_changed_input():
    message = (
        "mul: a tensor of shape (3,) that its gradient needs was changed after the forward pass "
        "(assignment to .data, an optimiser's step, load_state_dict); "
        "run the forward pass again after the change"
    )
    refuses(with_a_changed_input().backward, tg.SavedTensorChanged, message)
