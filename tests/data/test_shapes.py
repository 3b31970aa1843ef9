"""The drawn shapes: the same for everyone, labelled rightly, and not for linear classifiers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_cnn.data import shapes


@pytest.fixture(scope="module")
def thousand():
    """Draw 1000 images with their masks."""
    return shapes(1000, return_masks=True)


def test_types_and_layout(thousand):
    dataset, masks = thousand
    assert dataset.images.shape == (1000, 3, 32, 32)
    assert dataset.images.dtype == np.uint8
    assert dataset.images.transpose(0, 2, 3, 1).flags.c_contiguous
    assert dataset.labels.dtype == np.int64
    assert masks.shape == (1000, 32, 32)
    assert masks.dtype == np.bool_
    assert len(set(dataset.classes)) == 10
    assert dataset.name == "shapes"


@settings(max_examples=8, deadline=None)
@given(n=st.integers(1, 600))
def test_fewer_images_are_the_beginning_of_more(thousand, n):
    dataset, masks = shapes(n, return_masks=True)
    np.testing.assert_array_equal(dataset.images, thousand[0].images[:n])
    np.testing.assert_array_equal(dataset.labels, thousand[0].labels[:n])
    np.testing.assert_array_equal(masks, thousand[1][:n])


def test_masks_do_not_change_the_images(thousand):
    np.testing.assert_array_equal(shapes(1000).images, thousand[0].images)


def test_no_image_occurs_twice(thousand):
    sets = [thousand[0], shapes(500, train=False), shapes(500, seed=1)]
    assert len({image.tobytes() for dataset in sets for image in dataset.images}) == 2000


def test_classes_are_balanced(thousand):
    assert np.bincount(thousand[0].labels).tolist() == [100] * 10


def test_a_shape_stands_out_from_its_ground(thousand):
    dataset, masks = thousand
    pixels = dataset.images.transpose(0, 2, 3, 1).astype(float)
    for x, mask in zip(pixels, masks, strict=True):
        assert np.abs(x[mask].mean(axis=0) - x[~mask].mean(axis=0)).max() > 25
    assert masks.mean(axis=(1, 2)).min() > 0.05
    assert masks.mean(axis=(1, 2)).max() < 0.5


def roundness(mask):
    """Compare the mask's area with the disc around it, and look whether its middle is in it."""
    places = np.argwhere(mask)
    middle = places.mean(axis=0)
    radius = np.hypot(*(places - middle).T).max() + 0.5
    return len(places) / (np.pi * radius**2), mask[*middle.round().astype(int)]


ROUNDNESS = {
    "circle": 0.90, "square": 0.63, "triangle": 0.42, "star": 0.40, "cross": 0.57, "ring": 0.70,
    "crescent": 0.25, "heart": 0.53, "hexagon": 0.79, "arrow": 0.39,
}  # fmt: skip


@pytest.mark.parametrize("name", ROUNDNESS)
def test_labels_name_what_is_drawn(thousand, name):
    dataset, masks = thousand
    drawn = masks[dataset.labels == dataset.classes.index(name)]
    inner = drawn[drawn.sum((1, 2)) == drawn[:, 1:-1, 1:-1].sum((1, 2))]  # not cut by the edge
    ratio, middle = np.median([roundness(mask) for mask in inner], axis=0)
    assert ratio == pytest.approx(ROUNDNESS[name], abs=0.03)
    assert middle == (name != "ring")


@pytest.mark.parametrize("n", [0, -1])
def test_no_images(n):
    with pytest.raises(ValueError, match=f"shapes: n is {n}; expected at least 1 image"):
        shapes(n)


def test_a_linear_classifier_fails():
    train, test = shapes(2000), shapes(1000, train=False)
    x, z = (d.images.reshape(len(d), -1) / 255 - 0.5 for d in (train, test))
    for strength in (1e2, 1e3, 1e4):  # ridge regression on the indicators, in its dual form
        dual = np.linalg.solve(x @ x.T + strength * np.eye(len(x)), np.eye(10)[train.labels])
        assert np.mean((z @ (x.T @ dual)).argmax(axis=1) == test.labels) < 0.25
