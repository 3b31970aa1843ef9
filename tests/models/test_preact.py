"""Tables 1 and 2 of arXiv 1603.05027: each row against its equation, here and in PyTorch."""

from __future__ import annotations

import importlib
import math
import re

import numpy as np
import pytest

import tinygrad_cnn as tg
from tinygrad_cnn import models, nn
from tinygrad_cnn.models.preact import SHORTCUTS, TABLE_1, UNITS, Unit, build_preact
from tinygrad_cnn.random import use_generator

on_every_backend = pytest.mark.usefixtures("backend")

# Every unit, every shortcut (gates half open, so that both paths count), and shortcuts before
# which something acts.
ROWS = {
    **{unit: dict(unit=unit, shortcut="identity") for unit in UNITS},
    "constant": dict(unit="original", **TABLE_1["constant scaling 0.5, F 1"]),
    "constant F": dict(unit="original", **TABLE_1["constant scaling 0.5, F 0.5"]),
    "exclusive": dict(unit="original", **TABLE_1["exclusive gating, bias -1"]),
    "shortcut-only": dict(unit="original", **TABLE_1["shortcut-only gating, bias 0"]),
    "1x1": dict(unit="original", **TABLE_1["1x1 convolution"]),
    "dropout": dict(unit="original", **TABLE_1["dropout 0.5"]),
    "1x1, full": dict(unit="full pre-activation", **TABLE_1["1x1 convolution"]),
    "1x1, ReLU-only": dict(unit="ReLU-only pre-activation", **TABLE_1["1x1 convolution"]),
    "exclusive, BN after": dict(unit="BN after addition", **TABLE_1["exclusive gating, bias -1"]),
}
every_row = pytest.mark.parametrize("row", ROWS)
both_branches = pytest.mark.parametrize("bottleneck", [False, True], ids=["basic", "bottleneck"])


# ---- the paper, written out ----


# x_{l+1} of x_l; `both`: what acts on x acts before both paths
FIGURE_4 = {
    "original": lambda u, x, both: u.relu(u.add(x, u.bn(u.F(x)))),
    "BN after addition": lambda u, x, both: u.relu(u.bn(u.add(x, u.F(x)))),
    "ReLU before addition": lambda u, x, both: u.add(x, u.relu(u.bn(u.F(x)))),
    "ReLU-only pre-activation": lambda u, x, both: u.split(
        x, u.relu(x), lambda a: u.bn(u.F(a)), both=both
    ),
    "full pre-activation": lambda u, x, both: u.split(x, u.relu(u.bn(x)), u.F, both=both),
}
# the sum, of x, x in the sum's shape and F(x)
FIGURE_2 = {
    "identity": lambda u, x, fit, f: fit + f,
    "constant scaling": lambda u, x, fit, f: 0.5 * fit + u.settings.get("branch_scale", 1) * f,
    "exclusive gating": lambda u, x, fit, f: (1 - u.gate(x)) * fit + u.gate(x) * f,
    "shortcut-only gating": lambda u, x, fit, f: (1 - u.gate(x)) * fit + f,
    "1x1 convolution": lambda u, x, fit, f: fit + f,
    "dropout": lambda u, x, fit, f: u.ops.dropout(fit, 0.5, u.training) + f,
}


class Paper:
    """A network by the paper's equations, one op at a time: ours, or PyTorch's of the same name."""

    def __init__(self, ops, state, *, bottleneck, unit, shortcut, **settings):
        self.ops, self.state, self.bottleneck = ops, state, bottleneck
        self.unit, self.shortcut, self.settings = unit, shortcut, settings
        self.training, self.path = True, ""

    def __call__(self, x):
        """x (N, 3, H, W) -> (N, classes)."""
        x = self.conv(x, "conv1", padding=1)
        if self.unit == "ReLU-only pre-activation":
            x = self.norm(x, "bn1")
        elif self.unit != "full pre-activation":
            x = self.relu(self.norm(x, "bn1"))
        for i in range(2 * 3):
            self.path, self.stride = f"layer{i // 2 + 1}.{i % 2}.", 2 if i in (2, 4) else 1
            changes = i in (2, 4) or (self.bottleneck and i == 0)
            self.projects = self.shortcut == "1x1 convolution" or (self.bottleneck and changes)
            x = FIGURE_4[self.unit](self, x, both=i == 0 or self.projects)
        self.path = ""
        if self.unit == "full pre-activation":
            x = self.bn(x)
        if "pre-activation" in self.unit:
            x = self.relu(x)
        return self.ops.linear(x.mean((2, 3)), self.state["fc.weight"], self.state["fc.bias"])

    # ---- its parts ----

    def conv(self, x, name, *, stride=1, padding=0):
        w, b = self.state[self.path + name + ".weight"], self.state.get(self.path + name + ".bias")
        return self.ops.conv2d(x, w, b, stride, padding)

    def norm(self, x, name):
        keys = "running_mean", "running_var", "weight", "bias"
        values = [self.state[f"{self.path}{name}.{key}"] for key in keys]
        return self.ops.batch_norm(x, *values, self.training)

    def bn(self, x):
        return self.norm(x, "bn")

    def relu(self, x):
        return self.ops.relu(x)

    def gate(self, x):
        return self.ops.sigmoid(self.conv(x, "shortcut.gate", stride=self.stride))

    def F(self, x):
        if not self.bottleneck:
            x = self.conv(x, "branch.conv1", stride=self.stride, padding=1)
            return self.conv(self.relu(self.norm(x, "branch.bn1")), "branch.conv2", padding=1)
        x = self.relu(self.norm(self.conv(x, "branch.conv1", stride=self.stride), "branch.bn1"))
        x = self.relu(self.norm(self.conv(x, "branch.conv2", padding=1), "branch.bn2"))
        return self.conv(x, "branch.conv3")

    def add(self, x, f):
        return FIGURE_2[self.shortcut](self, x, self.fit(x, f), f)

    def split(self, x, activated, branch, *, both):
        return self.add(activated if both else x, branch(activated))

    def fit(self, x, f):
        if not self.projects:
            channels = self.ops.pad(x, (0, 0, 0, 0, 0, f.shape[1] - x.shape[1]))
            return channels[:, :, :: self.stride, :: self.stride]
        if self.unit in ("full pre-activation", "BN after addition"):
            return self.conv(x, "shortcut.fit", stride=self.stride)
        return self.norm(self.conv(x, "shortcut.fit.0", stride=self.stride), "shortcut.fit.1")


def net(row, bottleneck, **settings):
    """Build a row's network with two units a stage, in float64."""
    depth, rng = (20 if bottleneck else 14), np.random.default_rng(0)
    made = build_preact(depth=depth, bottleneck=bottleneck, rng=rng, **ROWS[row], **settings)
    return made.astype("float64")


def images(n=3, *, channels=3, size=8):
    x = np.random.default_rng(1).standard_normal((n, channels, size, size))
    return tg.Tensor(x, dtype="float64")


def assert_close(received, expected):
    received, expected = received.numpy(), np.asarray(expected.numpy())
    atol = 1e-11 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(received, expected, rtol=1e-9, atol=atol)


def copies(model, library):
    """Copy a state into tensors of a library, the parameters waiting for gradients."""
    trained = {key for key, _ in model.named_parameters()}
    return {k: library.tensor(a, requires_grad=k in trained) for k, a in model.state_dict().items()}


LIBRARIES = {"tinygrad_cnn": "tinygrad_cnn.functional", "torch": "torch.nn.functional"}
# where each library's dropout draws its own numbers, only ours can be compared with ours
CASES = [(at, row) for at in LIBRARIES for row in ROWS if (at, row) != ("torch", "dropout")]


@on_every_backend
@both_branches
@pytest.mark.parametrize(("library", "row"), CASES)
def test_a_row_is_its_equation(library, row, bottleneck):
    """In values, gradients, and in evaluation by the running statistics of one step."""
    lib, ours = pytest.importorskip(library), net(row, bottleneck)
    ops = importlib.import_module(LIBRARIES[library])
    theirs = Paper(ops, copies(ours, lib), bottleneck=bottleneck, **ROWS[row])
    x, w = images(), np.random.default_rng(2).standard_normal((3, 10))
    with use_generator(np.random.default_rng(3)):
        y = ours(x)
    with use_generator(np.random.default_rng(3)):
        expected = theirs(lib.tensor(x.numpy()))
    assert_close(y, expected.detach())
    (y * tg.tensor(w)).sum().backward()
    (expected * lib.tensor(w)).sum().backward()
    for key, p in ours.named_parameters():
        assert_close(p.grad, theirs.state[key].grad)
    ours.eval()
    theirs.training = False
    assert_close(ours(x), theirs(lib.tensor(x.numpy())).detach())


def test_the_paper_is_covered():
    assert FIGURE_4.keys() == UNITS.keys() == {ROWS[row]["unit"] for row in ROWS}
    assert FIGURE_2.keys() == SHORTCUTS.keys() == {ROWS[row]["shortcut"] for row in ROWS}
    assert {settings["shortcut"] for settings in TABLE_1.values()} == SHORTCUTS.keys()


@on_every_backend
@both_branches
@every_row
def test_gradients_flow_everywhere(row, bottleneck):
    model = net(row, bottleneck)
    model.loss(model(images()), [0, 1, 2]).backward()
    size = {key: np.abs(p.grad.numpy()).max() for key, p in model.named_parameters()}
    silent = [key for key, largest in size.items() if largest < 1e-10]
    # here the next stage's 1x1 convolutions take the shift on, and their batch norms take it out
    shifts = [f"layer{i}.0.shortcut.fit.1.bias" for i in (1, 2)]
    assert silent == (shifts if (row, bottleneck) == ("ReLU before addition", True) else [])


@on_every_backend
@both_branches
@every_row
def test_folding_changes_nothing(row, bottleneck):
    model = net(row, bottleneck)
    model(images())  # moves the running statistics
    assert_close(nn.fold_batch_norm(model)(images()), model.eval()(images()))


# ---- what the paper derives ----


def silenced(unit, shape=(16, 16, 1), **settings):
    """Make a unit whose branch gives 0."""
    made = Unit(shape, unit=unit, rng=np.random.default_rng(0), **settings).astype("float64")
    made.branch.conv2.weight.data = np.zeros((16, 16, 3, 3))
    return made


@pytest.mark.parametrize("unit", UNITS)
def test_only_without_activation_after_the_sum_is_a_unit_the_identity(unit):
    """Section 2: then x_L = x_l + the sum of the F, and the gradient passes unchanged."""
    x, made = images(channels=16), silenced(unit)
    x.requires_grad = True
    y = made(x)
    y.backward(x.constant(np.ones(x.shape)))
    identity = np.array_equal(y.numpy(), x.numpy()) and (x.grad.numpy() == 1).all()
    assert identity == (UNITS[unit][0] != "sum" and UNITS[unit][1] != "sum")


def test_a_shut_gate_is_the_identity_and_an_open_one_nothing():
    x = images(channels=16)
    for bias, h in (-50.0, x.numpy()), (50.0, np.zeros(x.shape)):
        settings = dict(shortcut="shortcut-only gating", gate_bias=bias)
        y = silenced("full pre-activation", **settings)(x)
        np.testing.assert_allclose(y.numpy(), h, rtol=0, atol=1e-12)


def test_dropout_halves_the_shortcut_in_training_alone():
    x = images(channels=16)
    made = silenced("full pre-activation", shortcut="dropout")
    y = made(x).numpy()
    dropped = y == 0
    assert 0.4 < dropped.mean() < 0.6
    np.testing.assert_allclose(y[~dropped], 2 * x.numpy()[~dropped])
    np.testing.assert_array_equal(made.eval()(x).numpy(), x.numpy())


@pytest.mark.parametrize(("shortcut", "option"), [("identity", "A"), ("1x1 convolution", "C")])
def test_the_original_unit_is_that_of_the_first_paper(shortcut, option):
    """A ResNet-14 of models/resnet.py with the same weights gives the same numbers."""
    resnet = models.resnet.build_resnet(depth=14, shortcut=option).astype("float64")
    ours = build_preact(depth=14, unit="original", shortcut=shortcut).astype("float64")
    renamed = {}
    for key, a in ours.state_dict().items():
        key = re.sub(r"(layer\d\.\d\.)bn\.", r"\1bn2.", key)
        renamed[key.replace("branch.", "").replace("shortcut.fit.", "shortcut.")] = a
    resnet.load_state_dict(renamed)
    np.testing.assert_array_equal(resnet(images()).numpy(), ours(images()).numpy())


# ---- sizes ----


def parameters(name, **settings):
    return models.build(name, **settings).num_parameters()


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("preact_resnet110", 10, 1_727_962),
        ("preact_resnet164", 10, 1_703_258),
        ("preact_resnet164", 100, 1_726_388),
        ("preact_resnet1001", 10, 10_327_706),
    ],
)
def test_parameters(name, classes, expected):
    assert parameters(name, classes=classes) == expected


@pytest.mark.parametrize("unit", UNITS)
def test_table_2_moves_layers_only(unit):
    """But a projection has a batch norm where F ends in one."""
    assert parameters("preact_resnet110", unit=unit) == 1_727_962
    norms = 2 * (64 + 128 + 256) if UNITS[unit][0] == "F" else 0
    assert parameters("preact_resnet164", unit=unit) == 1_703_258 + norms


def gates(first, widths, n):
    """Count the weights and biases of 1x1 convolutions beside all units."""
    shapes = zip((first, *widths), widths, strict=False)
    return sum((c + 1) * o + (n - 1) * (o + 1) * o for c, o in shapes)


@pytest.mark.parametrize("row", TABLE_1)
def test_parameters_of_table_1(row):
    """Gates have a weight for each pair of channels, 1x1 convolutions are option C."""
    settings = dict(unit="original", **TABLE_1[row])
    basic, bottleneck = (parameters(f"preact_resnet{d}", **settings) for d in (110, 164))
    if row == "1x1 convolution":
        assert basic == parameters("resnet110", shortcut="C")
        assert bottleneck == 1_704_154 + 17 * sum(o * o + 2 * o for o in (64, 128, 256))
        return
    gated = "gating" in row
    assert basic == 1_727_962 + (gates(16, (16, 32, 64), 18) if gated else 0)
    assert bottleneck == 1_704_154 + (gates(16, (64, 128, 256), 18) if gated else 0)


@pytest.mark.parametrize("name", ["resnet164", "preact_resnet164", "preact_resnet110"])
def test_depth_counts_the_layers_with_weights(name):
    """Projections stand beside, not before."""
    weights = [k for k, p in models.build(name).named_parameters() if p.ndim > 1]
    assert len([k for k in weights if "shortcut" not in k]) == int(name.split("resnet")[1])


@pytest.mark.parametrize("bias", [0, -6])
def test_a_gate_starts_at_its_bias(bias):
    model = build_preact(depth=8, shortcut="exclusive gating", gate_bias=bias)
    gate = model.layer3[0].shortcut.gate
    assert (gate.bias.numpy() == bias).all()
    assert gate.weight.numpy().std() == pytest.approx(math.sqrt(2 / 64), rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(depth=9), "preact: depth is 9; expected 6n + 2: 8, 14, 20, ..."),
        (dict(depth=2), "preact: depth is 2; expected 6n + 2"),
        (dict(depth=14, bottleneck=True), "preact: depth is 14; expected 9n + 2: 11, 20, 29, ..."),
        (dict(depth=8, unit="full"), "preact: unit is 'full'; expected one of original, BN after"),
        (dict(depth=8, shortcut="A"), "preact: shortcut is 'A'; expected one of identity, const"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_preact(**settings)


def test_settings_of_another_shortcut_are_refused():
    refused = "preact: gate_bias is no setting of the shortcut 'constant scaling'; leave it out"
    with pytest.raises(ValueError, match=refused):
        build_preact(depth=8, shortcut="constant scaling", gate_bias=-6)
