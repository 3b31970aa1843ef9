"""The op protocol, the walk back, and what may be held, freed, shared or changed on the way."""

import contextvars
import gc
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import functional as F
from tinygrad_cnn.autograd import OPS, op, op_hooks, recording, unbroadcast
from tinygrad_cnn.ops.elementwise import rule_in_force

ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


@pytest.fixture(autouse=True)
def on_numpy():
    with tg.use_backend("numpy"):
        yield


@pytest.fixture
def toy():
    """Give the decorator @op; what it registers is forgotten afterwards."""
    before = dict(OPS)
    yield op
    OPS.clear()
    OPS.update(before)


@pytest.fixture
def no_gc():
    """Leave freeing to reference counts, so that a cycle shows."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def leaf(values, dtype="float64"):
    return tg.tensor(values, requires_grad=True, dtype=dtype)


def values(t):
    return t.numpy().tolist()


def living_tensors():
    return {id(o) for o in gc.get_objects() if issubclass(type(o), tg.Tensor)}


def normalise(x, **settings):
    """Batch norm that changes nothing."""
    zero, one = (tg.Tensor(np.full(x.shape[1], v)) for v in (0.0, 1.0))
    return F.batch_norm(x, zero, one, one, zero, False, eps=0.0, **settings)


def names_of(fn):
    names = []
    with tg.forward_hook(lambda name, *_: names.append(name)):
        y = fn()
    return names, y


# ---- the op protocol ----


def test_an_op_is_registered_under_its_name_and_keeps_its_docstring(toy):
    @toy
    def triple(x):
        """3 x."""
        return x.data * 3, (lambda g: g * 3.0,)

    assert OPS["triple"] is triple
    assert triple.__doc__ == "3 x."
    assert triple(leaf([2.0])).node.op == "triple"


def test_each_input_has_its_own_vjp(toy):
    @toy
    def weigh(x, w, *, k):
        return x.data * w.data * k, (lambda g: g * w * k, lambda g: g * x * k)

    x, w = leaf([2.0, 3.0]), leaf([5.0, 7.0])
    weigh(x, w, k=10.0).sum().backward()
    assert values(x.grad) == [50, 70]
    assert values(w.grad) == [20, 30]


def test_a_vjp_may_use_the_output_which_stays_differentiable(toy):
    @toy
    def inverse(x):
        return 1 / x.data, (lambda g, y: -g * y * y,)

    x = leaf(2.0)
    (first,) = tg.grad(inverse(x), x, create_graph=True)
    (second,) = tg.grad(first, x)
    assert (first.item(), second.item()) == (-1 / 4, 2 / 8)


def test_a_default_of_a_vjp_is_no_output(toy):
    @toy
    def scale(x):
        return x.data * 3, (lambda g, k=3.0: g * k,)

    x = leaf(1.0)
    y = scale(x)
    y.backward()
    assert x.grad.item() == 3
    assert y.node.output is None


def test_a_vjp_with_output_and_default_gets_the_output(toy):
    @toy
    def cube(x):
        return x.data**3, (lambda g, y, k=3.0: g * y * k,)

    x = leaf(2.0)
    cube(x).backward()
    assert x.grad.item() == 24


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_a_joint_vjp_is_told_what_is_needed(toy, wanted):
    asked = []

    @toy
    def both(x, w):
        return x.data * w.data, lambda g, needs: asked.append(needs) or (g * w, g * x)

    x, w = (tg.tensor(v, needs, "float64") for v, needs in zip((3.0, 5.0), wanted, strict=True))
    both(x, w).backward()
    assert asked == [list(wanted)]
    for t, needed, dt in zip((x, w), wanted, (5, 3), strict=True):
        assert (t.grad.item() == dt) if needed else (t.grad is None)


def test_a_joint_vjp_is_told_less_when_less_is_asked(toy):
    asked = []

    @toy
    def both(x, w):
        return x.data * w.data, lambda g, needs: asked.append(needs) or (g * w, None)

    x, w = leaf(3.0), leaf(5.0)
    y = both(x, w)
    assert tg.grad(y, x)[0].item() == 5
    assert asked == [[True, False]]


@pytest.mark.parametrize("joint", [False, True])
def test_a_target_s_own_vjps_are_not_called(toy, joint):
    @toy
    def explosive(x):
        vjp = (lambda g, needs: 1 / 0) if joint else (lambda g: 1 / 0,)
        return x.data * 2, vjp

    h = explosive(leaf(1.0))
    assert tg.grad(h * 3.0, h)[0].item() == 3


def test_a_vjp_whose_input_needs_no_gradient_is_dropped_with_what_it_captured(no_gc):
    for w_needs, h_lives in (False, False), (True, True):
        h, w = leaf([1.0, 2.0]) + 1.0, tg.tensor([3.0, 4.0], w_needs, "float64")
        y, h_ref = h * w, weakref.ref(h)  # only the gradient of w needs h
        del h
        assert (h_ref() is not None) == h_lives
        y.sum().backward()


def test_the_first_layer_never_computes_its_image_s_gradient(monkeypatch):
    monkeypatch.setattr(tg.backends.numpy_backend.NumpyBackend, "conv2d_input_grad", None)
    w = leaf(np.ones((1, 1, 2, 2)))
    F.conv2d(tg.ones(1, 1, 3, 3, dtype="float64"), w).sum().backward()
    assert values(w.grad) == [[[[4, 4], [4, 4]]]]


def test_a_residual_alone_asks_nothing_of_the_kernel(monkeypatch):
    monkeypatch.setattr(tg.backends.numpy_backend.NumpyBackend, "batch_norm_grad", None)
    residual = leaf(np.ones((1, 2, 1, 1)))
    normalise(tg.ones(1, 2, 1, 1, dtype="float64"), residual=residual).sum().backward()
    assert (residual.grad.numpy() == 1).all()


def test_nothing_is_captured_where_nothing_is_recorded(no_gc):
    h = tg.ones(3) + 1.0
    y, h_ref = h * h, weakref.ref(h)
    del h
    assert h_ref() is None
    assert not y.requires_grad


def test_pooling_keeps_no_positions_where_nothing_is_recorded(no_gc, monkeypatch):
    backend, positions = tg.backends.get("numpy"), []
    pool = backend.max_pool2d

    def watched(*arrays, **settings):
        y, argmax = pool(*arrays, **settings)
        positions.append(weakref.ref(argmax))
        return y, argmax

    monkeypatch.setattr(backend, "max_pool2d", watched)
    x = leaf(np.ones((1, 1, 4, 4)))
    kept = F.max_pool2d(x, 2)
    with tg.no_grad():
        passed = F.max_pool2d(x, 2)
    assert (kept.requires_grad, passed.requires_grad) == (True, False)
    assert positions[0]() is not None
    assert positions[1]() is None


def test_a_vjp_may_add_the_gradient_that_waits(toy):
    waited = []

    @toy
    def double(x):
        def vjp(g, plus=None):
            waited.append(plus is not None)
            return g * 2.0 if plus is None else g * 2.0 + plus

        return x.data * 2, (vjp,)

    x, seed = leaf([1.0, 2.0]), tg.tensor([1.0, 10.0], dtype="float64")
    (double(x) + x).backward(seed)  # what waits at x is the seed itself
    assert values(x.grad) == [3.0, 30.0]
    assert values(seed) == [1.0, 10.0]
    double(x).backward(seed)
    (recorded,) = tg.grad(double(x) + x, x, seed, create_graph=True)  # there it can't be recorded
    assert values(recorded) == [3.0, 30.0]
    assert waited == [True, False, False]


def test_a_joint_vjp_may_add_the_gradient_that_waits_at_its_first_input(toy):
    waited = []

    @toy
    def product(x, y):
        def vjp(g, needs, plus=None):
            waited.append(plus is not None)
            dx = g * y
            return (dx if plus is None else dx + plus, g * x)

        return x.data * y.data, vjp

    x, y = leaf([1.0, 2.0]), leaf([3.0, 5.0])
    (product(x, y) + x + y).sum().backward()
    assert (values(x.grad), values(y.grad)) == ([4.0, 6.0], [2.0, 3.0])
    (product(x.detach(), y) + y).sum().backward()
    assert values(y.grad) == [4.0, 6.0]
    seeds = tg.tensor([[1.0, 1.0]] * 2, dtype="float64")
    (dy,) = tg.grad([product(x, y), x], [y], [*seeds])  # at x waits a seed that leads nowhere
    assert values(dy) == [1.0, 2.0]
    assert waited == [True, False, False]


def test_ops_in_a_function_may_call_each_other(toy):
    """The closure of one has the other, and that one's the first; at first its cell is empty."""

    @toy
    def sine(x):
        return np.sin(x.data), (lambda g: g * cosine(x),)

    sine(leaf([0.5]))

    @toy
    def cosine(x):
        return np.cos(x.data), (lambda g: -g * sine(x),)

    assert tg.gradcheck(sine, [leaf([0.5, 2.0])], order=2)
    x = leaf([0.5])
    y = sine(x)
    x.data = x.data + 1.0  # what the vjp needs is found all the same
    with pytest.raises(tg.SavedTensorChanged, match=r"^sine: "):
        y.backward()


def test_an_image_may_be_its_own_filter():
    x = leaf(np.arange(1.0, 7.0).reshape(1, 1, 2, 3))
    assert tg.gradcheck(lambda x: F.conv2d(x, x, padding=1)[:, :, :2, :3] * x + x, [x], order=2)


@pytest.mark.parametrize("given", [(), (lambda g: g, lambda g: g)])
def test_the_number_of_vjps_is_checked_when_recorded(toy, given):
    @toy
    def wrong(x):
        return x.data, given

    with pytest.raises(ValueError, match=rf"^wrong: gave {len(given)} vjps .* for 1 inputs; exp"):
        wrong(leaf(1.0))


def test_the_number_of_joint_gradients_is_checked(toy):
    @toy
    def wrong(x, y):
        return x.data, lambda g, needs: (g,)

    with pytest.raises(ValueError, match=r"^wrong: gave 1 vjps or gradients for 2 inputs"):
        wrong(leaf(1.0), leaf(1.0)).backward()


@pytest.mark.parametrize("broadcasts", [False, True])
def test_a_gradient_of_the_wrong_shape_is_an_error_that_names_the_op(toy, broadcasts):
    @toy(broadcasts=broadcasts)
    def wrong(x):
        return x.data, (lambda g: g.reshape(3, 2),)

    x = leaf(ROWS)
    with pytest.raises(ValueError, match=r"^wrong: .* shape \(3, 2\) for an input of .* \(2, 3\)"):
        wrong(x).sum().backward()
    assert x.grad is None


def test_only_ops_that_say_so_broadcast(toy):
    @toy
    def plus(x, y):
        return x.data + y.data, (lambda g: g, lambda g: g)

    with pytest.raises(ValueError, match=r"^plus: .*declare the op with broadcasts=True"):
        plus(leaf(ROWS), leaf([1.0, 2.0, 3.0])).sum().backward()


@pytest.mark.parametrize(
    ("shape", "summed"),
    [
        ((2, 3, 4), np.ones((2, 3, 4))),
        ((3, 4), np.full((3, 4), 2.0)),
        ((1, 4), np.full((1, 4), 6.0)),
        ((2, 1, 4), np.full((2, 1, 4), 3.0)),
        ((2, 1, 1), np.full((2, 1, 1), 12.0)),
        ((), np.float64(24)),
    ],
)
def test_unbroadcast_sums_over_what_was_stretched(shape, summed):
    g = tg.ones(2, 3, 4, dtype="float64")
    np.testing.assert_array_equal(unbroadcast(g, shape).numpy(), summed, strict=True)


def test_unbroadcast_leaves_axes_that_were_1_anyway():
    g = tg.ones(1, 3)
    assert unbroadcast(g, (1, 3)) is g
    assert unbroadcast(g, (1, 1)).shape == (1, 1)
    assert unbroadcast(tg.ones(2, 1), (1,)).node is None
    assert values(unbroadcast(tg.ones(2, 1), (1,))) == [2]


@pytest.mark.parametrize(("args", "got"), [((1.0, [2]), "float, list"), ((), "nothing")])
def test_an_op_wants_a_tensor(args, got):
    with pytest.raises(TypeError, match=rf"^add: expected a Tensor, got {got}; make one with tg\."):
        OPS["add"](*args)


# ---- the walk ----


def test_a_node_waits_for_all_its_gradients():
    a = leaf(3.0)
    b = a + a
    c = b + b
    c.backward()
    assert a.grad.item() == 4


def test_a_shared_subexpression_is_walked_once(toy):
    calls = []

    @toy
    def same(x):
        return x.data, (lambda g: calls.append(1) or g,)

    x = leaf(1.0)
    h = x
    for _ in range(40):  # 2**40 paths lead to x
        h = same(h)
        h = h + h
    h.backward()
    assert x.grad.item() == 2**40
    assert len(calls) == 40


@pytest.mark.parametrize("late_first", [False, True])
def test_branches_of_different_depth_meet_in_any_order(late_first):
    x = leaf(2.0)
    deep = ((x * 3.0) * x).exp() if late_first else x
    shallow = x if late_first else ((x * 3.0) * x).exp()
    (deep * shallow).backward()
    e = np.exp(12.0)
    assert x.grad.item() == pytest.approx(e + 2 * 12 * e, rel=1e-14)


def test_ten_thousand_chained_ops():
    x = leaf(1.0)
    y = x
    for _ in range(10_000):
        y = y + 1.0
    y.backward()
    assert (y.item(), x.grad.item()) == (10_001, 1)


def test_a_long_chain_can_be_dropped_unwalked():
    y = leaf(1.0)
    for _ in range(20_000):
        y = y * y
    del y  # a recursive deallocation would overflow the C stack here


def test_a_leaf_s_own_gradient_is_1_as_often_as_asked():
    x = leaf(5.0)
    x.backward()
    x.backward()
    assert x.grad.item() == 2


def test_gradients_add_up_over_passes():
    x = leaf([1.0, 2.0])
    for _ in range(3):
        (x * x).sum().backward()
    assert values(x.grad) == [6, 12]


def test_a_seed_weighs_the_values():
    x = leaf([1.0, 2.0])
    (x * x).backward(np.array([1.0, 10.0]))
    assert values(x.grad) == [2, 40]


def test_backward_inside_no_grad_walks_what_was_recorded_outside():
    x = leaf(3.0)
    y = x * x
    with tg.no_grad():
        y.backward()
    assert x.grad.item() == 6


# ---- memory ----


def test_chained_adds_hold_one_array():
    x = tg.zeros(1024, 1024, dtype="float64", requires_grad=True)  # 8 MB
    tracemalloc.start()
    y = x
    for _ in range(50):
        y = y + 1.0
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.1 * y.data.nbytes
    assert peak < 3.1 * y.data.nbytes


def train_step(x, w, targets):
    c = w.shape[0]
    h = F.conv2d(x, w, padding=1)
    h = F.batch_norm(h, tg.zeros(c), tg.ones(c), tg.ones(c), tg.zeros(c), True, relu=True)
    h = F.max_pool2d(F.softmax(h.tanh() + h, axis=1), 2)
    return F.cross_entropy(F.global_avg_pool2d(h), targets)


def test_no_tensor_lives_on_but_the_user_s(no_gc):
    x, w = tg.randn(4, 2, 8, 8), tg.randn(3, 2, 3, 3, requires_grad=True)
    before = living_tensors()
    loss = train_step(x, w, [0, 1, 2, 0])
    loss.backward()
    assert living_tensors() - before == {id(loss), id(w.grad)}


@pytest.mark.parametrize("walked", [False, True])
def test_a_graph_has_no_reference_cycles(no_gc, walked):
    x, w = tg.randn(4, 2, 8, 8), tg.randn(3, 2, 3, 3, requires_grad=True)
    before = living_tensors()
    loss = train_step(x, w, [0, 1, 2, 0])
    if walked:
        loss.backward(retain_graph=True)
        w.grad = None
    del loss
    assert living_tensors() == before


def test_a_walk_frees_as_it_goes(toy, no_gc):
    refs, alive = [], []

    @toy
    def probe(x):
        return x.data * 1.0, (lambda g: alive.append(refs[0]() is not None) or g,)

    x = leaf(3.0)
    h = probe(x) * 2.0
    refs.append(weakref.ref(h))
    y = h * h  # captures h
    del h
    assert refs[0]() is not None
    y.backward()
    assert alive == [False]


def test_a_dead_leaf_s_gradient_goes_nowhere():
    x, dead = leaf(2.0), leaf(3.0)
    y = x + dead
    del dead
    y.backward()
    assert x.grad.item() == 1


# ---- freed graphs ----


def test_a_second_walk_is_refused_before_any_gradient_changes():
    x = leaf(3.0)
    y = x * x
    y.backward()
    with pytest.raises(tg.GraphFreed, match=r"walked already.*retain_graph=True"):
        y.backward()
    assert x.grad.item() == 6


def test_a_partly_freed_graph_is_refused_before_anything_changes():
    x, z = leaf(3.0), leaf(5.0)
    shared = x * x
    y = z * z + shared
    (shared * 2.0).backward()
    for _ in range(2):  # the second time shows that the first has freed nothing
        with pytest.raises(tg.GraphFreed):
            y.backward()
    assert z.grad is None
    assert x.grad.item() == 12
    assert not y.node.freed


def test_a_freed_node_holds_nothing():
    x = leaf(3.0)
    y = x.exp()
    node = y.node
    y.backward()
    assert node.freed
    assert (node.parents, node.vjps, node.saved, node.output) == ((), (), (), None)


def test_retain_graph_keeps_it_for_one_more_walk():
    x = leaf(3.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 12
    with pytest.raises(tg.GraphFreed):
        y.backward()


# ---- gradients of gradients ----


def test_third_derivative():
    x = leaf(2.0)
    y, found = x**5, []
    for _ in range(3):
        (y,) = tg.grad(y, x, create_graph=True)
        found.append(y.item())
    assert found == [80, 160, 240]


def test_backward_with_create_graph_leaves_a_recorded_gradient():
    x = leaf(2.0)
    y = x * x * x
    y.backward(create_graph=True)
    first, x.grad = x.grad, None
    first.backward()
    assert (first.item(), x.grad.item()) == (12, 12)


def test_recorded_gradients_add_up_as_recorded():
    x = leaf(2.0)
    for _ in range(2):
        (x * x * x).backward(create_graph=True)
    total, x.grad = x.grad, None
    assert (total.item(), tg.grad(total, x)[0].item()) == (24, 24)


@pytest.mark.parametrize("create_graph", [True, False])
def test_a_leaf_s_gradient_is_shared_with_nobody(create_graph):
    a, b, seed = leaf(2.0), leaf(3.0), tg.tensor(5.0, dtype="float64")
    (a + b).backward(seed, create_graph=create_graph)
    a.grad.data *= 2
    assert (a.grad.item(), b.grad.item(), seed.item()) == (10, 5, 5)


def test_gradients_are_not_recorded_unasked():
    x = leaf(2.0)
    (x * x).backward()
    assert not x.grad.requires_grad
    assert not tg.grad(x * x, x)[0].requires_grad


def test_create_graph_keeps_the_graph():
    x = leaf(2.0)
    y = x * x
    tg.grad(y, x, create_graph=True)
    y.backward()
    assert x.grad.item() == 4


def test_create_graph_records_inside_no_grad():
    x = leaf(2.0)
    y = x * x
    with tg.no_grad():
        assert tg.grad(y, x, create_graph=True)[0].requires_grad
        y.backward(create_graph=True)
        y.backward(create_graph=True)  # the sum of the two is recorded too
    assert x.grad.node.op == "add"
    x.grad = None  # a recorded gradient and its leaf are a cycle


FORMULAS = {
    "batch_norm": lambda x, w, b: F.batch_norm(x, b.detach(), w.detach(), w, b, True),
    "batch_norm in evaluation": lambda x, w, b: F.batch_norm(
        x, b.detach(), w.detach(), w, b, False
    ),
    "batch_norm with all": lambda x, w, b: F.batch_norm(
        x, b.detach(), w.detach(), w, b, True, residual=x, relu=True
    ),
    **{
        f"batch_norm beside a shortcut, {training=}, {relu=}": lambda x, w, b, t=training, r=relu: (
            F.batch_norm(x, b.detach(), w.detach(), w, b - 1, t, relu=r) + x
        )
        for training in (True, False)
        for relu in (True, False)
    },
    **{
        f"local_response_norm of {n}": lambda x, w, b, n=n: (
            F.local_response_norm(x, n, 0.7, 0.6, 1.5) * w.sum() + b.sum()
        )
        for n in range(1, 6)
    },
    "cross_entropy": lambda x, w, b: F.cross_entropy(x.mean((2, 3)) * w + b, [4, 0], 0.2),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_kernel_and_the_formula_that_can_be_differentiated_agree(name):
    rng = np.random.default_rng(0)
    inputs = [leaf(rng.uniform(0.5, 2, shape)) for shape in ((2, 5, 3, 4), (5,), (5,))]
    y = FORMULAS[name](*inputs)
    seed = rng.standard_normal(y.shape)
    kernel = tg.grad(y, inputs, seed, retain_graph=True)
    formula = tg.grad(y, inputs, seed, create_graph=True)
    for a, b in zip(kernel, formula, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-12)


# ---- tg.grad ----


def test_grad_of_intermediate_and_leaf_leaves_grad_alone():
    x = leaf(3.0)
    h = x * x
    y = h * h
    of_h, of_x, of_y, again = tg.grad(y, [h, x, y, h])
    assert [g.item() for g in (of_h, of_x, of_y, again)] == [18, 108, 1, 18]
    assert x.grad is h.grad is y.grad is None


def test_the_record_before_a_target_survives():
    x = leaf(3.0)
    h = x * x
    (g,) = tg.grad(h * h, h)
    h.backward(g)
    assert x.grad.item() == 108


def test_an_unused_input_is_an_error_or_none():
    x, other = leaf(3.0), leaf([1.0, 2.0])
    with pytest.raises(ValueError, match=r"^grad: .* on input 1 of shape \(2,\); pass allow_"):
        tg.grad(x * x, [x, other])
    got = tg.grad(x * x, [x, other], allow_unused=True)
    assert (got[0].item(), got[1]) == (6, None)


def test_grad_outputs_weigh_the_outputs():
    weights = np.array([1.0, 10.0])
    for given in weights, tg.tensor(weights), [weights], (tg.tensor(weights),):
        x = leaf([1.0, 2.0])
        assert values(tg.grad(x * x, x, given)[0]) == [2, 40]


def test_several_outputs_add_up():
    x = leaf([1.0, 2.0])
    y, z = (x * x).sum(), x * 3.0
    (g,) = tg.grad([y, z, y], x, [None, np.array([1.0, 0.0]), 10.0])
    assert values(g) == [2 + 3 + 20, 4 + 40]


def test_one_weight_may_serve_all_outputs():
    x = leaf(2.0)
    assert tg.grad([x * x, x * 3.0], x, tg.tensor(10.0, dtype="float64"))[0].item() == 70


def test_what_leads_to_no_target_is_neither_walked_nor_freed(toy):
    @toy
    def explosive(x):
        return x.data, (lambda g: 1 / 0,)

    x, other = leaf(3.0), leaf(4.0)
    side = explosive(other)
    assert tg.grad(x * x + side, x)[0].item() == 6
    assert not side.node.freed


def test_grad_frees_what_it_walked():
    x = leaf(3.0)
    y = x * x
    tg.grad(y, x, retain_graph=True)
    tg.grad(y, x)
    with pytest.raises(tg.GraphFreed):
        tg.grad(y, x)


# ---- who owns a gradient ----


def laid_out(layout):
    a = np.arange(1.0, 121).reshape(2, 3, 4, 5)
    return {
        "C": a,
        "Fortran": np.asfortranarray(a),
        "channels-last": a.transpose(0, 3, 1, 2),
        "every other": a[:, :, ::2],
        "backwards": a[::-1],
        "broadcast": np.broadcast_to(a[:1], a.shape),
    }[layout]


LOSSES = {
    "sum": lambda x: x.sum(),
    "reshape": lambda x: x.reshape(-1).sum(),
    "pixels first": lambda x: (x * tg.Tensor(np.ones(x.shape).transpose(0, 2, 3, 1).copy()
                                             .transpose(0, 3, 1, 2))).sum(),
    "itself": lambda x: x,
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "layout", ["C", "Fortran", "channels-last", "every other", "backwards", "broadcast"]
)
def test_a_leaf_owns_its_gradient(layout, loss):
    x = tg.Tensor(laid_out(layout), requires_grad=True)
    for passes in 1, 2:
        y = LOSSES[loss](x)
        seed = tg.ones(*y.shape, dtype="float64")
        y.backward(seed)
        g = x.grad.data
        assert g.flags.writeable
        assert g.strides == np.empty_like(x.data).strides  # dense, laid out like the leaf
        assert not np.shares_memory(g, x.data) | np.shares_memory(g, seed.data)
        assert (g == passes).all()


def test_two_leaves_share_no_gradient():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (x + y).sum().backward()
    assert not np.shares_memory(x.grad.data, y.grad.data)
    x.grad.data[...] = 7
    assert values(y.grad) == [1, 1]


def test_an_old_gradient_in_the_user_s_hand_stays():
    x = leaf([1.0, 2.0])
    x.sum().backward()
    first = x.grad
    x.sum().backward()
    assert (values(first), values(x.grad)) == ([1, 1], [2, 2])


def test_the_walk_changes_no_array_that_it_did_not_make(toy):
    seen = []

    @toy
    def watch(x, y):  # hands its g unchanged to both parents
        def keep(g):
            seen.append((g, g.data.copy()))
            return g

        return x.data + y.data, (keep, keep)

    x, z = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    a = watch(x, z)
    b = watch(a, watch(a, x))
    seed = tg.tensor([1.0, 10.0], dtype="float64")
    watch(watch(b, a), watch(a, z)).backward(seed)
    assert all((g.data == before).all() for g, before in seen)
    assert values(seed) == [1, 10]
    assert (values(x.grad), values(z.grad)) == ([5, 50], [5, 50])


# What gives g to the parent of `ask` below, and whether g is nobody else's then.
SPARE = {
    "an op's result": (lambda g: g * 2.0, True),
    "what was passed on": (lambda g: g, False),
    "a view": (lambda g: (g * 2.0).reshape(1, 2), False),
    "the seed": (None, False),
}


@pytest.mark.parametrize("source", SPARE)
def test_a_gradient_is_spare_if_the_walk_made_it(toy, source):
    vjp, expected = SPARE[source]
    asked = []

    @toy
    def ask(x):
        return x.data + 0, (lambda g: asked.append(g.spare) or g,)

    @toy
    def give(x):
        return x.data + 0, (vjp,)

    x = leaf([[1.0, 2.0]])
    y = ask(x * 1.0)
    y = give(y) if vjp else y
    for _ in range(2):
        y.backward(tg.ones(1, 2, dtype="float64"), retain_graph=True)
    assert asked == [expected] * 2
    asked.clear()
    y.backward(tg.ones(1, 2, dtype="float64"), create_graph=True)
    assert asked == [False]


# Two shares of a node that lie in the same memory, made of g and of an op's result.
SHARES = {
    "the same": lambda g, h: (h, h),
    "itself and a view": lambda g, h: (h.reshape(2), h),
    "g and a view of it": lambda g, h: (g, g.reshape(2)),
}


@pytest.mark.parametrize("shares", SHARES)
def test_what_two_inputs_share_is_not_spare(toy, shares):
    asked = []

    @toy
    def ask(x):
        return x.data + 0, (lambda g: asked.append(g.spare) or g,)

    @toy
    def pair(x, y):
        return x.data + y.data, lambda g, needs: SHARES[shares](g, g * 3.0)

    x = leaf([1.0, 2.0])
    (pair(ask(x * 1.0), ask(x * 2.0)) * 2.0).sum().backward()
    assert asked == [False, False]


def test_what_several_vjps_are_given_is_not_spare(toy):
    asked = []

    def ask(g):
        asked.append(g.spare)
        return g * 1.0

    @toy
    def pair(x, y):
        return x.data + y.data, (ask, ask)

    x = leaf([1.0, 2.0])
    (pair(x, x * 1.0) * 3.0).sum().backward()
    (pair(x, x.detach()) * 3.0).sum().backward()
    assert asked == [False, False, True]


def test_a_walk_inside_a_vjp_leaves_the_caller_s_gradient_alone(toy):
    @toy
    def twice(x):
        inner = tg.Tensor(x.data, requires_grad=True)
        with tg.autograd.setting(recording, True):
            a = inner * 1.0
            b = a * 2.0

        def vjp(g):
            (d,) = tg.grad([b, a], [inner], [g, g], retain_graph=True)
            return d + g

        return a.data + b.data, (vjp,)

    x = leaf([1.0, 2.0])
    (twice(x) * 3.0).sum().backward()
    assert values(x.grad) == [12, 12]


def test_an_op_that_gives_its_input_back_has_no_spare_gradient(toy):
    @toy
    def scale(x, *, factor):  # without view=True
        y = x.data if factor == 1 else x.data * factor
        return y, (lambda g: OPS["scale"](g, factor=factor),)

    x = leaf([1.0, 2.0])
    seed, ones = tg.tensor([1.0, 10.0], dtype="float64"), tg.ones(2, dtype="float64")
    y = x * 1.0
    (dx,) = tg.grad([scale(x, factor=1), y], [x], [seed, ones])
    assert (values(dx), values(seed)) == ([2, 11], [1, 10])


def test_a_gradient_that_was_asked_for_is_not_spare(toy):
    @toy
    def greedy(x):
        def vjp(g):
            if g.spare:
                g.data[...] = 0
            return g * 1.0

        return x.data + 0, (vjp,)

    x = leaf([1.0, 2.0])
    y = greedy(x * 1.0)
    z = (y * 3.0).sum()
    of_y, of_x = tg.grad(z, [y, x])
    assert (values(of_y), values(of_x)) == ([3, 3], [3, 3])


@pytest.mark.parametrize(("create_graph", "in_place"), [(False, 4), (True, 0)])
def test_later_shares_are_added_in_place_unless_recorded(monkeypatch, create_graph, in_place):
    calls, add = [], tg.Tensor.add_in_place
    monkeypatch.setattr(tg.Tensor, "add_in_place", lambda *a: calls.append(1) or add(*a))
    x = leaf([2.0])
    y = x * 1.0 + x * 2.0 + x * 3.0 + x * 4.0 + x * 5.0
    assert values(tg.grad(y, x, np.ones(1), create_graph=create_graph)[0]) == [15]
    assert len(calls) == in_place


# ---- changes between the passes ----


def assign(t):
    t.data = t.data + 1


def step(t):  # what an optimiser does
    t.data[...] += 1
    t.version[0] += 1


CHANGES = {
    "assignment": assign,
    "optimiser": step,
    "assignment to a view": lambda t: assign(t.reshape(-1)),
    "step of a detached twin": lambda t: step(t.detach()),
}
USES = {
    "directly": lambda w: w * w,
    "reshaped": lambda w: w.reshape(3, 2) * w.reshape(3, 2),
    "transposed": lambda w: tg.ones(4, 3, dtype="float64", requires_grad=True) @ w.T,
    "indexed": lambda w: w[0] * w[1],
    "detached": lambda w: w.detach() * leaf(ROWS),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_input_is_noticed_before_any_gradient_changes(change, use):
    w, z = leaf(ROWS), leaf(1.0)
    y = USES[use](w).sum() + z
    CHANGES[change](w)
    with pytest.raises(
        tg.SavedTensorChanged,
        match=r"^(mul|matmul): a tensor of shape \(.*\) that its gradient needs was",
    ):
        y.backward()
    assert w.grad is z.grad is None


def test_a_joint_vjp_s_inputs_are_watched_too():
    weight = leaf([1.0, 1.0])
    x, zero, one = leaf(np.ones((2, 2, 1, 1))), leaf([0.0, 0.0]), leaf([1.0, 1.0])
    y = F.batch_norm(x, zero.detach(), one.detach(), weight, zero, False).sum()
    assign(weight)
    with pytest.raises(tg.SavedTensorChanged, match=r"^batch_norm: a tensor"):
        y.backward()


def test_a_change_of_what_no_gradient_needs_is_fine():
    x = leaf(ROWS)
    y = (x + x).sum() + (x.exp() * 2.0).sum()  # exp needs its output alone
    assign(x)
    y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 + 2 * np.exp(ROWS))


def test_a_copy_is_not_the_original():
    for copy in tg.tensor, lambda t: t + 0.0, lambda t: t.to("numba"):
        w = leaf([1.0, 2.0])
        y, other = (w * w).sum(), copy(w)
        step(other)
        y.backward()
        assert values(w.grad) == [2, 4]


def test_a_change_before_the_forward_pass_is_fine():
    w = leaf([1.0, 2.0])
    assign(w)
    (w * w).sum().backward()
    assert values(w.grad) == [4, 6]


def test_writes_through_the_raw_array_can_not_be_seen():
    w = leaf([1.0, 2.0])
    y = (w * w).sum()
    w.data[...] = 10  # documented: the gradient is of the new values
    y.backward()
    assert values(w.grad) == [20, 20]


# ---- the recording switch ----


def test_no_grad_records_nothing_and_is_restored():
    x = leaf(1.0)
    with tg.no_grad():
        with tg.no_grad():
            pass
        assert not (x * x).requires_grad
    assert (x * x).requires_grad


def test_no_grad_decorates():
    @tg.no_grad()
    def square(x):
        return x * x

    x = leaf(1.0)
    assert [square(x).requires_grad for _ in range(2)] == [False, False]
    assert (x * x).requires_grad


PIXEL = tg.Tensor(np.ones((1, 1, 1, 1)), backend="numpy")
SWITCHES = {  # how to enter it, and how to tell that it is on
    "no_grad": (tg.no_grad, lambda: not recording.get()),
    "unfused": (tg.unfused, lambda: names_of(lambda: normalise(PIXEL, relu=True))[0][-1] == "relu"),
    "relu_rule": (lambda: tg.relu_rule("deconv"), lambda: rule_in_force.get() == "deconv"),
    "forward_hook": (lambda: tg.forward_hook(lambda *_: None), lambda: len(op_hooks.get()) == 1),
    "use_backend": (lambda: tg.use_backend("numba"), lambda: tg.ones(1).backend.name == "numba"),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_is_restored_after_an_error(switch):
    block, in_force = SWITCHES[switch]
    assert not in_force()
    with pytest.raises(ZeroDivisionError), block():  # noqa: PT012
        assert in_force()
        raise ZeroDivisionError
    assert not in_force()


def in_thread(fn):
    result = []
    thread = threading.Thread(target=lambda: result.append(fn()))
    thread.start()
    thread.join()
    return result[0]


def test_each_thread_has_its_own_switch():
    x = leaf(1.0)
    with tg.no_grad():
        here = contextvars.copy_context()
        assert in_thread(lambda: (x * x).requires_grad)
        assert not in_thread(lambda: here.run(lambda: (x * x).requires_grad))


# ---- hooks, fusion, relu rules ----


def test_a_forward_hook_sees_name_inputs_and_output_and_no_backward_op():
    seen = []
    x = leaf([1.0, 2.0])
    with tg.forward_hook(lambda *call: seen.append(call)):
        y = (x * 3.0).tanh()
        y.sum().backward()
    assert [name for name, _, _ in seen] == ["mul", "tanh", "sum"]
    assert seen[0][1][0] is x
    assert seen[0][1][1].item() == 3
    assert seen[1][1] == [seen[0][2]]
    assert seen[1][2] is y


def test_hooks_nest_and_end():
    outer, inner = [], []
    x = leaf(1.0)
    with tg.forward_hook(lambda name, *_: outer.append(name)):
        with tg.forward_hook(lambda name, *_: inner.append(name)):
            x.exp()
        with tg.no_grad():
            x.log()
    x.tanh()
    assert (outer, inner) == (["exp", "log"], ["exp"])


def pixelwise(x, **settings):
    """Convolve with the identity, and a bias of 0."""
    c = x.shape[1]
    w, b = np.eye(c).reshape(c, c, 1, 1), np.zeros(c)
    return F.conv2d(x, tg.Tensor(w), tg.Tensor(b), **settings)


FUSED = {"batch_norm": normalise, "conv2d": pixelwise}


@pytest.mark.parametrize("op", FUSED)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_unfused_shows_the_parts(op, residual, relu):
    x = tg.randn(2, 3, 4, 5, rng=np.random.default_rng(0), dtype="float64", requires_grad=True)
    settings = dict(residual=x if residual else None, relu=relu)
    names, y = names_of(lambda: FUSED[op](x, **settings))
    with tg.unfused():
        parts, z = names_of(lambda: FUSED[op](x, **settings))
    assert names == [op]
    assert parts == [op, *["add"] * residual, *["relu"] * relu]
    np.testing.assert_array_equal(y.numpy(), z.numpy())
    a, b = (tg.grad(t.sum(), x)[0].numpy() for t in (y, z))
    np.testing.assert_allclose(a, b, rtol=1e-14)


SIGNS = [-1.0, 2.0, 3.0, -4.0]
RULES = {
    "gradient": [0, -2, 3, 0],  # where the input is positive
    "deconv": [1, 0, 3, 0],  # where the gradient is positive
    "guided": [0, 0, 3, 0],  # where both are
}
RELUS = {
    "relu": lambda x: x.relu(),
    "conv2d": lambda x: pixelwise(x.reshape(1, 4, 1, 1), relu=True).reshape(4),
    "batch_norm": lambda x: normalise(x.reshape(1, 4, 1, 1), relu=True).reshape(4),
}


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("rule", RULES)
def test_relu_rules(rule, relu):
    x = leaf(SIGNS)
    with tg.relu_rule(rule):
        y = RELUS[relu](x)
    y.backward(np.array([1.0, -2.0, 3.0, -4.0]))  # the rule is that of the forward pass
    assert values(x.grad) == RULES[rule]


@pytest.mark.parametrize("op", FUSED)
def test_a_relu_stays_fused_under_the_ordinary_rule(op):
    x = leaf(np.ones((1, 1, 2, 2)))
    assert names_of(lambda: FUSED[op](x, relu=True))[0] == [op]
    with tg.relu_rule("guided"):
        assert names_of(lambda: FUSED[op](x, relu=True))[0] == [op, "relu"]
        assert names_of(lambda: FUSED[op](x))[0] == [op]


def test_a_convolution_without_a_bias_has_residual_and_relu_as_ops_of_their_own():
    x, w = leaf(np.ones((1, 1, 2, 2))), tg.Tensor(np.ones((1, 1, 1, 1)))
    names, y = names_of(lambda: F.conv2d(x, w, residual=-3 * x, relu=True))
    assert names == ["mul", "conv2d", "add", "relu"]
    assert values(y) == np.zeros((1, 1, 2, 2)).tolist()


def test_an_unknown_relu_rule_is_refused():
    with pytest.raises(ValueError, match=r"^relu_rule: got 'leaky'; expected one of gradient, "):
        tg.relu_rule("leaky")


OUTPUT_USERS = {
    "exp": lambda x: x.exp(),
    "relu": lambda x: x.relu(),
    "softmax": lambda x: F.softmax(x, 1),
    "fused relu": lambda x: F.batch_norm(
        x, tg.zeros(3), tg.ones(3), tg.ones(3), tg.zeros(3), True, relu=True
    ),
}


@pytest.mark.parametrize("name", OUTPUT_USERS)
def test_a_changed_output_is_noticed_where_the_gradient_uses_it(name):
    x = tg.ones(2, 3, 2, 2, requires_grad=True)
    y = OUTPUT_USERS[name](x)
    y.data += 1.0
    with pytest.raises(tg.SavedTensorChanged, match=r"a tensor of shape \(2, 3, 2, 2\) that its"):
        y.sum().backward()
    assert x.grad is None


def test_a_vjp_s_own_helpers_are_watched_too():
    """What a function captured that a vjp captured is needed as well."""
    w, x = tg.ones(3, requires_grad=True), tg.ones(3, requires_grad=True)
    y = F.batch_norm(
        x.reshape(1, 3, 1, 1) * tg.ones(2, 1, 1, 1), tg.zeros(3), tg.ones(3), w, tg.zeros(3), False,
        relu=True,
    )  # fmt: skip
    w.data = w.data * 2
    with pytest.raises(tg.SavedTensorChanged, match=r"^batch_norm: a tensor"):
        y.sum().backward()


def test_what_the_walk_does_not_need_is_not_checked():
    x, w = tg.ones(2, requires_grad=True), tg.ones(2, requires_grad=True)
    h = x * w
    w.data = w.data + 1
    assert tg.grad((h * h).sum(), h)[0].numpy().tolist() == [2, 2]
    h = x * x
    h.sum().backward()
    assert tg.grad((h * h).sum(), h)[0].numpy().tolist() == [2, 2]


def test_settings_that_are_numpy_scalars_leave_float32_alone():
    x = tg.ones(2, requires_grad=True)
    for y in x ** np.float64(0.5), x.clip(np.float64(0), np.float64(2)), x ** np.int64(2):
        y.sum().backward()
        assert y.dtype == x.grad.dtype == np.float32


def test_a_single_vjp_without_its_comma_is_named():
    @tg.op
    def forgetful(x):
        return x.data, (lambda g: g)

    try:
        with pytest.raises(ValueError, match=r"forgetful: .* needs its comma: `\(vjp,\)`"):
            forgetful(tg.ones(2, requires_grad=True))
    finally:
        del tg.autograd.OPS["forgetful"]
