"""Weights from PyTorch: whose they are, what is read, what is refused, and the same logits."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, nn, train
from tinygrad_cnn.train.convert import IMAGENET_MEAN, IMAGENET_STD

WeightsError = models.WeightsError


@pytest.fixture(autouse=True)
def _on_numpy():
    with tg.use_backend("numpy"):
        yield


@pytest.fixture
def peers():
    """Give the networks in PyTorch."""
    pytest.importorskip("torch")
    return importlib.import_module("torch_resnets")


def state_of(name, classes=10, seed=0):
    return models.build(name, classes, rng=np.random.default_rng(seed)).state_dict()


def empty(name, classes=10):
    with nn.init.skipped():
        return models.build(name, classes)


def images(size, n=2):
    return np.random.default_rng(1).integers(0, 256, (n, 3, size, size), np.uint8)


def scores_of(model, x):
    with tg.no_grad():
        return model.eval()(tg.tensor(x)).numpy()


# ---- akamaster's networks ----


@pytest.mark.parametrize("depth", [20, 32])
def test_akamasters_logits(peers, depth):
    theirs = peers.shaken(peers.akamaster_resnet(depth)).double()
    ours = empty(f"resnet{depth}").astype("float64")
    models.load_pretrained(ours, theirs.state_dict())
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32))
    with peers.torch.no_grad():
        expected = theirs(peers.torch.tensor(x)).numpy()
    np.testing.assert_allclose(scores_of(ours, x), expected, rtol=1e-9)
    renamed = {n.replace("linear.", "fc."): a for n, a in theirs.state_dict().items()}
    ours.load_state_dict(renamed)  # it fits, but the channels are in another order
    assert np.abs(scores_of(ours, x) - expected).max() > 0.1 * np.abs(expected).max()


def test_akamasters_misshapen_entries_are_named(peers):
    state = peers.akamaster_resnet(20).state_dict()
    state["layer2.0.conv2.weight"] = state["layer4.0.conv1.weight"] = peers.torch.ones(5, 5)
    with pytest.raises(
        ValueError, match=re.escape("layer2.0.conv2.weight is (5, 5), expected (32")
    ):
        models.load_pretrained(empty("resnet20"), state)


# ---- whose they are ----


@pytest.mark.parametrize(
    ("name", "recognized"),
    [
        *((name, name) for name in ("resnet18", "resnet34", "resnet50", "resnet110", "resnet164")),
        ("convnet", "convnet"), ("plain20", "resnet20"), ("svm", "softmax"),
    ],
)  # fmt: skip
def test_networks_are_recognized_with_any_number_of_classes(name, recognized):
    assert models.recognize(empty(name, 7).state_dict()) == recognized


def test_nearly_right_is_recognized():
    state = state_of("resnet20")
    del state["bn1.weight"]
    assert models.recognize(state | {"more": np.ones(3)}) == "resnet20"


@pytest.mark.parametrize("state", [{}, {"a": np.ones(3)}, {"fc.weight": np.ones((10, 7))}])
def test_strangers_are_not(state):
    with pytest.raises(WeightsError, match=r"no network here has entries like .*; the nearest is "):
        models.recognize(state)


# ---- what is read ----

WRAPPINGS = {
    "plain": lambda state: state,
    "DataParallel": lambda state: {f"module.{n}": a for n, a in state.items()},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best_prec1": 91.7},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "net": lambda state: {"net": {f"module.{n}": a for n, a in state.items()}, "acc": 9},
}


@pytest.mark.parametrize(
    ("wrapping", "suffix"),
    [*((name, ".th") for name in WRAPPINGS), *(("plain", s) for s in (".pt", ".pth", ".pth.tar"))],
)
def test_checkpoints_are_unwrapped(peers, tmp_path, wrapping, suffix):
    torch, state = peers.torch, state_of("lenet5")
    content = WRAPPINGS[wrapping]({n: torch.tensor(a) for n, a in state.items()})
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path, _use_new_zipfile_serialization=suffix != ".th")
    read = models.read_weights(path)
    assert read.keys() == state.keys()
    for name, a in state.items():
        np.testing.assert_array_equal(read[name], a)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_every_precision_is_read(peers, tmp_path, dtype):
    torch = peers.torch
    torch.save({"fc.weight": torch.full((2, 2), 0.5, dtype=getattr(torch, dtype))}, tmp_path / "w")
    (w,) = models.read_weights(tmp_path / "w").values()
    assert (w.dtype, w.tolist()) == (np.float32, [[0.5, 0.5], [0.5, 0.5]])


def test_safetensors_of_torchvisions_names_load_strictly(tmp_path):
    """As they are, and without PyTorch."""
    counts = {"bn1.num_batches_tracked": np.array(7)}
    save_file(state_of("resnet18", 5) | counts, tmp_path / "r.safetensors")
    direct, read = empty("resnet18", 5), empty("resnet18", 5)
    direct.load_state_dict(load_file(tmp_path / "r.safetensors"))
    models.load_pretrained(read, tmp_path / "r.safetensors")
    x = images(32).astype(np.float32)
    np.testing.assert_array_equal(scores_of(direct, x), scores_of(read, x))


def test_of_a_runs_checkpoint_the_average_is_taken():
    trained, average = state_of("lenet5"), state_of("lenet5", seed=1)
    arrays = {f"model.{n}": a for n, a in trained.items()}
    arrays |= {"optimizer.0.velocity": np.ones(3), "normalization.mean": np.ones((3, 1, 1))}
    net = empty("lenet5")
    for more, expected in ({}, trained), ({f"average.{n}": a for n, a in average.items()}, average):
        models.load_pretrained(net, arrays | more)
        for name, a in net.state_dict().items():
            np.testing.assert_array_equal(a, expected[name])


# ---- other classes ----


def test_all_but_the_head_is_taken():
    net, weights = models.build("resnet18", classes=3), state_of("resnet18", 5)
    before = net.state_dict()
    models.load_pretrained(net, weights, head=False)
    for name, a in net.state_dict().items():
        np.testing.assert_array_equal(a, before[name] if "fc." in name else weights[name])
    with pytest.raises(ValueError, match=re.escape("fc.bias is (5,), expected (3,)")):
        models.load_pretrained(net, weights)
    del weights["conv1.weight"]
    with pytest.raises(ValueError, match=re.escape("conv1.weight is missing. Was it saved")):
        models.load_pretrained(net, weights, head=False)


def test_a_frozen_network_trains_its_head():
    net = models.build("resnet18", classes=3)
    for name, p in net.named_parameters():
        p.requires_grad = name.startswith("fc.")
    loss = net.loss(net(tg.randn(2, 3, 32, 32)), [0, 2])
    loss.backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {"fc.weight", "fc.bias"}


# ---- what is refused ----


class Crafted:
    """A pickle that runs a program."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_crafted_pickle_runs_nothing(peers, tmp_path):
    peers.torch.save({"state_dict": Crafted(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(
        WeightsError, match=r"it names \w+\.mkdir, which could run a program and is"
    ):
        models.read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


REFUSED = {
    "a whole model": ({"model": Path("x")}, "weights.pth holds more than tensors: it names "),
    "no state dict": (
        {"epoch": 3, "lr": 0.1},
        "weights.pth holds no state dict, only epoch, lr; save",
    ),
    "a number": (3, "weights.pth holds no state dict, only int; save the weights"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_other_contents_are_refused(peers, tmp_path, content, message):
    peers.torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=re.escape(message)):
        models.read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [b"", b"hello world\n" * 9, b"PK\x03\x04", bytes(range(256))])
def test_other_files_are_refused(peers, tmp_path, content):
    for name, message in ("w.pth", "no PyTorch checkpoint"), ("w.safetensors", "no safetensors fi"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"{re.escape(name)} is damaged or {message}"):
            models.read_weights(tmp_path / name)


def test_safetensors_of_a_type_that_numpy_lacks_are_refused(peers, tmp_path):
    weights = {"fc.weight": peers.torch.ones(2, 2, dtype=peers.torch.bfloat16)}
    pytest.importorskip("safetensors.torch").save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w.safetensors: .*bfloat16.*; save the weights as flo"):
        models.read_weights(tmp_path / "w.safetensors")


def test_a_cut_checkpoint_is_refused(peers, tmp_path):
    peers.torch.save({"a": peers.torch.ones(99)}, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=re.escape("w.pth is damaged or no PyTorch checkpoint")):
        models.read_weights(tmp_path / "w.pth")


def test_without_pytorch_its_files_are_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").touch()
    message = "w.pth is read by PyTorch, which isn't installed; pip install torch, or save the"
    with pytest.raises(WeightsError, match=re.escape(message)):
        models.read_weights(tmp_path / "w.pth")


# ---- convert ----


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run


def test_a_converted_network_judges_as_pytorchs(peers, run, tmp_path):
    """Pixels in, probabilities out: normalisation and folding are right as well."""
    theirs = peers.shaken(peers.torchvision_resnet(18, 5))
    peers.torch.save(theirs.state_dict(), "r.pth")
    status, out, err = run("convert", "r.pth", "r.safetensors")
    assert (status, err) == (0, "")
    assert out == (
        "r.safetensors holds the weights of resnet18\n"
        "next: tinygrad-cnn predict r.safetensors IMAGE.png\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.pth", "r.safetensors"]
    trained, pixels = train.Trained.load(Path("r.safetensors")), images(64)
    mean, std = (np.reshape(s, (3, 1, 1)) for s in (IMAGENET_MEAN, IMAGENET_STD))
    x = peers.torch.tensor((pixels / 255 - mean) / std).float()
    with peers.torch.no_grad():
        expected = theirs(x).softmax(1).numpy()
    np.testing.assert_allclose(trained.probabilities(pixels), expected, atol=1e-4)
    assert trained.classes == ["0", "1", "2", "3", "4"]


def test_pictures_are_cut_as_torchvision_does(run):
    """Of 256 pixels the outer 16 on each side are left out: they are white here, the rest black."""
    save_file(state_of("resnet18", 2), "r.safetensors")
    Path("names.txt").write_text("dark\nbright\n\n")  # a line too many, as files end
    assert run("convert", "r.safetensors", "c.safetensors", "--classes", "names.txt")[0] == 0
    pixels = np.full((256, 256, 3), 255, np.uint8)
    pixels[16:-16, 16:-16] = 0
    for split in "train", "test":
        for name in "dark", "bright":
            Path(f"pictures/{split}/{name}").mkdir(parents=True)
            Image.fromarray(pixels).save(f"pictures/{split}/{name}/0.png")
    trained = train.Trained.load(Path("c.safetensors"))
    image = trained.read_image(Path("pictures/test/dark/0.png"))
    assert (image.shape, image.max()) == ((3, 224, 224), 0)
    status, out, err = run("predict", "c.safetensors", "pictures/test/dark/0.png")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"(?s)pictures.*%  (dark|bright)\n.*%  (dark|bright)\n", out)
    opened, open_data = [], data.open_data

    def watched(*args, **settings):
        opened.extend(open_data(*args, **settings))
        return opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "open_data", watched)
        status, out, err = run("evaluate", "c.safetensors", "--data", "folder:pictures")
    assert (status, err) == (0, "")
    message = "no data set 'unknown'. There are: cifar10, cifar100, shapes, folder:PATH"
    assert run("evaluate", "c.safetensors") == (1, "", f"tinygrad-cnn: {message}\n")
    assert "test accuracy 50.00%" in out  # of the same picture, under two names
    assert opened[1].images.shape == (2, 3, 224, 224)
    assert not opened[1].images.any()


@pytest.mark.parametrize(("outputs", "first"), [(10, "airplane"), (100, "apple"), (7, "0")])
def test_cifars_networks_know_its_classes(run, outputs, first):
    save_file(state_of("resnet8", outputs), "r.safetensors")
    assert run("convert", "r.safetensors", "c.safetensors", "--mean", "0.5,0.5,0.5")[0] == 0
    trained = train.Trained.load(Path("c.safetensors"))
    assert (trained.classes[0], len(trained.classes), trained.border) == (first, outputs, 0)
    assert [s.ravel().tolist() for s in trained.statistics] == [[0.5] * 3, [*IMAGENET_STD]]


def test_the_model_may_be_named(run):
    save_file(state_of("svm"), "w.safetensors")
    assert run("convert", "w.safetensors", "c.safetensors", "--model", "svm")[0] == 0
    config = train.Config.from_dict(train.Trained.load(Path("c.safetensors")).facts["config"])
    assert config.recipe.model == "svm"


def test_option_b_is_a_setting(peers, run):
    """Of akamaster's; its probabilities, so that no channel is out of order."""
    theirs = peers.shaken(peers.akamaster_resnet(20, option="B"))
    peers.torch.save({"state_dict": theirs.state_dict()}, "b.th")
    assert run("convert", "b.th", "b.safetensors", "--set", "shortcut=B")[0] == 0
    trained, pixels = train.Trained.load(Path("b.safetensors")), images(32)
    mean, std = (np.reshape(s, (3, 1, 1)) for s in (IMAGENET_MEAN, IMAGENET_STD))
    with peers.torch.no_grad():
        expected = theirs(peers.torch.tensor((pixels / 255 - mean) / std).float()).softmax(1)
    np.testing.assert_allclose(trained.probabilities(pixels), expected.numpy(), atol=1e-4)


MISTAKES = {
    "setting": (
        ["--model", "resnet8", "--set", "shortcut=D"],
        "resnet: shortcut is 'D'; expected 'A', 'B', 'C' or None",
    ),
    "no setting": (
        ["--model", "resnet8", "--set", "shortcat=B"],
        "no setting model_settings.shortcat of resnet8; did you mean 'shortcut'?",
    ),
    "other setting": (
        ["--model", "resnet8", "--set", "shortcut=B"],
        "w.safetensors as resnet8: load_state_dict: the state doesn't fit this CifarResNet: "
        "layer2.0.shortcut.0.weight is missing",
    ),
    "entries": (
        ["--model", "resnet20"],
        "w.safetensors as resnet20: load_state_dict: the state doesn't fit this CifarResNet: "
        "bn1.bias is missing; bn1.running_mean is missing; ",
    ),
    "channels": ([], "got 3 means; lenet5 with these weights has 1"),
    "classes": (["--classes", "three.txt"], "got 3 class names; lenet5 with these weights has 10"),
    "model": (["--model", "lenet"], "no model 'lenet'; did you mean 'lenet5'? There are: "),
    "scale": (
        ["--model", "resnet8", "--mean", "124,116,104"],
        "got means (124.0, 116.0, 104.0) and deviations (0.229, 0.224, 0.225); expected those of "
        "pixels from 0 to 1, no deviation 0. Of 0 to 255? Divide them by 255",
    ),
    "deviation": (["--model", "resnet8", "--std", "0.2,0,0.2"], "no deviation 0."),
    "no names": (["--classes", "none.txt"], "Invalid value for '--classes'"),
    "number": (["--mean", "a,0,0"], "--mean is 'a,0,0'; expected a number for each channel"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_leave_nothing_behind(run, tmp_path, monkeypatch, options, message):
    monkeypatch.setenv("COLUMNS", "300")
    save_file(state_of("resnet8" if "resnet8" in options else "lenet5"), "w.safetensors")
    Path("three.txt").write_text("a\nb\nc\n")
    status, out, err = run("convert", "w.safetensors", "c.safetensors", *options)
    assert status in (1, 2)
    assert message in err
    assert not (tmp_path / "c.safetensors").exists()


def test_a_converted_file_fails_whole(run, tmp_path, monkeypatch):
    """A disk that is full leaves the old file and no part of the new one."""
    save_file(state_of("resnet8"), "w.safetensors")
    Path("c.safetensors").write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, _, err = run("convert", "w.safetensors", "c.safetensors")
    assert status == 1
    assert "No space left" in err
    assert Path("c.safetensors").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.safetensors", "w.safetensors"]
