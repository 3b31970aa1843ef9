"""The tree of modules: what it finds, how it is named, saved, moved, hooked, shown and copied."""

from __future__ import annotations

import copy
import re
from functools import partial

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import nn, optim


@pytest.fixture(autouse=True)
def _on_numpy():
    with tg.use_backend("numpy"):
        yield


def tree(library):
    """Build the same module tree of our layers or of PyTorch's."""
    root = library.Module()
    root.stem = library.Sequential(library.Conv2d(3, 4, 3, padding=1), library.BatchNorm2d(4))
    root.name, root.sizes = "neither parameter", ["nor module"]
    root.branches = library.ModuleList([library.Conv2d(4, 4, 1), library.Conv2d(4, 4, 1)])
    root.fc = library.Linear(4, 2, bias=False)
    return root


NAMES = [
    *("stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"),
    *("branches.0.weight", "branches.0.bias", "branches.1.weight", "branches.1.bias", "fc.weight"),
]
BUFFERS = ["stem.1.running_mean", "stem.1.running_var"]


class Net(nn.Module):
    """A convolution, batch norm with ReLU, dropout and a classifier."""

    def __init__(self, rng=None):
        self.conv, self.bn = nn.Conv2d(3, 4, 3, rng=rng), nn.BatchNorm2d(4)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(4, 2, rng=rng)

    def forward(self, x):
        return self.fc(self.drop(self.bn(self.conv(x), relu=True)).mean((2, 3)))


class Tied(nn.Module):
    """A layer under two names, and another that shares its weights."""

    def __init__(self):
        self.a = nn.Linear(3, 3)
        self.b, self.c = self.a, nn.Linear(3, 3, bias=False)
        self.c.weight = self.a.weight


def images(dtype="float32"):
    return tg.randn(4, 3, 5, 6, rng=np.random.default_rng(0), dtype=dtype)


def net(seed=0):
    return Net(np.random.default_rng(seed))


def values(module):
    """Copy the state into something that == compares."""
    return {name: a.tolist() for name, a in module.state_dict().items()}


# ---- what is found ----


def test_names_in_order():
    root = tree(nn)
    assert [name for name, _ in root.named_parameters()] == NAMES
    assert [name for name, _ in root.named_buffers()] == BUFFERS
    assert [name for name, _ in root.named_children()] == ["stem", "branches", "fc"]
    assert root.parameters()[2] is root.stem[1].weight


def test_names_and_shapes_are_pytorchs():
    torch = pytest.importorskip("torch")
    ours, theirs = tree(nn), tree(torch.nn)
    shapes = {name: p.shape for name, p in ours.named_parameters()}
    assert shapes == {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    assert list(shapes) == [name for name, _ in theirs.named_parameters()]
    modules = [name for name, _ in ours.named_modules()]
    assert modules == [name for name, _ in theirs.named_modules()]
    counted = {name for name in theirs.state_dict() if "num_batches_tracked" not in name}
    assert set(ours.state_dict()) == counted


def test_shared_parameters_are_listed_once():
    tied = Tied()
    assert [name for name, _ in tied.named_parameters()] == ["a.weight", "a.bias"]
    x = tg.ones(2, 3)
    tied.c(tied.b(tied.a(x))).sum().backward()
    optim.SGD(tied.parameters(), lr=0.1).step()  # which refuses a parameter given twice


def test_lists_of_modules():
    layers = nn.ModuleList([nn.ReLU(), nn.Tanh(), nn.Flatten()])
    assert len(layers) == 3
    assert [type(layer).__name__ for layer in layers] == ["ReLU", "Tanh", "Flatten"]
    assert layers[-1] is list(layers)[2]
    chained = nn.Sequential(nn.ReLU(), nn.Flatten())(tg.tensor([[[-1.0, 2.0]]]))
    assert chained.numpy().tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: nn.Sequential([nn.ReLU()]), "Sequential: item 0 is a list; expected a Module"),
        (lambda: nn.Sequential(nn.ReLU(), tg.functional.relu), "item 1 is a function"),
        (lambda: nn.ModuleList([nn.ReLU]), "ModuleList: item 0 is a type; expected a Module"),
        (lambda: nn.Linear(2, 2).astype("int64"), "can't be int64; expected float32 or float64"),
        (lambda: nn.Linear(2, 2).astype(np.float16), "expected float32 or float64"),
        (lambda: nn.Module()(1), "Module has no forward method"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises((TypeError, NotImplementedError), match=message):
        wrong()


# ---- mode, place, gradients ----


def test_mode_reaches_every_module():
    root = tree(nn)
    assert all(module.training for module in root.modules())
    assert root.eval() is root
    assert not any(module.training for module in root.modules())
    assert nn.Linear(1, 1).training  # the mode is the instance's, not the class's
    root.stem.train()
    assert [m.training for m in (root, root.stem, root.stem[1], root.fc)] == [False, 1, 1, False]


def test_zero_grad_forgets_all_gradients():
    model = net()
    model(images()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


MOVES = {
    "to": lambda model: model.to("elsewhere"),
    "astype": lambda model: model.astype("float64"),
}


@pytest.fixture
def _elsewhere():
    """Register a second backend that can run anywhere."""
    tg.register_backend("elsewhere", type(tg.backends.get("numpy")))
    yield
    for registry in (tg.backends._factories, tg.backends._made):
        registry.pop("elsewhere", None)


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.usefixtures("_elsewhere")
def test_moving_keeps_identity_and_values_and_drops_gradients(move):
    model = net()
    model(images()).sum().backward()
    before, state = dict(model._named_tensors()), values(model)
    assert move(model) is model
    after = dict(model._named_tensors())
    assert all(after[name] is t for name, t in before.items())
    assert values(model) == state
    assert all(t.grad is None for t in after.values())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.usefixtures("_elsewhere")
def test_a_moved_model_works_there():
    model, there = net().to("elsewhere"), tg.backends.get("elsewhere")
    assert {t.backend for _, t in model._named_tensors()} == {there}
    model(tg.Tensor(images().numpy(), backend=there)).sum().backward()
    assert all(p.grad.backend is there for p in model.parameters())
    with pytest.raises(tg.BackendMismatch):
        model(images())


def test_a_double_model_works_in_double():
    model = net().astype("float64")
    assert model(images("float64")).dtype == np.float64
    assert {t.dtype.name for _, t in model._named_tensors()} == {"float64"}
    with pytest.raises(TypeError, match="float32"):
        model(images())


# ---- state ----


def test_state_is_a_copy():
    model = net()
    state = model.state_dict()
    assert all(type(a) is np.ndarray and a.flags.owndata for a in state.values())
    before = values(model)
    for a in state.values():
        a += 1
    assert values(model) == before


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loaded_values_are_copies_in_the_models_dtype(dtype):
    model, other = net(), net(1).astype(dtype)
    state = model.state_dict()
    other.load_state_dict(state)
    state["fc.weight"] += 1
    assert values(other) == values(model)
    assert {t.dtype.name for _, t in other._named_tensors()} == {dtype}


def test_pytorchs_count_of_batches_is_passed_over():
    model, state = net(), net(1).state_dict()
    model.load_state_dict({**state, "bn.num_batches_tracked": np.array(7)})
    assert values(model) == values(net(1))


def test_a_loaded_model_computes_the_same():
    model, other = net(), net(1)
    model(images())  # moves the running statistics
    other.load_state_dict(model.state_dict())
    x = images()
    np.testing.assert_array_equal(other.eval()(x).numpy(), model.eval()(x).numpy())


def changed(drop=(), **put):
    """Change a fitting state: leave names out, put others in."""
    state = {k: v for k, v in net(1).state_dict().items() if k not in drop}
    return state | {k.replace("_", ".", 1): v for k, v in put.items()}


MISFITS = {
    "missing": (changed(drop=["fc.bias"]), "fc.bias is missing. Was it saved by another model?"),
    "unknown": (changed(fc_scale=np.ones(1)), "this Net: fc.scale is unknown."),
    "shape": (changed(fc_bias=np.ones(3)), "fc.bias is (3,), expected (2,)."),
    "two": (
        changed(drop=["bn.bias"], fc_bias=np.ones(())),
        "bn.bias is missing; fc.bias is (), expected (2,).",
    ),
    "misspelt": (
        changed(drop=["fc.weight"], fc_weigth=np.ones((2, 4))),
        "fc.weight is missing; fc.weigth is unknown (did you mean fc.weight?). Was it",
    ),
    "many": ({}, "conv.bias is missing (and 3 more)."),
    "no number": (changed(fc_bias=np.array(["a", "b"])), "could not convert string to float"),
}


@pytest.mark.parametrize(("state", "message"), MISFITS.values(), ids=MISFITS)
def test_a_state_that_does_not_fit_changes_nothing(state, message):
    model = net()
    before, versions = values(model), [t.version[0] for _, t in model._named_tensors()]
    with pytest.raises(ValueError, match=re.escape(message)):
        model.load_state_dict(state)
    assert values(model) == before
    assert [t.version[0] for _, t in model._named_tensors()] == versions


def test_without_strict_names_may_differ_but_no_shape():
    model = net()
    model.load_state_dict({"fc.bias": np.array([1.0, 2.0]), "head": np.ones(7)}, strict=False)
    assert model.fc.bias.numpy().tolist() == [1, 2]
    assert model.conv.weight.numpy().tolist() == net().conv.weight.numpy().tolist()
    with pytest.raises(ValueError, match=re.escape("fc.bias is (3,), expected (2,)")):
        model.load_state_dict({"fc.bias": np.ones(3)}, strict=False)


CHANGES = {
    "load_state_dict": lambda model: model.load_state_dict(model.state_dict()),
    "optimiser's step": lambda model: optim.SGD(model.parameters(), lr=0.1).step(),
    "astype": lambda model: model.astype("float32"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_between_forward_and_backward_is_noticed(change):
    model = net()
    model(images()).sum().backward()
    loss = model(images()).sum()
    change(model)
    with pytest.raises(tg.SavedTensorChanged, match="changed after the forward"):
        loss.backward()


# ---- hooks ----


def test_hooks_run_in_order_and_replace_the_output():
    layer, seen = nn.ReLU(), []
    layer.register_forward_hook(lambda module, args, y: seen.append((module, args, y)))
    layer.register_forward_hook(lambda module, args, y: y + 1)
    layer.register_forward_hook(lambda module, args, y: y * 10)
    x = tg.tensor([-1.0, 2.0])
    assert layer(x).numpy().tolist() == [10, 30]
    ((module, args, y),) = seen
    assert (module, args) == (layer, (x,))
    assert y.numpy().tolist() == [0, 2]


def test_each_removal_removes_its_own_hook():
    layer, seen = nn.ReLU(), []
    hook = partial(lambda *_: seen.append(1))
    first, second = layer.register_forward_hook(hook), layer.register_forward_hook(hook)
    first()
    first()  # a second time changes nothing
    layer(tg.ones(1))
    assert len(seen) == 1
    second()
    layer(tg.ones(1))
    assert len(seen) == 1


def test_a_hook_may_remove_itself():
    layer, seen = nn.ReLU(), []

    def once(*_):
        seen.append("once")
        remove()

    remove = layer.register_forward_hook(once)
    layer.register_forward_hook(lambda *_: seen.append("always"))
    layer(tg.ones(1))
    layer(tg.ones(1))
    assert seen == ["once", "always", "always"]


def test_pre_hooks_run_before_forward_until_removed():
    layer, seen = nn.Linear(2, 1), []
    remove = layer.register_forward_pre_hook(lambda module, args: seen.append((module, args)))
    layer.register_forward_hook(lambda *_: seen.append("after"))
    x, y = tg.ones(1, 2), tg.ones(1, 3)
    layer(x)
    assert seen == [(layer, (x,)), "after"]
    with pytest.raises(ValueError, match="linear: x is"):
        layer(y)  # it fails in forward, so only the first hook saw it
    assert seen[2:] == [(layer, (y,))]
    remove()
    layer(x)
    assert seen[3:] == ["after"]


def test_gradients_flow_through_a_replaced_output():
    layer = nn.Linear(2, 1)
    layer.register_forward_hook(lambda module, args, y: y * 3)
    x = tg.ones(1, 2, requires_grad=True)
    layer(x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 3 * layer.weight.numpy())


# ---- looking and copying ----

GOLDEN = """\
Sequential(
  (0): Sequential(
    (0): Conv2d(4, 6, (3, 1), stride=2, padding=(1, 0), groups=2, bias=False)
    (1): BatchNorm2d(6)
  )
  (1): MaxPool2d(2, stride=None, padding=0)
  (2): LocalResponseNorm(5, alpha=0.0001, beta=0.75, k=1.0)
  (3): Dropout(p=0.5)
  (tail): ModuleList(
    (0): Flatten()
    (1): Linear(6, 2, bias=False)
  )
)"""


def test_repr_shows_the_tree():
    settings = dict(stride=2, padding=(1, 0), bias=False)
    block = nn.Sequential(nn.Conv2d(4, 6, (3, 1), groups=2, **settings), nn.BatchNorm2d(6))
    model = nn.Sequential(block, nn.MaxPool2d(2), nn.LocalResponseNorm(5), nn.Dropout())
    model.tail = nn.ModuleList([nn.Flatten(), nn.Linear(6, 2, bias=False)])
    assert repr(model) == GOLDEN


def test_a_deep_copy_is_independent():
    model = net()
    model(images()).sum().backward()
    before, twin = values(model), copy.deepcopy(model)
    assert values(twin) == before
    assert all(p.grad is None and p.requires_grad for p in twin.parameters())
    twin(images()).sum().backward()
    optim.SGD(twin.parameters(), lr=0.1).step()
    assert values(model) == before
    assert values(twin) != before
    assert type(twin.conv.weight) is nn.Parameter


def test_a_deep_copy_keeps_what_is_shared():
    twin = copy.deepcopy(Tied())
    assert twin.b is twin.a
    assert twin.c.weight is twin.a.weight
