"""Optimisers: trajectories compared with PyTorch's, saving and resuming, and what is refused."""

import json
import re
from itertools import product

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn.optim import SGD, Adam, AdamW, RMSprop
from tinygrad_cnn.optim.optimizers import Optimizer

SHAPES = [(3, 2), (5,), (), (2, 3, 3, 3)]
CASES = [
    (kind, dict(zip(names, values, strict=True)))
    for kind, names, choices in [
        (SGD, ("momentum", "nesterov", "weight_decay"), ([0, 0.9], [False, True], [0, 0.1])),
        (RMSprop, ("alpha", "momentum", "weight_decay"), ([0.99, 0.5], [0, 0.9], [0, 0.1])),
        (Adam, ("betas", "weight_decay"), ([(0.9, 0.999), (0.5, 0.6)], [0, 0.1])),
        (AdamW, ("betas", "weight_decay"), ([(0.9, 0.999), (0.5, 0.6)], [0, 0.01, 0.1])),
    ]
    for values in product(*choices)
    if values[:2] != (0, True)  # Nesterov without momentum
]
every_case = pytest.mark.parametrize(("kind", "settings"), CASES)
every_kind = pytest.mark.parametrize("kind", [SGD, RMSprop, Adam, AdamW])


@pytest.fixture
def rng():
    """Give a seeded generator."""
    return np.random.default_rng(0)


def parameters(rng, dtype=np.float64):
    """Make parameters of several shapes."""
    return [
        tg.Tensor(np.asarray(rng.standard_normal(shape), dtype), True, backend="numpy")
        for shape in SHAPES
    ]


def as_float32(p):
    """Copy a parameter in single precision."""
    return tg.Tensor(p.numpy().astype(np.float32), True, backend="numpy")


def give_gradients(params, rng):
    """Give every parameter a random gradient."""
    for p in params:
        p.grad = p.constant(np.asarray(rng.standard_normal(p.shape), p.dtype))


def train(optimizer, params, rng, *, steps=5):
    """Take steps along random gradients."""
    for _ in range(steps):
        give_gradients(params, rng)
        optimizer.step()


def peers(torch, params):
    """Copy parameters to PyTorch."""
    return [torch.tensor(p.numpy().copy(), requires_grad=True) for p in params]


def train_both(torch, ours, theirs, params, copies, rng, *, steps=7):
    """Take steps in both libraries along the same gradients; the second misses every other one."""
    for step in range(steps):
        give_gradients(params, rng)
        if step % 2:
            params[1].grad = None
        for p, copy in zip(params, copies, strict=True):
            copy.grad = None if p.grad is None else torch.tensor(p.grad.numpy().copy())
        ours.step()
        theirs.step()
        for p, copy in zip(params, copies, strict=True):
            np.testing.assert_allclose(p.numpy(), copy.detach().numpy(), rtol=1e-12, atol=1e-14)


@every_case
def test_trajectory_equals_pytorchs(kind, settings, rng):
    torch = pytest.importorskip("torch")
    params = parameters(rng)
    copies = peers(torch, params)
    theirs = getattr(torch.optim, kind.__name__)(copies, lr=0.05, **settings)
    train_both(torch, kind(params, lr=0.05, **settings), theirs, params, copies, rng)


@every_kind
def test_groups_and_schedule_equal_pytorchs(kind, rng):
    torch = pytest.importorskip("torch")
    params = parameters(rng)
    copies = peers(torch, params)
    ours, theirs = (
        make([{"params": ps[:2], "weight_decay": 0.2}, {"params": ps[2:], "lr": 0.01}], lr=0.05)
        for make, ps in [(kind, params), (getattr(torch.optim, kind.__name__), copies)]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: 0.5**step)
    for step in range(4):
        train_both(torch, ours, theirs, params, copies, rng, steps=2)
        schedule.step()
        ours.lr = 0.05 * 0.5 ** (step + 1)


@every_kind
def test_bowl_is_minimised(kind):
    w = tg.tensor(np.array([3.0, -2.0]), requires_grad=True, backend="numpy")
    optimizer = kind([w], lr=0.1, weight_decay=0)
    for step in range(200):
        optimizer.lr = tg.optim.cosine(0.1, 200)(step)
        optimizer.zero_grad()
        ((w - 1) ** 2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(w.numpy(), 1, atol=1e-2)


def test_lr_keeps_the_groups_proportions(rng):
    a, b, *_ = parameters(rng)
    optimizer = SGD([{"params": [a]}, {"params": [b], "lr": 0.01}], lr=0.1)
    for lr in (0, 0.5):  # from 0, too, the proportions come back
        optimizer.lr = lr
        assert optimizer.lr == lr
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([lr, lr / 10])


@every_kind
def test_float32_stays_float32(kind, rng):
    """Settings from NumPy change nothing, though its float64 numbers turn arrays into float64."""
    params, same = parameters(rng, np.float32), parameters(np.random.default_rng(0), np.float32)
    optimizer = kind(params, lr=np.float64(0.1), weight_decay=np.float64(0.1))
    plain = kind(same, lr=0.1, weight_decay=0.1)
    train(optimizer, params, np.random.default_rng(1))
    train(plain, same, np.random.default_rng(1))
    assert {a.dtype.name for a in optimizer.state_dict()["state"].values()} == {"float32"}
    for p, q in zip(params, same, strict=True):
        assert p.dtype == np.float32
        np.testing.assert_array_equal(p.numpy(), q.numpy())


@every_kind
def test_step_is_in_place_and_counted(kind, rng):
    params = parameters(rng)
    arrays = [p.data for p in params]
    optimizer = kind(params, lr=0.1, weight_decay=0.1)
    give_gradients(params, rng)
    before = params[0].numpy().copy()
    params[0].grad, gradient = None, params[1].grad.numpy().copy()
    optimizer.step()
    assert [p.version[0] for p in params] == [0, 1, 1, 1]
    assert all(p.data is array for p, array in zip(params, arrays, strict=True))
    np.testing.assert_array_equal(params[0].numpy(), before)
    np.testing.assert_array_equal(params[1].grad.numpy(), gradient)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_a_step_between_forward_and_backward_is_noticed():
    w = tg.ones(3, requires_grad=True, backend="numpy")
    loss = (w * w).sum()
    w.grad = w.constant(np.ones(3, np.float32))
    SGD([w], lr=0.1).step()
    with pytest.raises(tg.SavedTensorChanged, match="mul"):
        loss.backward()


def test_state_has_the_parameters_layout():
    channels_last = np.ones((2, 4, 4, 3)).transpose(0, 3, 1, 2)
    w = tg.Tensor(channels_last, True, backend="numpy")
    (array,) = SGD([w], lr=0.1)._slots[0].arrays
    assert array.strides == w.data.strides


# ---- saving and loading ----


@every_case
def test_resumed_run_is_bit_identical(kind, settings):
    params = parameters(np.random.default_rng(0))
    optimizer = kind(
        [{"params": params[:1], "lr": 0.3}, {"params": params[1:]}], lr=0.1, **settings
    )
    optimizer.lr = 0.2
    train(optimizer, params, np.random.default_rng(1))
    state = optimizer.state_dict()
    saved = repr(state)
    copies = [tg.tensor(p.numpy(), True, backend="numpy") for p in params]
    resumed = kind([{"params": copies[:1]}, {"params": copies[1:]}], lr=7)
    through_json = json.loads(json.dumps({k: v for k, v in state.items() if k != "state"}))
    resumed.load_state_dict(through_json | {"state": state["state"]})
    for each in (optimizer, resumed):
        each.lr = 0.15
    train(optimizer, params, np.random.default_rng(2))
    assert repr(state) == saved  # not a view of what goes on
    train(resumed, copies, np.random.default_rng(2))
    for p, copy in zip(params, copies, strict=True):
        np.testing.assert_array_equal(p.numpy(), copy.numpy())
    assert repr(resumed.state_dict()) == repr(optimizer.state_dict())


MISFITS = {
    "kind": (
        lambda ps: Adam(ps, lr=0.1).state_dict(),
        "SGD.load_state_dict: kind: the state has Adam; expected SGD.",
    ),
    "groups": (
        lambda ps: SGD([{"params": ps[:1]}, {"params": ps[1:]}], lr=0.1).state_dict(),
        "number of groups: the state has 2; expected 1.",
    ),
    "parameters": (
        lambda ps: SGD(ps[:3], lr=0.1).state_dict(),
        "parameters in group 0: the state has 3; expected 4.",
    ),
    "shape": (
        lambda ps: SGD(ps[::-1], lr=0.1).state_dict(),
        "0.velocity: the state has float64 (2, 3, 3, 3); expected float64 (3, 2).",
    ),
    "dtype": (
        lambda ps: SGD([*ps[:3], as_float32(ps[3])], lr=0.1).state_dict(),
        "3.velocity: the state has float32 (2, 3, 3, 3); expected float64 (2, 3, 3, 3).",
    ),
    "model": (lambda ps: {"conv.weight": ps[0].numpy()}, "kind: the state has None; expected SGD."),
    "steps": (
        lambda ps: SGD(ps, lr=0.1).state_dict() | {"steps": []},
        "number of step counts: the state has 0; expected 4.",
    ),
    "value": (lambda ps: SGD(ps, lr=0.1).state_dict() | {"lr": -1}, "SGD: lr is -1; expected"),
}


@pytest.mark.parametrize(("make", "message"), MISFITS.values(), ids=MISFITS)
def test_a_state_that_does_not_fit_changes_nothing(make, message, rng):
    params = parameters(rng)
    optimizer = SGD(params, lr=0.1)
    train(optimizer, params, rng)
    before = repr(optimizer.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.load_state_dict(make(parameters(rng)))
    assert repr(optimizer.state_dict()) == before


# ---- what is refused ----

W = tg.ones(3, requires_grad=True, backend="numpy")
MISTAKES = [
    (lambda: SGD([], lr=0.1), "SGD: got no parameters; expected at least one. A generator"),
    (lambda: SGD(W, lr=0.1), "SGD: got Tensor as parameters; expected a list of Tensors"),
    (lambda: SGD(None, lr=0.1), "SGD: got NoneType as parameters; expected a list"),
    (lambda: SGD([("w", W)], lr=0.1), "SGD: got tuple as a parameter; expected a Tensor"),
    (lambda: SGD([W, {"params": [W]}], lr=0.1), "SGD: got dict as a parameter"),
    (lambda: SGD([{"lr": 1}], lr=0.1), "SGD: group 0 has no parameters; expected"),
    (lambda: SGD([{"params": W}], lr=0.1), "SGD: group 0 has Tensor as parameters"),
    (lambda: SGD([W.detach()], lr=0.1), "of shape (3,) requires no gradient; expected"),
    (lambda: SGD([W * 2], lr=0.1), "of shape (3,) is the result of mul; expected a leaf"),
    (lambda: SGD([W, W], lr=0.1), "SGD: parameter 1 is parameter 0 again; list each once"),
    (lambda: SGD([W], lr=-0.1), "SGD: lr is -0.1; expected a number from 0 on"),
    (lambda: SGD([W], lr="0.1"), "SGD: lr is '0.1'; expected a number from 0 on"),
    (lambda: SGD([W], lr=float("nan")), "SGD: lr is nan; expected a number from 0 on"),
    (lambda: SGD([W], lr=0.1, momentum=1), "momentum is 1; expected a number from 0 to below 1"),
    (lambda: SGD([W], lr=0.1, nesterov=True), "SGD: nesterov needs a momentum; set it too"),
    (lambda: SGD([W], lr=0.1, nesterov=1), "SGD: nesterov is 1; expected True or False"),
    (lambda: Adam([W], betas=0.9), "Adam: betas is 0.9; expected two numbers from 0 to below 1"),
    (lambda: Adam([W], betas=(0.9, 1)), "Adam: betas is (0.9, 1); expected two numbers"),
    (
        lambda: SGD([{"params": [W], "weight_decy": 0}], lr=0.1),
        "SGD: group 0 sets 'weight_decy'; did you mean 'weight_decay'? There are: lr, momentum",
    ),
    (lambda: SGD([{"params": [W], "colour": 0}], lr=0.1), "sets 'colour'. There are: lr"),
    (lambda: SGD([{"params": [W], "lr": -1}], lr=0.1), "SGD: lr is -1; expected"),
    (lambda: SGD([{"params": [W], "lr": 1}], lr=0), "group 0 has lr=1.0, and no proportion"),
    (lambda: setattr(SGD([W], lr=0.1), "lr", None), "SGD: lr is None; expected a number"),
]


@pytest.mark.parametrize(("wrong", "message"), MISTAKES, ids=[text for _, text in MISTAKES])
def test_mistakes_are_named(wrong, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        wrong()


def test_a_new_optimizer_needs_only_an_update():
    """Sign descent, with a setting that the base class knows nothing of."""

    class SignDescent(Optimizer):
        def update(self, backend, t, p, g, *, lr, scale):
            p -= lr * scale * backend.xp.sign(g)

    w = tg.ones(3, requires_grad=True, backend="numpy")
    w.sum().backward()
    SignDescent([w], lr=0.25, scale=2).step()
    assert w.numpy().tolist() == [0.5] * 3
    with pytest.raises(NotImplementedError, match="Optimizer: give it a method update"):
        Optimizer([w], lr=0.1).step()
