"""Checkpointed activations: everything as without them, but for the memory."""

from __future__ import annotations

import copy
import gc
import tracemalloc
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_cnn as tg
from tinygrad_cnn import functional as F
from tinygrad_cnn import models, nn
from tinygrad_cnn.backends.geometry import output_size
from tinygrad_cnn.backends.numpy_backend import NumpyBackend
from tinygrad_cnn.models.preact import TABLE_1, build_preact
from tinygrad_cnn.random import generator, use_generator

pytestmark = pytest.mark.usefixtures("backend")

MODELS = {
    "resnet20": lambda **kw: models.build("resnet20", **kw),
    "projections": lambda **kw: models.build("resnet20", shortcut="C", **kw),
    "pre-activation": lambda **kw: build_preact(depth=29, bottleneck=True, **kw),
    "dropout": lambda **kw: build_preact(depth=20, **TABLE_1["dropout 0.5"], **kw),
    "gates": lambda **kw: build_preact(depth=14, **TABLE_1["exclusive gating, bias 0"], **kw),
    "resnet9": lambda **kw: models.build("resnet9", **kw),
    "convnet": lambda **kw: models.build("convnet", **kw),
}


def leaf(*shape, seed=0, dtype="float32"):
    values = np.random.default_rng(seed).standard_normal(shape)
    return tg.Tensor(values, requires_grad=True, dtype=dtype)


def outcome(net, *, size=16):
    """Train for a step; give all that it leaves."""
    x = tg.Tensor(np.random.default_rng(1).standard_normal((4, 3, size, size), np.float32))
    rng = np.random.default_rng(2)
    with use_generator(rng):
        loss = net.loss(net(x), np.arange(4))
        loss.backward()
    gradients = {f"{n}.grad": p.grad.numpy() for n, p in net.named_parameters()}
    return {"loss": loss.numpy(), "drawn": rng.random(3), **gradients, **net.state_dict()}


def check_same(a, b):
    """Expect the same arrays, to the last bit."""
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)


class Counted(nn.Module):
    """A function, and how often it ran."""

    def __init__(self, fn):
        self.fn, self.count = fn, 0

    def forward(self, *inputs):
        self.count += 1
        return self.fn(*inputs)


# ---- the same as without ----


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_step_is_the_same_to_the_last_bit(make):
    """Loss, gradients, running statistics, and where the generator stands."""
    size = 32 if make in (MODELS["resnet9"], MODELS["convnet"]) else 16
    nets = [make(rng=np.random.default_rng(0)) for _ in range(2)]
    nn.checkpoint_activations(nets[1])
    check_same(*(outcome(net, size=size) for net in nets))


@given(st.integers(1, 9), st.integers(0, 10), st.booleans())
def test_any_chain_in_any_segments(n, segment, first_is_frozen):
    def gradients(segment):
        rng = np.random.default_rng(0)
        blocks = [b for _ in range(n) for b in (nn.Linear(3, 3, rng=rng), nn.Dropout(), nn.Tanh())]
        net = nn.checkpoint_activations(nn.Sequential(*blocks), segment=segment)
        net[0].weight.requires_grad = not first_is_frozen
        tg.manual_seed(5)
        net(leaf(4, 3)).sum().backward()
        found = [p.grad for p in net.parameters()]
        assert (found[0] is None) == first_is_frozen
        return [g.numpy().tobytes() for g in found if g is not None]

    assert gradients(segment) == gradients(0)


def test_checkpoints_inside_checkpoints():
    net = MODELS["dropout"](rng=np.random.default_rng(0))
    plain = outcome(net)
    net = MODELS["dropout"](rng=np.random.default_rng(0))
    nn.checkpoint_activations(net, segment=2)
    stages = [net.layer1, net.layer2, net.layer3]
    nested = nn.Sequential(*stages)
    inner = Counted(lambda x: nested(x))
    net.forward = lambda x: net.fc(net.pool(net.bn(nn.checkpoint(inner, net.conv1(x)), relu=True)))
    try:
        check_same(plain, outcome(net))
    finally:
        del net.forward  # a cycle
    assert inner.count == 2


def test_each_level_runs_once_more():
    inner, x = Counted(lambda x: x.tanh()), leaf(3)
    outer = Counted(lambda x: nn.checkpoint(inner, x) * 2.0)
    nn.checkpoint(outer, x).sum().backward()
    assert (outer.count, inner.count) == (2, 3)


# ---- what gradients reach ----


def test_a_closure_s_tensors_get_gradients():
    x, w, b = leaf(2, 3), leaf(3, 4, seed=1), leaf(4, seed=2)
    hidden = w * 2.0  # recorded, and no input
    plain = ((x @ hidden + b).tanh() * b).sum()
    expected = tg.grad(plain, [x, w, b], retain_graph=True)
    (nn.checkpoint(lambda x: (x @ hidden + b).tanh(), x) * b).sum().backward()
    for t, g in zip((x, w, b), expected, strict=True):
        np.testing.assert_allclose(t.grad.numpy(), g.numpy(), rtol=1e-6)


def test_keywords_may_be_tensors():
    x, residual = leaf(2, 3, 4, 4), leaf(2, 3, 4, 4, seed=1)
    results = []
    for call in (lambda f, *a, **kw: f(*a, **kw), nn.checkpoint):
        bn = nn.BatchNorm2d(3)
        y = call(bn, x, residual=residual, relu=True)
        results.append([g.numpy() for g in tg.grad((y * y).sum(), [x, residual, bn.weight])])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_grad_of_some_inputs_leaves_the_others_alone():
    net, x = nn.Linear(3, 3), leaf(2, 3)
    h = x * 2.0
    (g,) = tg.grad(nn.checkpoint(net, h).sum(), h)
    np.testing.assert_array_equal(g.numpy(), np.ones((2, 3), "f") @ net.weight.numpy())
    assert (x.grad, net.weight.grad) == (None, None)


def test_what_the_result_does_not_depend_on_gets_zeros():
    def fn(x, unused):
        unused.sum()
        return x * 3.0

    x, unused = leaf(2), leaf(4)
    nn.checkpoint(fn, x, unused).sum().backward()
    assert x.grad.numpy().tolist() == [3, 3]
    assert unused.grad.numpy().tolist() == [0] * 4
    constant = nn.checkpoint(lambda x: (x * 2.0).detach(), x)
    constant.sum().backward()
    assert x.grad.numpy().tolist() == [3, 3]


def test_what_needs_no_gradient_is_not_recorded():
    net, x = nn.Linear(3, 3), tg.zeros(1, 3)
    assert nn.checkpoint(lambda x: x * 2.0, x).node is None
    x = leaf(3)
    assert nn.checkpoint(lambda x: x, x) is x
    assert nn.checkpoint(net, tg.zeros(1, 3)).node.op == "checkpoint"


def test_retained_it_can_be_walked_twice():
    x, fn = leaf(3), Counted(lambda x: x.tanh())
    y = nn.checkpoint(fn, x).sum()
    y.backward(retain_graph=True)
    once = x.grad.numpy().copy()
    y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * once)
    assert fn.count == 3
    with pytest.raises(tg.GraphFreed):
        y.backward()


# ---- higher orders ----


def smooth(x, w):
    return nn.checkpoint(lambda x: (x @ w).tanh() * x.sum(), x)


def test_gradcheck_to_second_order():
    inputs = [leaf(2, 3, dtype="float64"), leaf(3, 3, seed=1, dtype="float64")]
    assert tg.gradcheck(smooth, inputs, order=2)
    assert tg.gradcheck(lambda x, w: nn.checkpoint(smooth, smooth(x, w), w), inputs, order=2)


def test_third_derivative():
    x = leaf(3, dtype="float64")
    y = nn.checkpoint(lambda x: x**4, x)
    for _ in range(3):
        (y,) = tg.grad(y.sum(), x, create_graph=True)
    np.testing.assert_allclose(y.numpy(), 24 * x.numpy())


def test_a_record_before_the_target_may_be_gone():
    x = leaf(3, dtype="float64")
    h = x * 2.0
    tg.grad(h.sum(), x)  # frees it
    (g,) = tg.grad(nn.checkpoint(lambda h: h**3, h).sum(), h, create_graph=True)
    (gg,) = tg.grad(g.sum(), h)
    np.testing.assert_allclose(gg.numpy(), 6 * h.numpy())


# ---- the second run has what the first had ----


@pytest.mark.parametrize("own", [False, True], ids=["default generator", "own generator"])
def test_dropout_repeats_itself(own):
    rng = np.random.default_rng(3)
    x = leaf(50)
    with use_generator(np.random.default_rng(3)):
        y = nn.checkpoint(lambda x: F.dropout(x, 0.5, rng=rng if own else None) * 1.0, x)
        then = (rng if own else generator()).bit_generator.state
    tg.manual_seed(99)
    before = generator().bit_generator.state
    rng.random(7)
    now = rng.bit_generator.state
    y.sum().backward()  # elsewhere, later
    np.testing.assert_array_equal(x.grad.numpy() != 0, y.numpy() != 0)
    assert 0 < (y.numpy() != 0).sum() < 50
    assert then != np.random.default_rng(3).bit_generator.state
    assert (rng.bit_generator.state, generator().bit_generator.state) == (now, before)


def test_a_module_may_draw_by_itself():
    class Noise(nn.Module):
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def forward(self, x):
            return x * tg.Tensor(self.rng.standard_normal(x.shape), dtype="float32")

    net, x = Noise(), leaf(5)
    y = nn.checkpoint(net, x)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy() * x.numpy(), y.numpy())
    drawn = np.random.default_rng(0)
    drawn.standard_normal(5)
    assert net.rng.random() == drawn.random()


@pytest.mark.parametrize("as_module", [True, False])
def test_running_statistics_move_once(as_module):
    bn, x = nn.BatchNorm2d(2), leaf(3, 2, 4, 4)
    mean, var = bn.running_mean, bn.running_var
    bare = lambda x: F.batch_norm(x, mean, var, bn.weight, bn.bias, True) * 1.0  # noqa: E731
    y = nn.checkpoint(bn if as_module else bare, x)
    moved = mean.numpy().copy(), var.numpy().copy()
    y.sum().backward()
    np.testing.assert_array_equal(moved, (mean.numpy(), var.numpy()))
    np.testing.assert_allclose(moved[0], 0.1 * x.numpy().mean((0, 2, 3)), rtol=1e-5)


def test_mode_and_statistics_are_those_of_the_forward_pass():
    def slope(call):
        bn, x = nn.BatchNorm2d(2).eval(), leaf(3, 2, 4, 4)
        y = call(bn, x)
        bn.train()(x * 3.0)  # other statistics, another mode
        y.sum().backward()
        assert bn.training
        return x.grad.numpy(), bn.running_var.numpy()

    for a, b in zip(slope(lambda f, x: f(x)), slope(nn.checkpoint), strict=True):
        np.testing.assert_array_equal(a, b)


def test_blocks_around_the_forward_pass_hold_in_the_second():
    x = tg.Tensor([-1.0, 2.0], requires_grad=True)
    with tg.relu_rule("guided"):
        y = nn.checkpoint(lambda x: x.relu() * -1.0, x)
    y.sum().backward()
    assert x.grad.numpy().tolist() == [0, 0]
    with tg.use_backend("numpy"):
        x = tg.ones(3, requires_grad=True)
        y = nn.checkpoint(lambda x: x * tg.full((3,), 2.0), x)
    y.sum().backward()
    assert x.grad.backend.name == "numpy"
    assert x.grad.numpy().tolist() == [2, 2, 2]


def test_frozen_parameters_are_those_of_the_forward_pass():
    net, x = nn.Linear(2, 2, bias=False), leaf(1, 2)
    net.weight.requires_grad = False
    then = net.weight.numpy().copy()
    y = nn.checkpoint(net, x).sum()
    net.weight.data = net.weight.data * 0
    y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), then.sum(0, keepdims=True))
    assert not net.weight.numpy().any()


@pytest.mark.parametrize("which", ["input", "parameter"])
def test_a_changed_tensor_is_noticed_before_any_gradient_changes(which):
    net, x = nn.Linear(2, 2), leaf(1, 2)
    y = nn.checkpoint(net, x).sum()
    changed = x if which == "input" else net.weight
    changed.data = changed.data * 2.0
    with pytest.raises(tg.SavedTensorChanged, match=r"^checkpoint: a tensor of shape \([12], 2\)"):
        y.backward()
    assert (x.grad, net.bias.grad) == (None, None)


def test_a_run_that_fails_leaves_everything_as_it_was():
    class Failing(nn.Module):
        def __init__(self):
            self.bn, self.drop, self.fails = nn.BatchNorm2d(2), nn.Dropout(), False

        def forward(self, x):
            y = self.drop(self.bn(x))
            if self.fails:
                raise RuntimeError("no second time")
            return y

    net, x = Failing(), leaf(3, 2, 4, 4)
    mine = tg.manual_seed(0)
    y = nn.checkpoint(net, x)
    net.eval().fails = True
    now = net.state_dict(), mine.bit_generator.state, x.node, net.bn.weight.node
    with pytest.raises(RuntimeError, match="no second time"):
        y.sum().backward()
    check_same(now[0], net.state_dict())
    assert mine.bit_generator.state == now[1]
    assert generator() is mine
    assert (x.node, net.bn.weight.node) == now[2:]
    assert not any(module.training for module in net.modules())
    assert (x * 1.0).requires_grad


# ---- how often what happens ----


def test_without_recording_it_is_a_plain_call():
    fn, x = Counted(lambda x: x * 2.0), leaf(3)
    kept = []
    fn.register_forward_hook(lambda module, args, y: kept.append(y))
    with tg.no_grad():
        assert nn.checkpoint(fn, x) is kept[0]
    assert (fn.count, kept[0].node) == (1, None)


def test_hooks_of_modules_fire_twice_and_hooks_of_ops_once():
    net, x, fired, ops = nn.Tanh(), leaf(3), [], []
    net.register_forward_pre_hook(lambda module, args: fired.append("before"))
    net.register_forward_hook(lambda module, args, y: fired.append("after"))
    with tg.forward_hook(lambda op, inputs, y: ops.append(op)):
        nn.checkpoint(net, x).sum().backward()
    assert fired == ["before", "after"] * 2
    assert ops == ["tanh", "sum"]


def test_a_hook_may_replace_the_output():
    net, x = nn.Tanh(), leaf(3)
    net.register_forward_hook(lambda module, args, y: y * 5.0)
    (expected,) = tg.grad((x.tanh() * 5.0).sum(), x)
    nn.checkpoint(net, x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), expected.numpy())


# ---- mistakes ----


def test_a_variable_of_a_loop_is_noticed():
    x, y = leaf(2, 2), None
    for layer in (nn.Linear(2, 2), nn.Linear(2, 2)):
        y = nn.checkpoint(lambda x: layer(x), x if y is None else y)  # noqa: B023
    message = (
        r"^checkpoint: <lambda> did not repeat what it did in the forward pass. Does it use a "
        r"variable that has another value now, such as that of a loop\? Pass what it depends on"
    )
    with pytest.raises(RuntimeError, match=message):
        y.sum().backward()
    assert x.grad is None


def test_other_ops_in_the_second_run_are_noticed():
    fn, x = Counted(lambda x: x.tanh() if fn.count == 1 else x.exp()), leaf(2)
    y = nn.checkpoint(fn, x).sum()
    with pytest.raises(RuntimeError, match=r"^checkpoint: Counted did not repeat"):
        y.backward()


@pytest.mark.parametrize("recorded", [True, False])
def test_one_tensor_is_expected(recorded):
    message = r"^checkpoint: pair gave a tuple; expected one Tensor. Checkpoint the parts that give"

    def pair(x):
        return x, x

    with tg.no_grad() if not recorded else nullcontext(), pytest.raises(TypeError, match=message):
        nn.checkpoint(pair, leaf(2))


# ---- memory ----

ARRAY = 1 << 19  # bytes of one activation


@pytest.fixture
def _in_python_s_memory():
    """Compute where tracemalloc sees the arrays."""
    with tg.use_backend("numpy"):
        yield


def peak_of_a_step(n, *, segment):
    """Measure the peak of a chain's step, in activations."""
    net = nn.Sequential(*(nn.Tanh() for _ in range(n)))
    net.segment = segment
    x = tg.zeros(ARRAY // 4, requires_grad=True)
    gc.collect()
    tracemalloc.start()
    net(x).sum().backward()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / ARRAY


@pytest.mark.usefixtures("_in_python_s_memory")
@pytest.mark.parametrize("n", [16, 64, 144])
def test_the_peak_grows_with_the_square_root_of_the_depth(n):
    """The inputs of sqrt(n) segments, one segment, and a few arrays that any backward pass has."""
    root = round(n**0.5)
    assert n <= peak_of_a_step(n, segment=0) <= n + 6
    assert 2 * root - 2 <= peak_of_a_step(n, segment=root) <= 2 * root + 6


class OnlySizes(NumpyBackend):
    """Kernels that give zeros of the right shape: memory that nobody touches, in no time."""

    name = "only sizes"

    def empty(self, shape, dtype):
        if len(shape) != 4:
            return np.zeros(shape, dtype)
        n, c, h, w = shape
        return np.zeros((n, h, w, c), dtype).transpose(0, 3, 1, 2)

    def conv2d(self, x, w, *added, stride, padding, dilation, groups, relu=False):
        at = dict(kernel=w.shape[2:], stride=stride, padding=padding, dilation=dilation)
        return self.empty((len(x), len(w), *output_size(x.shape[2:], **at)), x.dtype)

    def conv2d_input_grad(self, g, w, *, x_shape, **settings):
        return self.empty(x_shape, g.dtype)

    def conv2d_weight_grad(self, g, x, *, w_shape, **settings):
        return self.empty(w_shape, g.dtype)

    def batch_norm(self, x, weight, bias, residual=None, **settings):
        return self.empty(x.shape, x.dtype), np.zeros(weight.shape), np.zeros(weight.shape)

    def batch_norm_grad(self, g, x, weight, bias, *, residual=False, **settings):
        of_residual = self.empty(x.shape, x.dtype) if residual else None
        dx = self.empty(x.shape, x.dtype)
        return dx, np.zeros_like(weight), np.zeros_like(bias), of_residual

    def add(self, x, y, *, out=None):
        return self.empty(x.shape, x.dtype) if out is None else out


@pytest.mark.parametrize(("checkpointed", "n", "gigabytes"), [(True, 128, 1.53), (False, 8, 1.27)])
def test_resnet_1001_takes_16_times_the_images(checkpointed, n, gigabytes):
    """Counted is what the engine holds, without the kernels' scratch: benchmarks/ measures all."""
    with tg.use_backend(OnlySizes()):
        net = models.build("preact_resnet1001", rng=np.random.default_rng(0))
        if checkpointed:
            nn.checkpoint_activations(net)
        x = tg.zeros(n, 3, 32, 32)
        tracemalloc.start()
        net.loss(net(x), np.zeros(n, int)).backward()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak / 1e9 == pytest.approx(gigabytes, rel=0.1)


@pytest.mark.usefixtures("_in_python_s_memory")
def test_nothing_is_held_after_backward():
    """Also without the garbage collector: there are no cycles."""
    net = nn.checkpoint_activations(nn.Sequential(*(nn.Tanh() for _ in range(9))))
    x = tg.zeros(ARRAY // 4, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        tracemalloc.start()
        for walked in (True, False):
            y = net(x).sum()
            if walked:
                y.backward()
                x.grad = None
            del y
            assert tracemalloc.get_traced_memory()[0] < ARRAY / 2
    finally:
        tracemalloc.stop()
        gc.enable()


# ---- whole models ----


def test_a_model_s_outermost_chains_are_cut():
    net = models.build("resnet20", shortcut="C")
    names = net.state_dict().keys()
    assert nn.checkpoint_activations(net) is net
    cut = [n for n, m in net.named_modules() if isinstance(m, nn.Sequential) and m.segment]
    assert cut == ["layer1", "layer2", "layer3"]
    assert net.layer1.segment == 2  # of 3 blocks
    assert repr(net.layer1).startswith("Sequential(segment=2\n  (0): BasicBlock(")
    assert net.state_dict().keys() == names
    assert copy.deepcopy(net).layer3.segment == 2
    nn.checkpoint_activations(net, segment=0)
    assert not any(m.segment for m in net.modules() if isinstance(m, nn.Sequential))
    assert repr(net.layer1).startswith("Sequential(\n")


def test_segments_are_as_long_as_the_square_root():
    for n, segment in (0, 0), (1, 1), (2, 1), (3, 2), (9, 3), (111, 11):
        chain = nn.Sequential(*(nn.ReLU() for _ in range(n)))
        assert nn.checkpoint_activations(chain).segment == segment


def test_a_segment_below_0_is_refused():
    """A range with that step would be empty, and the modules left out."""
    with pytest.raises(ValueError, match=r"segment is -1; expected 0 or more"):
        nn.checkpoint_activations(nn.Sequential(nn.ReLU()), segment=-1)


def test_a_model_without_a_chain_is_refused():
    message = (
        r"^checkpoint_activations: MLP has no Sequential, whose modules could be run again; "
        r"call nn.checkpoint in its forward method$"
    )
    with pytest.raises(ValueError, match=message):
        nn.checkpoint_activations(models.build("mlp"))
