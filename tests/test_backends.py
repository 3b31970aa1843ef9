"""The registry of backends, the choice of one, and what a backend owes to its users."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import backends
from tinygrad_cnn import functional as F
from tinygrad_cnn.backends import Backend, BackendUnavailable
from tinygrad_cnn.backends.base import nchw, nhwc, split
from tinygrad_cnn.backends.cupy_backend import CupyBackend
from tinygrad_cnn.backends.numba_backend import NumbaBackend
from tinygrad_cnn.backends.numpy_backend import NumpyBackend

RNG = np.random.default_rng(0)
IMAGES = np.ascontiguousarray(RNG.standard_normal((2, 5, 6, 3))).transpose(0, 3, 1, 2)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Start with no backend chosen and none made; forget what is registered afterwards."""
    monkeypatch.setattr(backends, "_made", {})
    monkeypatch.setattr(backends, "_factories", dict(backends._factories))
    monkeypatch.setattr(backends, "_chosen", None)
    monkeypatch.delenv(backends.VARIABLE, raising=False)


def missing(name):
    def factory():
        raise BackendUnavailable(name, "it is a test", "another test")

    return factory


def named(name):
    """Make a NumPy backend of another name."""
    return type(name, (NumpyBackend,), {"name": name})()


# ---- the registry ----


def test_a_backend_is_made_once():
    assert backends.get("numpy") is backends.get("numpy")
    assert backends.get("numpy").name == "numpy"
    made = named("mine")
    assert backends.get(made) is made


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cuda", "; did you mean 'cupy'?"),
        ("gpu", "; did you mean 'cupy'?"),
        ("cpu", "; did you mean 'numba'?"),
        ("jit", "; did you mean 'numba'?"),
        ("np", "; did you mean 'numpy'?"),
        ("nunpy", "; did you mean 'numpy'?"),
        ("Numba", "; did you mean 'numba'?"),
        ("tpu", "."),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, hint):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        backends.get(name)
    assert str(error.value) == f"no backend {name!r}{hint} There are: cupy, numba, numpy"


def test_a_registered_backend_is_made_at_first_use_and_replaces_its_namesake():
    made = []
    tg.register_backend("mine", lambda: made.append(named("mine")) or made[-1])
    assert not made
    assert tg.ones(2, backend="mine").backend is made[0]
    tg.register_backend("mine", lambda: made.append(named("mine")) or made[-1])
    assert backends.get("mine") is made[1]
    assert len(made) == 2


def test_available_tells_what_can_run_and_why_not():
    tg.register_backend("mine", missing("mine"))
    tg.register_backend("cupy", missing("cupy"))
    found = tg.available_backends()
    assert list(found) == ["cupy", "mine", "numba", "numpy"]
    assert found["numpy"] is None
    assert found["mine"].reason == "it is a test"
    assert found["mine"].remedy == "another test"
    assert str(found["mine"]) == "backend 'mine' can't run here: it is a test; try: another test"


@pytest.mark.parametrize("present", [("cupy", "numba", "numpy"), ("numba", "numpy"), ("numpy",)])
def test_auto_takes_the_best_that_can_run(present):
    for name in "cupy", "numba", "numpy":
        tg.register_backend(name, (lambda n=name: named(n)) if name in present else missing(name))
    assert backends.get("auto").name == backends.default().name == present[0]


# ---- the choice ----


def test_the_environment_is_read_at_the_first_tensor_and_only_then(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "numpy")
    first = tg.ones(1).backend.name
    monkeypatch.setenv(backends.VARIABLE, "numba")
    assert (first, tg.ones(1).backend.name) == ("numpy", "numpy")


def test_the_environment_is_not_read_at_import():
    program = """
import os, tinygrad_cnn as tg
os.environ["TINYGRAD_CNN_BACKEND"] = "numba"
print(tg.ones(1).backend.name, end="")"""
    environment = {**os.environ, "TINYGRAD_CNN_BACKEND": "nonsense"}
    command = [sys.executable, "-W", "error", "-c", program]
    assert subprocess.check_output(command, env=environment, text=True) == "numba"


@pytest.mark.parametrize("value", ["", "auto"])
def test_an_empty_variable_means_auto(monkeypatch, value):
    tg.register_backend("cupy", lambda: named("cupy"))
    monkeypatch.setenv(backends.VARIABLE, value)
    assert tg.ones(1).backend.name == "cupy"


def test_a_wrong_variable_is_an_error_at_the_first_tensor(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "cuda")
    with pytest.raises(ValueError, match=r"^no backend 'cuda'; did you mean 'cupy'"):
        tg.ones(1)


def test_set_backend_beats_the_environment(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "numba")
    tg.set_backend("numpy")
    assert tg.ones(1).backend.name == "numpy"
    tg.set_backend(named("mine"))
    assert tg.ones(1).backend.name == "mine"


def test_use_backend_nests_and_is_restored():
    tg.set_backend("numpy")
    with tg.use_backend("numba"):
        with tg.use_backend(named("mine")):
            assert tg.ones(1).backend.name == "mine"
        assert tg.ones(1).backend.name == "numba"
        tg.set_backend("numba")
    assert tg.ones(1).backend.name == "numba"


def test_use_backend_chooses_no_default():
    with tg.use_backend("numpy"):
        tg.ones(1)
    assert backends._chosen is None


def test_a_wrong_choice_changes_nothing():
    tg.set_backend("numpy")
    for choose in tg.set_backend, lambda name: tg.use_backend(name).__enter__():
        with pytest.raises(ValueError, match="no backend"):
            choose("cuda")
    assert tg.ones(1).backend.name == "numpy"


# ---- tensors and their backends ----


def test_results_stay_where_their_inputs_are():
    x = tg.ones(1, 2, 3, 3, backend="numba", requires_grad=True)
    with tg.use_backend("numpy"):
        y = F.relu(F.conv2d(x * 2.0, tg.ones(1, 2, 1, 1, backend="numba")) + np.ones(3, "f"))
        y.sum().backward()
        results = [y, x.grad, x > 0, x.argmax(), x.detach(), F.dropout(x), x.astype("int64")]
    assert {t.backend.name for t in results} == {"numba"}


def test_to_copies_to_another_backend():
    x = tg.Tensor(IMAGES, requires_grad=True, backend="numpy")
    y = x.to("numba")
    assert (y.backend.name, y.requires_grad, y.node.op) == ("numba", True, "")
    assert not np.shares_memory(x.data, y.data)
    np.testing.assert_array_equal(y.numpy(), IMAGES, strict=True)
    assert x.to("numpy") is x
    assert not x.detach().to("numba").requires_grad


def test_a_recorded_tensor_can_not_change_its_backend():
    y = tg.ones(2, requires_grad=True, backend="numpy") * 2.0
    with pytest.raises(
        ValueError, match=r"^to: this tensor is recorded, and no gradient can cross"
    ):
        y.to("numba")
    assert y.to("numpy") is y


def test_the_same_backend_shares_its_own_arrays():
    """Even one whose to_numpy copies, as from a GPU."""
    distant = type("Distant", (Minimal,), {"name": "far", "to_numpy": lambda self, a: a.copy()})()
    t = tg.ones(2, backend=distant)
    assert tg.Tensor(t, backend=distant).data is t.data


def test_data_of_another_backend_is_converted():
    tg.set_backend("numpy")
    there = tg.ones(2, backend="numba")
    assert tg.Tensor(there).backend.name == tg.tensor(there).backend.name == "numpy"


# ---- what every backend owes ----


def public(cls):
    return {n: f for n, f in inspect.getmembers(cls, inspect.isfunction) if n[0] != "_"}


def parameters(f):
    """List names, kinds and defaults."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]


@pytest.mark.parametrize("cls", [NumpyBackend, NumbaBackend, CupyBackend])
def test_signatures_are_those_of_the_base(cls):
    wanted = {name: parameters(f) for name, f in public(Backend).items()}
    assert {n: parameters(f) for n, f in public(cls).items() if n in wanted} == wanted


def test_the_five_members_are_demanded():
    empty = Backend()
    for call in (lambda: empty.asarray(1), lambda: empty.to_numpy(1), empty.synchronize):
        with pytest.raises(NotImplementedError):
            call()
    assert not hasattr(empty, "name") | hasattr(empty, "xp")


def test_a_backend_says_its_name():
    assert repr(backends.get("numpy")) == "<backend numpy>"
    assert backends.get("numpy").synchronize() is None


@pytest.mark.parametrize("kernel", sorted(public(Backend).keys() - {"choose"}))
def test_numpy_always_chooses_the_reference(kernel):
    shapes = ((2, 3, 8, 8), (4, 3, 3, 3))
    chosen = backends.get("numpy").choose(kernel, shapes=shapes, dtype=np.float32, stride=(1, 1))
    assert chosen == "reference"


def channels_last(a):
    return nhwc(a).flags.c_contiguous


@pytest.mark.parametrize(
    "other",
    [IMAGES, IMAGES[:, :1], IMAGES[0], IMAGES[0, 0], np.ones(6), np.float64(2.0), np.ones(())],
    ids=["4-D", "one channel", "3-D", "2-D", "1-D", "number", "0-D"],
)
def test_map_broadcasts_and_keeps_channels_last(other):
    backend = backends.get("numpy")
    for x, y in (IMAGES, other), (other, IMAGES):
        z = backend.map(np.subtract, x, y)
        np.testing.assert_array_equal(z, x - y, strict=True)
        assert channels_last(z)


def test_map_applies_other_ranks_as_they_are():
    backend, seen = backends.get("numpy"), []
    for a in np.ones(()), np.ones(3), np.ones((2, 3, 4)), np.ones((1, 2, 3, 4, 5)):
        backend.map(lambda *arrays: seen.append(arrays) or arrays[0], a, a)
        assert seen.pop() == (a, a) if a.ndim == 0 else seen[-1][0] is a


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5)])
def test_empty_and_zeros(shape):
    backend = backends.get("numpy")
    for a in backend.empty(shape, "float32"), backend.zeros(shape, "float32"):
        assert (a.shape, a.dtype) == (shape, "float32")
        assert len(shape) != 4 or channels_last(a)
    assert not backend.zeros(shape, "float32").any()


def test_add_fills_the_array_that_it_is_given():
    backend, out = backends.get("numpy"), np.zeros_like(IMAGES)
    assert backend.add(IMAGES, IMAGES, out=out) is out
    np.testing.assert_array_equal(out, 2 * IMAGES)
    np.testing.assert_array_equal(backend.add(IMAGES, np.float64(1)), IMAGES + 1)


def test_views_of_images():
    assert nchw(nhwc(IMAGES)).strides == IMAGES.strides
    groups = split(nhwc(np.concatenate([IMAGES, IMAGES + 100], axis=1)), groups=2)
    np.testing.assert_array_equal(groups[1], nhwc(IMAGES) + 100)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_sgd_update_is_its_formula(nesterov, weight_decay):
    p, g, v = (np.random.default_rng(i).standard_normal((2, 3)) for i in range(3))
    d = g + weight_decay * p
    v_then = 0.9 * v + d
    p_then = p - 0.1 * (d + 0.9 * v_then if nesterov else v_then)
    kept, settings = g.copy(), dict(lr=0.1, momentum=0.9, weight_decay=weight_decay)
    backends.get("numpy").sgd_update(p, g, v, nesterov=nesterov, **settings)
    np.testing.assert_array_equal([p, v, g], [p_then, v_then, kept])


def test_crop_and_flip():
    offsets, flips = np.array([[0, 0], [3, 2]]), np.array([False, True])
    padded = np.pad(IMAGES, ((0, 0), (0, 0), (2, 2), (2, 2)))
    first, second = padded[0, :, :5, :6], padded[1, :, 3:8, 2:8][:, :, ::-1]
    y = backends.get("numpy").crop_and_flip(IMAGES, offsets, flips, padding=2)
    np.testing.assert_array_equal(y, [first, second])
    assert channels_last(y)


# ---- a backend of five members ----


class Minimal(Backend):
    """The least that a backend gives."""

    name, xp = "minimal", np

    def asarray(self, a, dtype=None):
        return np.asarray(a, dtype)

    def to_numpy(self, a):
        return a

    def synchronize(self):
        pass


def small_net(backend):
    """Give loss and gradients of convolution, batch norm, pooling and cross-entropy."""
    rng = np.random.default_rng(1)
    at = dict(rng=rng, requires_grad=True, backend=backend)
    x, w, weight, bias = (tg.randn(*s, **at) for s in ((4, 2, 6, 6), (3, 2, 3, 3), (3,), (3,)))
    running = tg.zeros(3, backend=backend), tg.ones(3, backend=backend)
    h = F.batch_norm(F.conv2d(x, w, padding="same"), *running, weight, bias, True, relu=True)
    h = F.avg_pool2d(F.max_pool2d(h, 3, 1, padding=1), 2)
    loss = F.cross_entropy(F.global_avg_pool2d(h), [0, 1, 2, 0])
    loss.backward()
    return [t.numpy() for t in (loss, x.grad, w.grad, weight.grad, bias.grad, *running)]


def test_five_members_make_a_backend():
    tg.register_backend("minimal", Minimal)
    for here, there in zip(small_net("minimal"), small_net("numpy"), strict=True):
        np.testing.assert_array_equal(here, there, strict=True)


def test_numba_says_why_it_can_not_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(
        BackendUnavailable, match=r"Numba is not installed; try: pip install numba$"
    ):
        backends.get("numba")


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_batch_norm_by_itself_has_no_relu_and_no_residual(name):
    one = np.ones(3)
    y, mean, var = backends.get(name).batch_norm(IMAGES, one, 0 * one, eps=1e-5)
    assert y.min() < -1
    at = dict(mean=mean, var=var, eps=1e-5, training=True)
    *_, of_residual = backends.get(name).batch_norm_grad(y, IMAGES, one, 0 * one, **at)
    assert of_residual is None


# ---- mixtures ----

MIXTURES = {
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "equal": lambda x, y: x == y,
    "matmul": lambda x, y: x[0, 0] @ y[0, 0],
    "conv2d": F.conv2d,
    "concatenate": lambda x, y: tg.concatenate([x, y]),
    "where": lambda x, y: tg.where(np.True_, x, y),
    "backward": lambda x, y: x.backward(y),
}


@pytest.mark.parametrize("op", MIXTURES)
def test_a_mix_of_backends_is_refused(op):
    x, y = (tg.ones(1, 1, 2, 2, backend=b, requires_grad=True) for b in ("numpy", "numba"))
    message = rf"^{op} got tensors on 'numpy' and 'numba'; move one with \.to\(\.\.\.\)$"
    with pytest.raises(tg.BackendMismatch, match=message):
        MIXTURES[op](x, y)
