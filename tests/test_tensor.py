"""The Tensor: how it is made, what it shares, which operators and libraries it meets, and how."""

import copy
import math
import operator
import pickle
import re
import subprocess
import sys
from itertools import count

import numpy as np
import pytest

import tinygrad_cnn as tg

A = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.5]], np.float32)
B = np.array([[2.0, 1.0, -3.0], [0.5, -4.0, 2.5]], np.float32)


@pytest.fixture(autouse=True)
def on_numpy():
    with tg.use_backend("numpy"):
        yield


def leaf(values, dtype=None):
    return tg.tensor(values, requires_grad=True, dtype=dtype)


def same(t, expected):
    """Demand equal values, shape and dtype."""
    np.testing.assert_array_equal(t.numpy(), expected, strict=True)
    return True


# ---- making tensors ----


@pytest.mark.parametrize("make", [tg.Tensor, tg.tensor])
@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (2, "float32"),
        (2.5, "float32"),
        (True, "float32"),
        ([1, 2], "float32"),
        ([[1.5], (2,)], "float32"),
        ([], "float32"),
        (range(3), "float32"),
        (np.float64(2), "float64"),
        (np.arange(3), "int64"),
        (np.array([True]), "bool"),
        (np.ones(2, np.uint8), "uint8"),
        (np.ones(2), "float64"),
    ],
    ids=count(),
)
def test_lists_become_float32_and_arrays_keep_their_dtype(make, data, dtype):
    assert same(make(data), np.asarray(data).astype(dtype))


@pytest.mark.parametrize("make", [tg.Tensor, tg.tensor])
def test_a_given_dtype_is_read_at_its_full_precision(make):
    assert make([0.1], dtype="float64").item() == 0.1
    assert make(2**53 + 1, dtype="int64").item() == 2**53 + 1
    assert same(make(np.array([1.5, 2.5]), dtype=np.float32), np.array([1.5, 2.5], np.float32))


def test_tensor_copies_and_the_class_aliases():
    a = np.ones(3)
    assert tg.Tensor(a).data is a
    assert not np.shares_memory(tg.tensor(a).data, a)


def test_a_tensor_of_a_tensor():
    t = leaf([1.0, 2.0])
    assert tg.Tensor(t).data is t.data
    assert not tg.Tensor(t).requires_grad
    assert not np.shares_memory(tg.tensor(t).data, t.data)
    assert tg.Tensor(t, backend="numba").backend.name == "numba"


def test_a_new_tensor_has_no_gradient():
    t = tg.Tensor(A)
    assert (t.grad, t.requires_grad, t.version, t.node) == (None, False, [0], None)
    assert tg.Tensor(A, True).requires_grad
    assert tg.Tensor(A, requires_grad=True).node.op == ""


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: tg.zeros(2, 3), np.zeros((2, 3), "f")),
        (lambda: tg.zeros((2, 3), dtype="float64"), np.zeros((2, 3))),
        (lambda: tg.zeros([2]), np.zeros(2, "f")),
        (lambda: tg.zeros(), np.zeros((), "f")),
        (lambda: tg.ones(4, dtype=np.int64), np.ones(4, int)),
        (lambda: tg.ones(0, 3), np.ones((0, 3), "f")),
        (lambda: tg.full((2,), 2.5), np.full(2, 2.5, "f")),
        (lambda: tg.full(3, 7, dtype="int32"), np.full(3, 7, "i")),
    ],
    ids=count(),
)
def test_creation_functions(made, expected):
    assert same(made(), expected)


@pytest.mark.parametrize(
    "make", [tg.zeros, tg.ones, tg.randn, lambda n, **at: tg.full(n, 1.0, **at)],
    ids=["zeros", "ones", "randn", "full"],
)  # fmt: skip
def test_creation_functions_take_the_usual_settings(make):
    t = make(2, requires_grad=True, dtype="float64", backend="numba")
    assert (t.shape, t.requires_grad, t.dtype, t.backend.name) == ((2,), True, "float64", "numba")
    plain = make(2)
    assert (plain.requires_grad, plain.dtype, plain.backend.name) == (False, "float32", "numpy")


def test_manual_seed_restarts_the_default_generator():
    tg.manual_seed(5)
    first, second = tg.randn(2, 3), tg.randn((2, 3))
    generator = tg.manual_seed(5)
    assert same(tg.randn(2, 3), first.numpy())
    assert (first != second).numpy().all()
    rng = np.random.default_rng(5)
    assert same(first, rng.standard_normal((2, 3)).astype("f"))
    assert same(second, generator.standard_normal((2, 3)).astype("f"))


def test_a_given_generator_is_used():
    tg.manual_seed(5)
    drawn = tg.randn(3, rng=np.random.default_rng(7), dtype="float64")
    assert same(drawn, np.random.default_rng(7).standard_normal(3))
    assert same(tg.randn(1), np.random.default_rng(5).standard_normal(1).astype("f"))


def test_unseeded_processes_differ():
    program = "import tinygrad_cnn as tg; print(tg.randn(1, backend='numpy').item())"
    command = [sys.executable, "-c", program]
    first, second = (subprocess.check_output(command, text=True) for _ in range(2))
    assert float(first) != float(second)


# ---- dtypes ----


@pytest.mark.parametrize("dtype", ["float16", "complex64", "U3", "O", "datetime64[s]"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(
        TypeError, match=r"^Tensor: .* is not supported; expected float32 or float64"
    ):
        tg.Tensor(np.zeros(2, dtype))


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_only_floats_require_gradients(dtype):
    a, message = np.zeros(2, dtype), rf"^Tensor: {dtype} can't require a gradient; use float32 or"
    for make in (
        lambda: tg.Tensor(a, requires_grad=True),
        lambda: tg.tensor(a, requires_grad=True),
        lambda: setattr(tg.Tensor(a), "requires_grad", True),
    ):
        with pytest.raises(TypeError, match=message):
            make()
    assert not tg.Tensor(a).requires_grad


def test_astype_keeps_the_gradient_between_floats():
    x = leaf([1.5, -2.5])
    y = x.astype("float64")
    assert same(y, np.array([1.5, -2.5]))
    (y * y).sum().backward()
    assert same(x.grad, np.array([3.0, -5.0], np.float32))


@pytest.mark.parametrize("dtype", ["int64", bool, np.uint8])
def test_astype_to_whole_numbers_leaves_the_graph(dtype):
    assert not leaf([1.5, 2.5]).astype(dtype).requires_grad
    assert same(leaf([1.5, 2.5]).astype(dtype), np.array([1.5, 2.5]).astype(dtype))


# ---- what it is ----


def test_facts():
    t = tg.Tensor(A)
    assert (t.shape, t.dtype, t.ndim, t.size, len(t)) == ((2, 3), np.float32, 2, 6, 2)
    assert t.numpy() is t.data is A


def test_data_can_be_replaced_by_its_like():
    t, new = leaf([1.0, 2.0]), np.array([3.0, 4.0], np.float32)
    t.data = new
    assert t.data is new
    t.data = tg.Tensor(new + 1)
    assert same(t, new + 1)
    assert t.version == [2]
    for wrong in np.ones(3, "f"), np.ones(2):
        with pytest.raises(
            ValueError, match=r"^data: got .* of shape .* for a tensor that holds fl"
        ):
            t.data = wrong
    assert t.version == [2]


def test_replace_data_moves_a_leaf_and_forgets_its_gradient():
    t = leaf([1.0, 2.0])
    t.sum().backward()
    y, node = (t * t).sum(), t.node
    t.replace_data(np.array([3.0, 4.0]))
    assert (t.dtype, t.grad, t.backend.name, t.node) == ("float64", None, "numpy", node)
    assert t.version == [1]
    with pytest.raises(tg.SavedTensorChanged):
        y.backward()
    t.replace_data(t.data, backend=tg.ones(1, backend="numba").backend)
    assert t.backend.name == "numba"


def test_requires_grad_can_be_switched_on_a_leaf():
    t = tg.Tensor(A)
    t.requires_grad = True
    (t * t).sum().backward()
    assert same(t.grad, 2 * A)
    t.requires_grad = False
    assert not (t * t).requires_grad
    with pytest.raises(
        ValueError, match=r"^requires_grad: this tensor is the result of mul; only a"
    ):
        (leaf([1.0]) * 2.0).requires_grad = False


def test_switching_requires_grad_on_twice_keeps_the_record():
    x = leaf(3.0)
    y = x * x
    x.requires_grad = True
    assert tg.grad(y, x)[0].item() == 6


def test_item_float_bool():
    for t in tg.Tensor(2.5), tg.Tensor([2.5]), tg.Tensor([[2.5]]):
        assert (t.item(), float(t), bool(t)) == (2.5, 2.5, True)
    assert not tg.Tensor([0.0])
    assert type(tg.Tensor(np.array(3)).item()) is int
    for t in tg.Tensor(A), tg.zeros(0):
        for fn in (tg.Tensor.item, bool, float):
            with pytest.raises(ValueError, match=rf"^item: {re.escape(str(t.shape))} is no single"):
                fn(t)


def test_len_and_iteration():
    t = leaf(A)
    rows = list(t)
    assert all(same(row, a) for row, a in zip(rows, A, strict=True))
    rows[1].sum().backward()
    assert same(t.grad, np.array([[0, 0, 0], [1, 1, 1]], np.float32))
    for fn in len, iter:
        with pytest.raises(TypeError, match=r"^len: a tensor of shape \(\) has no length"):
            fn(tg.Tensor(1.0))


def test_detach_shares_memory_outside_the_graph():
    x = leaf([1.0, 2.0])
    t = x.detach()
    assert np.shares_memory(t.data, x.data)
    assert not t.requires_grad


@pytest.mark.parametrize(
    ("t", "text"),
    [
        (lambda: tg.Tensor(1.5), "Tensor(1.5, shape=(), float32, numpy)"),
        (lambda: leaf([1, 2]), "Tensor([1., 2.], shape=(2,), float32, numpy, requires_grad)"),
        (lambda: leaf([4.0]).sqrt(), "Tensor([2.], shape=(1,), float32, numpy, op=sqrt)"),
        (
            lambda: tg.Tensor(np.arange(24).reshape(2, 12)),
            "Tensor([[ 0,  1,  2, ...,  9, 10, 11],\n"
            "        [12, 13, 14, ..., 21, 22, 23]], shape=(2, 12), int64, numpy)",
        ),
    ],
    ids=count(),
)
def test_repr(t, text):
    assert repr(t()) == text


# ---- operators ----

BINARY = [
    operator.add, operator.sub, operator.mul, operator.truediv,
    operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne,
]  # fmt: skip
OPERANDS = {
    "tensor": tg.Tensor(B, backend="numpy"),
    "array": B,
    "row": B[0],
    "float": 2.5,
    "int": 2,
    "bool": True,
    "NumPy float": np.float64(0.5),
    "NumPy int": np.int64(3),
    "NumPy bool": np.True_,
    "0-d array": np.array(0.5, np.float32),
}


@pytest.mark.parametrize("other", OPERANDS)
@pytest.mark.parametrize("f", BINARY)
def test_operators_and_their_reflections(f, other):
    t, other = tg.Tensor(A), OPERANDS[other]
    plain = other.numpy() if isinstance(other, tg.Tensor) else np.asarray(other, np.float32)
    assert same(f(t, other), f(A, plain))
    assert same(f(other, t), f(plain, A))


@pytest.mark.parametrize("f", [operator.add, operator.sub, operator.mul, operator.truediv])
@pytest.mark.parametrize("reflected", [False, True])
def test_operators_with_arrays_pass_gradients(f, reflected):
    a, b = A.astype(float), B.astype(float)
    apply = (lambda x: f(b, x)) if reflected else (lambda x: f(x, b))
    x = leaf(a)
    (g,) = tg.grad(apply(x).sum(), x)
    difference = (apply(a + 1e-4) - apply(a - 1e-4)) / 2e-4
    np.testing.assert_allclose(g.numpy(), difference, rtol=1e-6)


def test_unary_operators_and_powers():
    t = tg.Tensor(A)
    assert same(-t, -A)
    assert same(abs(t), abs(A))
    for exponent in 2, 0, 3.0, True:
        assert same(t**exponent, A**exponent)
    for exponent in t, "2", A, None:
        with pytest.raises(TypeError, match=r"^power: the exponent must be a number; write \(y"):
            t**exponent


def test_matmul_with_tensors_and_arrays():
    t = tg.Tensor(A)
    assert same(t @ tg.Tensor(B.T), A @ B.T)
    assert same(t @ B.T, A @ B.T)
    assert same(B.T @ t, B.T @ A)


@pytest.mark.parametrize("other", ["2", None, [1.0], 1j, np.complex64(1j), np.str_("a")])
def test_other_operands_are_refused(other):
    message = rf"^add: got {type(other).__name__}; expected a Tensor, a NumPy array or a number$"
    for f in (lambda t: t + other, lambda t: other + t):
        with pytest.raises(TypeError, match=message):
            f(tg.Tensor(A))


def test_a_number_that_the_dtype_can_not_hold_is_refused():
    t = tg.Tensor(np.arange(3))
    assert same(t + 2, np.arange(3) + 2)
    assert same(t * 2.0, np.arange(3) * 2)
    with pytest.raises(
        TypeError, match=r"^mul: 2.5 can't be held as int64; use .astype\(...\) first"
    ):
        t * 2.5
    assert same(tg.Tensor([1.0]) * 0.1, np.array([0.1], np.float32))  # rounding is no refusal


def test_mixed_dtypes_are_refused():
    single, double = tg.ones(2), tg.ones(2, dtype="float64")
    for other in double, double.numpy(), tg.ones(2, dtype="int64"):
        with pytest.raises(TypeError, match=r"^add got float32 and .*64; convert one with .astype"):
            single + other
    for gradient in double, double.numpy():
        with pytest.raises(TypeError, match=r"^backward got float32 and float64; convert one with"):
            (leaf([1.0, 2.0]) * 2.0).backward(gradient)


def test_comparisons_are_boolean_and_outside_the_graph():
    x = leaf(A)
    assert (x > 0).dtype == bool
    assert not (x > 0).requires_grad
    with pytest.raises(TypeError, match=r"^equal: got NoneType; expected a Tensor, a NumPy array"):
        assert x == None  # noqa: E711


def test_a_hash_is_by_identity():
    s, t = tg.Tensor(A), tg.Tensor(A)
    assert len({s, t, s}) == 2


# ---- indexing and shapes ----

INDICES = [
    0, -1, slice(1, None), slice(None, None, -2), None, ..., (0, 1), (..., 0), (None, 0, slice(2)),
    [1, 0, 1], ([0, 1, 1], [2, 0, 0]), (slice(None), [0, 0]), np.array([1, 1]), A > 0, np.int64(1),
    (),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=count())
def test_indexing_and_its_gradient(index):
    x = leaf(A)
    y = x[index]
    assert same(y, np.asarray(A[index]))
    weights, expected = np.arange(1.0, y.size + 1, dtype="f").reshape(y.shape), np.zeros_like(A)
    np.add.at(expected, index, weights)
    y.backward(weights)
    assert same(x.grad, expected)


@pytest.mark.parametrize("index", [np.array([1, 0, 1]), A > 0], ids=["numbers", "mask"])
def test_indexing_by_a_tensor(index):
    assert same(tg.Tensor(A)[tg.Tensor(index)], A[index])
    if index.ndim == 1:
        assert same(tg.Tensor(A)[tg.Tensor(index), 0], A[index, 0])


def test_items_can_not_be_assigned():
    t = tg.Tensor(A)
    with pytest.raises(TypeError, match=r"^a Tensor's items can't be assigned: .* Use tg\.where"):
        t[0] = 1.0


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda t: t.T, A.T),
        (lambda t: t[0].T, A[0]),
        (lambda t: t.reshape(3, 2), A.reshape(3, 2)),
        (lambda t: t.reshape((-1, 2)), A.reshape(3, 2)),
        (lambda t: t.reshape([6]), A.reshape(6)),
        (lambda t: t.reshape(-1), A.reshape(6)),
        (lambda t: t.flatten(), A.reshape(6)),
        (lambda t: t[None].flatten(1), A.reshape(1, 6)),
        (lambda t: t[None].flatten(-2), A.reshape(1, 6)),
        (lambda t: t[:, :0].flatten(1), np.zeros((2, 0), "f")),
        (lambda t: t[0, 0].flatten(), A[0, :1]),
        (lambda t: t.permute(1, 0), A.T),
        (lambda t: t.permute((-1, 0)), A.T),
        (lambda t: t[None].permute([2, 0, 1]), A[None].transpose(2, 0, 1)),
        (lambda t: t[0, 0].permute(), A[0, 0]),
        (lambda t: t[None].transpose(0, -1), A[None].transpose(2, 1, 0)),
    ],
    ids=count(),
)
def test_shapes(f, expected):
    x = leaf(A)
    assert same(f(x), np.asarray(expected))
    f(x).backward(np.asarray(expected))  # values go back to where they came from
    assert same(x.grad, A if expected.size == 6 else np.where(np.isin(A, expected), A, 0))


def test_one_tensor_may_be_joined_too():
    for t in tg.concatenate([tg.Tensor(A)], 1), tg.stack([tg.Tensor(A)], -1)[..., 0]:
        assert same(t, A)


def test_flatten_starts_at_an_axis_that_is_there():
    for t, axis in (tg.Tensor(A), 2), (tg.Tensor(A), -3), (tg.Tensor(1.0), 1):
        message = re.escape(f"flatten: x is {t.shape}, which has no axis {axis}")
        with pytest.raises(ValueError, match=message):
            t.flatten(axis)


# ---- methods ----

METHODS = {
    "sum": (lambda t, **at: t.sum(**at), np.sum),
    "mean": (lambda t, **at: t.mean(**at), np.mean),
    "var": (lambda t, **at: t.var(**at), np.var),
    "max": (lambda t, **at: t.max(**at), np.max),
    "min": (lambda t, **at: t.min(**at), np.min),
    "logsumexp": (
        lambda t, **at: t.logsumexp(**at),
        lambda a, **at: np.log(np.sum(np.exp(a), **at)),
    ),
}


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1), (1,)])
@pytest.mark.parametrize("name", METHODS)
def test_reductions(name, axis, keepdims):
    method, reference = METHODS[name]
    got, expected = (
        f(a, axis=axis, keepdims=keepdims)
        for f, a in ((method, tg.Tensor(A, dtype="float64")), (reference, A.astype(float)))
    )
    np.testing.assert_allclose(got.numpy(), np.asarray(expected), rtol=1e-14, strict=True)


@pytest.mark.parametrize("name", METHODS)
def test_reductions_take_their_settings_by_position(name):
    method = getattr(tg.Tensor(A), name)
    assert same(method(1, True), method(axis=1, keepdims=True).numpy())
    assert (method().shape, method(1).shape) == ((), (2,))


def test_argmax():
    t = leaf(A)
    for axis in None, 0, 1, -1:
        assert same(t.argmax(axis), np.asarray(A.argmax(axis)))
    assert same(t.argmax(), np.asarray(4))
    assert not t.argmax().requires_grad


@pytest.mark.parametrize(
    ("f", "reference"),
    [
        (tg.Tensor.exp, np.exp),
        (lambda t: abs(t).log(), lambda a: np.log(abs(a))),
        (lambda t: abs(t).sqrt(), lambda a: np.sqrt(abs(a))),
        (tg.Tensor.tanh, np.tanh),
        (tg.Tensor.abs, np.abs),
        (tg.Tensor.relu, lambda a: np.maximum(a, 0)),
        (lambda t: t.clip(-1, 2), lambda a: np.clip(a, -1, 2)),
        (lambda t: t.clip(low=0.0), lambda a: np.clip(a, 0, None)),
        (lambda t: t.clip(high=0.0), lambda a: np.clip(a, None, 0)),
        (lambda t: tg.pad(t, (0, 2, 1, 0)), lambda a: np.pad(a, [(1, 0), (0, 2)])),
    ],
    ids=count(),
)
def test_methods(f, reference):
    assert same(f(tg.Tensor(A)), reference(A))


# ---- other libraries ----

REFUSED = {
    "exp": lambda t: np.exp(t),
    "negative": lambda t: np.negative(t),
    "power": lambda t: A**t,
    "floor_divide": lambda t: A // t,
    "add": lambda t: np.add.reduce(t),
    "multiply": lambda t: np.multiply(t, A),
    "subtract": lambda t: np.subtract(A, t, where=A > 0),
    "concatenate": lambda t: np.concatenate([t, t]),
    "mean": lambda t: np.mean(t),
    "where": lambda t: np.where(A > 0, t, 0),
    "asarray": lambda t: np.array([t, t]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_numpy_functions_are_refused(name):
    message = rf"^numpy\.{name} got a Tensor, and would lose its gradient; .* or {name}\(t\.numpy"
    with pytest.raises(TypeError, match=message):
        REFUSED[name](leaf(A))


def test_conversion_by_numpy_is_refused():
    for convert in np.asarray, np.array, np.ascontiguousarray, np.float32:
        with pytest.raises(TypeError, match=r"^numpy\.asarray got a Tensor, and would lose its"):
            convert(leaf([1.0]))


def test_an_array_grows_by_no_tensor():
    a = A.copy()
    with pytest.raises(TypeError, match=r"^numpy\.add got a Tensor, and would lose its gradient"):
        a += leaf(B)
    assert (a == A).all()


@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_dlpack_shares_the_memory(module):
    library = pytest.importorskip(module)
    t = tg.tensor(A)
    there = library.from_dlpack(t)
    t.data[0, 0] = 7
    assert there.tolist() == t.numpy().tolist()
    with pytest.raises(
        TypeError, match=r"^__dlpack__: .* requires a gradient; use .detach\(\) first"
    ):
        library.from_dlpack(leaf(A))
    assert library.from_dlpack(leaf(A).detach()).tolist() == A.tolist()


def test_arrays_of_torch_are_read():
    torch = pytest.importorskip("torch")
    assert same(tg.tensor(torch.arange(3.0)), np.arange(3, dtype="f"))


def through_pickle(t):
    return pickle.loads(pickle.dumps(t))


@pytest.mark.parametrize("twin", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_copies_are_leaves(twin, requires_grad):
    t = tg.Tensor(A, requires_grad, backend="numba")
    other = twin(t)
    assert same(other, A)
    assert not np.shares_memory(other.data, t.data)
    assert (other.requires_grad, other.backend.name, other.grad) == (requires_grad, "numba", None)
    result = twin(leaf(A) * 2.0)
    assert (result.requires_grad, result.node.op) == (True, "")


def test_python_s_own_mathematics_leaves_the_graph():
    assert math.sqrt(leaf(4.0)) == 2


def test_copies_keep_the_layout():
    x = np.zeros((2, 4, 5, 3)).transpose(0, 3, 1, 2)  # channels-last
    assert tg.tensor(x, backend="numpy").data.strides == x.strides
    assert tg.Tensor(x, backend="numpy").to("numba").data.strides == x.strides
