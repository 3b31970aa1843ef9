"""`tinygrad-cnn data`: where data lie, what is in them, and one line where they don't."""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image
from test_cifar import BATCHES, FOLDER, make_batch, official

from tinygrad_cnn import data
from tinygrad_cnn.data import archives


@pytest.fixture
def run(run):
    """Run the command `data`."""
    return partial(run, "data")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Lay a small CIFAR-10 into a folder, official but for one file."""
    raws = {name: official(make_batch(4, seed=i)) for i, name in enumerate(BATCHES)}
    raws["test_batch"] = official(make_batch(2, labels=[3, 3]))
    (tmp_path / FOLDER).mkdir()
    for name, raw in raws.items():
        (tmp_path / FOLDER / name).write_bytes(raw)
    sums = {name: hashlib.md5(raw).hexdigest() for name, raw in raws.items()}
    test = {"test_batch": sums.pop("test_batch")}
    ours = replace(archives.CIFAR10, train=sums, test=test)
    monkeypatch.setitem(archives.ARCHIVES, "cifar10", ours)
    return tmp_path


def test_without_a_name_all_are_listed(run, small):
    status, out, err = run("--data-dir", small)
    assert (status, err) == (0, "")
    assert f"cifar10      in {small / FOLDER}\n" in out
    assert f"cifar100     not in {small}; tinygrad-cnn data cifar100 --download\n" in out
    assert [line.split()[0] for line in out.splitlines()] == [
        "cifar10",
        "cifar100",
        "shapes",
        "folder:PATH",
    ]


def test_a_data_set_is_described(run, small):
    status, out, err = run("cifar10", "--data-dir", small, "--verify")
    assert (status, err) == (0, "")
    train, test = data.open_data("cifar10", small)
    place, summary, mean, deviation, *_ = out.splitlines()
    assert place == f"in {small / FOLDER}"
    assert summary == "cifar10: 20 training and 2 test images 3x32x32"
    numbers = [[float(word) for word in line.split()[1:]] for line in (mean, deviation)]
    expected = [statistic.ravel() for statistic in data.channel_statistics(train.images)]
    np.testing.assert_allclose(numbers, expected, atol=6e-5)
    for k, name in enumerate(train.classes):
        counts = (train.labels == k).sum(), (test.labels == k).sum()
        assert re.search(rf"^{name} +{counts[0]} +{counts[1]}$", out, re.MULTILINE)
    assert len(re.findall(r"^\w+ +official$", out, re.MULTILINE)) == 6


def test_files_that_differ_are_named(run, small):
    (small / FOLDER / "data_batch_3").write_bytes(official(make_batch(4, seed=77)))
    status, out, err = run("cifar10", "--data-dir", small)
    assert (status, err) == (0, "")
    assert "cifar10 (not the official files): 20 training" in out
    status, out, err = run("cifar10", "--data-dir", small, "--verify")
    assert (status, err) == (1, "")
    assert re.findall(r"^(\w+) +not the official file$", out, re.MULTILINE) == ["data_batch_3"]


def test_what_is_not_there_says_how_to_get_it(run, tmp_path):
    status, out, err = run("cifar10", "--data-dir", tmp_path)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"tinygrad-cnn: cifar10: {tmp_path} has neither {FOLDER}")
    assert "fetch it by `tinygrad-cnn data cifar10 --download`" in err


def test_download_downloads(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        sys.modules["tinygrad_cnn.data.load"], "download", lambda *args: asked.append(args)
    )
    assert run("cifar100", "--data-dir", tmp_path, "--download")[0] == 1  # it brought nothing
    assert asked == [(archives.CIFAR100, tmp_path)]


@pytest.mark.parametrize("option", ["--verify", "--download"])
def test_only_archives_have_official_files(run, option):
    status, out, err = run("shapes", option)
    assert (status, out) == (2, "")
    assert "shapes has no official files" in err


def test_an_unknown_name(run):
    status, out, err = run("cifr10")
    assert (status, out) == (1, "")
    assert "no data set 'cifr10'; did you mean 'cifar10'?" in err


def test_a_sheet_shows_the_first_images_of_each_class(tmp_path, run):
    colours = {"cat": (200, 0, 0), "犬": (0, 0, 200)}
    for name, colour in colours.items():
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (32, 32), colour).save(tmp_path / "pets" / name / f"{i}.png")
    status, out, err = run(f"folder:{tmp_path / 'pets'}", "--show", tmp_path / "new" / "sheet.png")
    assert (status, err) == (0, "")
    assert "16 training and 4 test images 3x32x32" in out
    with Image.open(tmp_path / "new" / "sheet.png") as picture:
        sheet = np.asarray(picture.convert("RGB"))
    (top, left, height, width), below = (bounds(sheet, colour) for colour in colours.values())
    assert below[1:] == pytest.approx((left, height, width), abs=2)
    assert below[0] > top + height
    assert width == pytest.approx(8 * 34 / 32 * height, rel=0.05)  # 8 of 10 images: one row


def bounds(sheet, colour):
    """Find the rectangle in which a colour stands: top, left, height, width."""
    y, x = np.nonzero((sheet == colour).all(axis=-1))
    return y.min(), x.min(), np.ptp(y) + 1, np.ptp(x) + 1
