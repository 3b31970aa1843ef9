"""The two data sets of the course by one call."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from tinygrad_cnn import data


def test_without_a_folder_it_is_the_shapes():
    train, test = data.load(images=25, seed=3)
    assert [(d.name, len(d)) for d in (train, test)] == [("shapes", 25), ("shapes", 5)]
    np.testing.assert_array_equal(train.images, data.shapes(25, seed=3).images)
    np.testing.assert_array_equal(test.images, data.shapes(5, seed=3, train=False).images)


def small_cifar10(archive, folder):
    """Stand in for the archive: 30 images, and 10 from 100 on; the first pixel is the number."""
    assert (archive.name, folder) == ("cifar10", "folder")
    return numbered(range(30)), numbered(range(100, 110))


def numbered(numbers):
    images = np.zeros((len(numbers), 3, 32, 32), np.uint8)
    images[:, 0, 0, 0] = numbers
    return data.Dataset(images, np.zeros(len(numbers), np.int64), ("a",), "cifar10")


@pytest.mark.parametrize(
    ("images", "train", "test"), [(20, 20, 4), (50, 30, 10), (5, 5, 1)], ids=str
)
def test_with_a_folder_it_is_the_first_images_of_cifar10(monkeypatch, images, train, test):
    # the function hides its module: data.load is not tinygrad_cnn.data.load
    monkeypatch.setattr(sys.modules["tinygrad_cnn.data.load"], "train_and_test", small_cifar10)
    training, testing = data.load("folder", images=images)
    assert training.images[:, 0, 0, 0].tolist() == list(range(train))
    assert testing.images[:, 0, 0, 0].tolist() == list(range(100, 100 + test))


def test_real_images_come_in_the_files_order(real_cifar10):
    training, testing = data.load(real_cifar10, images=100)
    whole = data.cifar10(real_cifar10, train=False)
    assert (len(training), len(testing)) == (100, 20)
    np.testing.assert_array_equal(testing.images, whole.images[:20])
    assert set(training.labels.tolist()) == set(range(10))


@pytest.mark.parametrize("images", [4, 0, -1])
def test_too_few_images_are_refused(images):
    with pytest.raises(ValueError, match=rf"^images is {images}; expected at least 5, to tes"):
        data.load(images=images)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(data.DataError, match=r"cifar10: .* put the official python archive there"):
        data.load(tmp_path)


# By name


def test_shapes_by_name():
    train, test = data.open_data("shapes", seed=3)
    assert [(d.name, len(d)) for d in (train, test)] == [("shapes", 10_000), ("shapes", 2_000)]
    more, _ = data.open_data("shapes", images=10_500, seed=3)  # drawn, not cut from 10,000
    assert len(more) == 10_500
    np.testing.assert_array_equal(train.images[:5], data.shapes(5, seed=3).images)
    np.testing.assert_array_equal(test.images[:5], data.shapes(5, seed=3, train=False).images)


def test_real_images_by_name(real_cifar10):
    train, test = data.open_data("cifar10", real_cifar10, fetch=False)
    assert (len(train), len(test)) == (50_000, 10_000)
    np.testing.assert_array_equal(test.images, data.cifar10(real_cifar10, train=False).images)
    assert train.name == test.name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifr10", "did you mean 'cifar10'"),
        ("CIFAR100", r"\. There are"),
        ("shape", "did you mean 'shapes'"),
        ("folder", "did you mean 'folder:PATH'"),
        ("folder:", "did you mean 'folder:PATH'"),
        ("floder:pets", "did you mean 'folder:PATH'"),
        ("", r"no data set ''\. There are"),
    ],
)
def test_unknown_names(name, hint):
    with pytest.raises(ValueError, match=f"^no data set '{name}'") as caught:
        data.open_data(name)
    assert re.search(hint, str(caught.value))
    assert str(caught.value).endswith("There are: cifar10, cifar100, shapes, folder:PATH")
