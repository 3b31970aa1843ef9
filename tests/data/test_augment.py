"""Normalisation and augmentation, against what they say they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_cnn.data import (
    ColourJitter,
    Cutout,
    RandomCropAndFlip,
    channel_statistics,
    colour_covariance,
    crop_and_flip,
    normalize,
    random_crop_and_flip,
)
from tinygrad_cnn.data.augment import normalized_crop_and_flip

SIZES = st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))


def channels_last(x):
    return x.transpose(0, 2, 3, 1).flags.c_contiguous


def draw_images(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# Statistics


@pytest.mark.parametrize("per_pixel_mean", [False, True])
def test_normalised_images_have_mean_0_and_deviation_1(per_pixel_mean):
    images = draw_images((50, 3, 8, 6))
    mean, std = channel_statistics(images, per_pixel_mean=per_pixel_mean)
    x = normalize(images, mean, std, dtype=np.float64)
    np.testing.assert_allclose(x.mean(axis=(0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(x.std(axis=(0, 2, 3)), 1, rtol=1e-12)
    if per_pixel_mean:
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-12)


def test_statistics_are_on_the_scale_0_to_1():
    images = draw_images((20, 3, 5, 7))
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean[:, 0, 0], (images / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std[:, 0, 0], (images / 255).std(axis=(0, 2, 3)), rtol=1e-12)
    assert mean.shape == std.shape == (3, 1, 1)
    assert channel_statistics(images, per_pixel_mean=True)[0].shape == (3, 5, 7)


def test_a_constant_channel_is_not_divided_by_zero():
    images = draw_images((5, 2, 4, 4))
    images[:, 1] = 77
    x = normalize(images, *channel_statistics(images))
    np.testing.assert_allclose(x[:, 1], 0, atol=1e-6)


def test_large_means_lose_nothing():
    images = np.full((1000, 1, 32, 32), 255, np.uint8)
    images[0, 0, 0, 0] = 254
    exact = np.sqrt((1 - 1 / images.size) / images.size) / 255
    np.testing.assert_allclose(channel_statistics(images)[1].item(), exact, rtol=1e-4)


def test_statistics_of_nothing():
    with pytest.raises(ValueError, match="channel_statistics: got no images"):
        channel_statistics(draw_images((0, 3, 4, 4)))


# Normalisation


@settings(deadline=None)
@given(shape=SIZES, dtype=st.sampled_from([np.float32, np.float64]), last=st.booleans())
def test_normalize_is_its_formula(shape, dtype, last):
    images = draw_images(shape)
    if last:
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    before = images.copy()
    rng = np.random.default_rng(1)
    mean, std = rng.random((shape[1], 1, 1)), rng.uniform(0.2, 1, (shape[1], 1, 1))
    x = normalize(images, mean, std, dtype=dtype)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(x, (images / 255 - mean) / std, atol=tolerance)
    assert x.shape == shape
    assert x.dtype == dtype
    assert channels_last(x)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("images", [np.zeros((2, 3, 4, 4)), np.zeros((3, 4, 4), np.uint8)])
def test_only_uint8_images_are_normalised(images):
    for function in (channel_statistics, lambda x: normalize(x, 0, 1)):
        with pytest.raises(ValueError, match=r"images are .*; expected uint8 \(N, C, H, W\)"):
            function(images)


# Crops and flips


def slow_crop_and_flip(x, offsets, flips, padding):
    p = padding
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    _, _, H, W = x.shape
    crops = [image[:, t : t + H, l : l + W] for image, (t, l) in zip(padded, offsets, strict=True)]
    flipped = [np.flip(c, 2) if f else c for c, f in zip(crops, flips, strict=True)]
    return np.array(flipped, x.dtype).reshape(x.shape)


@settings(deadline=None)
@given(
    shape=SIZES,
    padding=st.integers(0, 5),
    dtype=st.sampled_from([np.float32, np.float64, np.uint8]),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_crop_and_flip_is_the_obvious_loop(shape, padding, dtype, last, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 256, shape).astype(dtype)
    if last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    before = x.copy()
    offsets, flips = rng.integers(0, 2 * padding + 1, (shape[0], 2)), rng.random(shape[0]) < 0.5
    y = crop_and_flip(x, offsets, flips, padding=padding)
    np.testing.assert_array_equal(y, slow_crop_and_flip(x, offsets, flips, padding))
    assert y.dtype == dtype
    assert channels_last(y)
    assert not np.shares_memory(x, y)
    np.testing.assert_array_equal(x, before)


def test_the_middle_crop_is_the_image_itself():
    x = draw_images((3, 3, 8, 8))
    offsets = np.full((3, 2), 4)
    np.testing.assert_array_equal(crop_and_flip(x, offsets, np.zeros(3, bool)), x)
    np.testing.assert_array_equal(crop_and_flip(x, offsets, np.ones(3, bool)), x[..., ::-1])


@pytest.mark.parametrize(
    ("offsets", "flips", "message"),
    [
        (np.zeros((2, 2), int), np.zeros(3, bool), r"offsets are \(2, 2\) and flips \(3,\)"),
        (np.zeros((3, 1), int), np.zeros(3, bool), r"expected \(3, 2\) and \(3,\) for 3 images"),
        (np.zeros((3, 2), int), np.zeros(2, bool), r"expected \(3, 2\) and \(3,\) for 3 images"),
        (np.full((3, 2), 5), np.zeros(3, bool), "offsets run from 5 to 5; expected 0 to 4"),
        (np.full((3, 2), -1), np.zeros(3, bool), "offsets run from -1 to -1; expected 0 to 4"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(offsets, flips, message):
    with pytest.raises(ValueError, match=message):
        crop_and_flip(np.zeros((3, 1, 4, 4)), offsets, flips, padding=2)


def test_random_crops_use_every_offset_and_flip_alike():
    x = np.zeros((4000, 1, 5, 5), np.float32)
    x[:, 0, 2, 1] = 1  # where this point goes tells offset and flip
    y = RandomCropAndFlip(padding=1)(x, np.random.default_rng(0))
    counts = y.sum(axis=(0, 1))
    assert np.count_nonzero(counts) == 15  # 3 rows; columns 0-2 and, flipped, 2-4
    assert counts[:, 2].sum() == pytest.approx(4000 / 3, rel=0.1)
    assert counts[:, :2].sum() == pytest.approx(4000 / 3, rel=0.1)
    assert counts[1:4].sum(axis=1) == pytest.approx([4000 / 3] * 3, rel=0.1)


def test_random_crops_depend_on_the_generator_alone():
    x = draw_images((10, 3, 8, 8))
    first, second, other = (random_crop_and_flip(x, np.random.default_rng(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


# All in one pass


@settings(deadline=None)
@given(
    shape=SIZES,
    padding=st.integers(0, 5),
    dtype=st.sampled_from([np.float32, np.float64]),
    per_pixel_mean=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_one_pass_is_the_composition_to_the_last_bit(shape, padding, dtype, per_pixel_mean, seed):
    N, C, H, W = shape
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, shape, np.uint8)
    mean = rng.random((C, H, W) if per_pixel_mean else (C, 1, 1))
    std = rng.uniform(0.01, 1, (C, 1, 1))
    crops = RandomCropAndFlip(padding).draw(N, rng)
    x = normalized_crop_and_flip(images, *crops, mean, std, padding=padding, dtype=dtype)
    whole = crop_and_flip(normalize(images, mean, std, dtype=dtype), *crops, padding=padding)
    assert x.dtype == whole.dtype == dtype
    assert x.shape == whole.shape
    assert x.tobytes() == whole.tobytes()
    assert channels_last(x)


def test_one_pass_refuses_what_the_composition_refuses():
    offsets, flips = np.full((3, 2), 5), np.zeros(3, bool)
    with pytest.raises(ValueError, match="offsets run from 5 to 5; expected 0 to 4"):
        normalized_crop_and_flip(draw_images((3, 1, 4, 4)), offsets, flips, 0, 1, padding=2)
    with pytest.raises(ValueError, match=r"images are float64 .*; expected uint8 \(N, C, H, W\)"):
        normalized_crop_and_flip(np.zeros((3, 1, 4, 4)), offsets, flips, 0, 1)


# Colours


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_covariance_is_numpys(n, C, H, W, last):
    images = draw_images((n, C, H, W))
    colours = images.transpose(1, 0, 2, 3).reshape(C, -1) / 255
    if last:
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    expected = np.cov(colours, bias=True).reshape(C, C)
    np.testing.assert_allclose(colour_covariance(images), expected, atol=1e-14)


def test_covariance_of_what_has_none():
    with pytest.raises(ValueError, match="colour_covariance: got no images; expected at least one"):
        colour_covariance(draw_images((0, 3, 4, 4)))
    with pytest.raises(ValueError, match="colour_covariance: images are float64"):
        colour_covariance(np.zeros((2, 3, 4, 4)))


def make_jitter(deviation=0.1):
    """Make it for images whose channels depend on each other and are scaled differently."""
    images = draw_images((40, 3, 6, 6))
    images[:, 1] = images[:, 0] // 2 + images[:, 1] // 8
    images[:, 2] //= 3
    return ColourJitter(colour_covariance(images), channel_statistics(images)[1], deviation)


def test_colours_vary_as_alexnets():
    """Its formula: along each eigenvector, with deviation 0.1 times the eigenvalue."""
    jitter, n = make_jitter(), 100_000
    added = jitter(np.zeros((n, 3, 1, 1)), np.random.default_rng(0))[:, :, 0, 0]
    values, vectors = np.linalg.eigh(jitter.covariance)
    along = added * jitter.std.ravel() @ vectors  # in colours from 0 to 1, along each eigenvector
    expected = np.diag((0.1 * values) ** 2)
    noise = np.sqrt(2 / n) * np.outer(0.1 * values, 0.1 * values)
    assert (np.abs(along.T @ along / n - expected) < 5 * noise).all()
    assert (np.abs(along.mean(axis=0)) < 5 * 0.1 * values / np.sqrt(n)).all()


@settings(deadline=None)
@given(shape=SIZES, dtype=st.sampled_from([np.float32, np.float64]))
def test_a_whole_image_gets_one_colour(shape, dtype):
    N, _, H, W = shape
    x = np.random.default_rng(0).standard_normal((N, H, W, 3)).astype(dtype).transpose(0, 3, 1, 2)
    before = x.copy()
    y = make_jitter()(x, np.random.default_rng(1))
    added = y - x
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(added, added[:, :, :1, :1] + np.zeros_like(x), atol=tolerance)
    assert len(np.unique(added[:, 0, 0, 0])) == N  # each its own
    assert y.dtype == dtype
    assert channels_last(y)
    np.testing.assert_array_equal(x, before)


def test_no_deviation_changes_nothing():
    x = np.random.default_rng(0).standard_normal((5, 3, 4, 4), np.float32)
    np.testing.assert_array_equal(make_jitter(0.0)(x, np.random.default_rng(1)), x)


# Cutout


@settings(deadline=None)
@given(shape=SIZES, size=st.integers(1, 9), seed=st.integers(0, 99))
def test_cutout_hides_a_square(shape, size, seed):
    """All channels, nothing else, and of the square what lies in the image."""
    N, C, H, W = shape
    x = np.ascontiguousarray(np.ones((N, H, W, C), np.float32)).transpose(0, 3, 1, 2)
    y = Cutout(size)(x, np.random.default_rng(seed))
    corners = np.random.default_rng(seed).integers(0, (H, W), (N, 2)) - size // 2
    rows, columns = (
        (at[:, None] <= np.arange(n)) & (np.arange(n) < at[:, None] + size)
        for at, n in zip(corners.T, (H, W), strict=True)
    )
    hidden = rows[:, None, :, None] & columns[:, None, None, :]
    np.testing.assert_array_equal(y, np.where(hidden, 0, x))
    inside = (corners >= 0).all(axis=1) & (corners + size <= (H, W)).all(axis=1)
    assert ((y == 0).sum(axis=(1, 2, 3))[inside] == C * size**2).all()
    assert channels_last(y)
    assert (x == 1).all()


def test_cutouts_middle_is_anywhere():
    """A pixel is hidden as often as there are middles near it: at the borders less often."""
    n, size = 40_000, 3
    hidden = (Cutout(size)(np.ones((n, 1, 5, 6)), np.random.default_rng(0)) == 0).mean(axis=(0, 1))
    rows, columns = ([2, *[3] * (k - 2), 2] for k in (5, 6))
    expected = np.outer(rows, columns) / (5 * 6)
    np.testing.assert_allclose(hidden, expected, atol=5 * 0.5 / np.sqrt(n))


def test_what_is_hidden_has_the_mean_colour():
    images = draw_images((8, 3, 6, 6))
    mean, std = channel_statistics(images, per_pixel_mean=True)
    y = Cutout(20)(normalize(images, mean, std), np.random.default_rng(0))
    np.testing.assert_allclose(y * std + mean, np.broadcast_to(mean, y.shape), rtol=1e-6)
