"""Batches as a function of position; data sets, their parts, and random numbers by position."""

from __future__ import annotations

import gc
import threading
import time
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_cnn.data import (
    ColourJitter,
    Cutout,
    Dataset,
    Loader,
    RandomCropAndFlip,
    channel_statistics,
    colour_covariance,
    normalize,
    random_crop_and_flip,
    rng_at,
    split,
)

IDENTITY = np.zeros((3, 1, 1)), np.full((3, 1, 1), 1 / 255)


def make_dataset(n):
    """Make n images that can be told apart: the first pixel is the image's number, n <= 256."""
    images = np.random.default_rng(0).integers(0, 256, (n, 3, 4, 4), np.uint8)
    images[:, 0, 0, 0] = np.arange(n)
    return Dataset(images, np.arange(n) % 10, tuple("abcdefghij"), "numbers")


def make_loader(n=50, batch_size=8, **settings):
    return Loader(make_dataset(n), batch_size, **{"seed": 0, "normalize": IDENTITY} | settings)


def numbers(batches):
    return [x[:, 0, 0, 0].round().astype(int).tolist() for x, _ in batches]


def assert_same(ours, theirs):
    for (x, y), (u, v) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x, u)
        np.testing.assert_array_equal(y, v)


# Batches


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.booleans(), st.integers(0, 5))
def test_an_epoch_shows_every_image_once(n, batch_size, shuffle, epoch):
    loader = make_loader(n, batch_size, shuffle=shuffle)
    batches = numbers(loader.epoch(epoch))
    assert len(batches) == len(loader) == -(-n // batch_size)
    assert sorted(chain(*batches)) == list(range(n))
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_without_shuffling_the_order_is_kept():
    assert numbers(make_loader(5, 2, shuffle=False).epoch(3)) == [[0, 1], [2, 3], [4]]


def test_drop_last_leaves_the_short_batch_out():
    loader = make_loader(50, 8, drop_last=True)
    assert len(loader) == 6
    assert [len(batch) for batch in numbers(loader.epoch(0))] == [8] * 6
    assert len(make_loader(48, 8, drop_last=True)) == 6


def test_images_are_normalised_and_stay_with_their_labels():
    mean, std = np.full((3, 1, 1), 0.4), np.full((3, 1, 1), 0.2)
    for x, y in make_loader(normalize=(mean, std)).epoch(0):
        number = ((x[:, 0, 0, 0] * 0.2 + 0.4) * 255).round().astype(int)
        np.testing.assert_array_equal(number % 10, y)
        whole = make_dataset(50).images[number]
        np.testing.assert_array_equal(x, normalize(whole, mean, std))


@pytest.mark.parametrize("augment", [None, random_crop_and_flip])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_and_layout(augment, dtype):
    for x, y in make_loader(augment=augment, dtype=dtype).epoch(0):
        assert x.dtype == dtype
        assert x.transpose(0, 2, 3, 1).flags.c_contiguous
        assert y.dtype == np.int64


# Position


@settings(deadline=None)
@given(st.integers(0, 7), st.integers(0, 3))
def test_an_epoch_goes_on_from_any_batch(start, epoch):
    whole = list(make_loader(augment=random_crop_and_flip).epoch(epoch))
    rest = list(make_loader(augment=random_crop_and_flip).epoch(epoch, start=start))
    assert_same(whole[start:], rest)


def test_batches_do_not_depend_on_what_was_read_before():
    loader = make_loader(augment=random_crop_and_flip)
    expected = list(loader.epoch(2))
    first, second = loader.epoch(2), loader.epoch(2)
    list(loader.epoch(1))
    np.random.default_rng(0).random(10)
    next(second)
    assert_same(first, expected)
    assert_same(second, expected[1:])


def test_epochs_and_seeds_differ():
    orders = [numbers(make_loader(seed=seed).epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({str(order) for order in orders}) == 4


def test_each_batch_is_augmented_in_its_own_way():
    """Batches of the same image over and over differ, between batches and epochs."""
    images = np.repeat(make_dataset(1).images, 16, axis=0)
    same = Dataset(images, np.zeros(16, int), ("a",), "same")
    settings = dict(seed=0, normalize=IDENTITY, augment=random_crop_and_flip)
    loader = Loader(same, 8, **settings)
    batches = [x for epoch in (0, 1) for x, _ in loader.epoch(epoch)]
    assert len({x.tobytes() for x in batches}) == 4


def test_the_data_set_is_not_changed():
    loader = make_loader(augment=random_crop_and_flip)
    for x, y in loader.epoch(0):
        x[:], y[:] = 0, 0
    np.testing.assert_array_equal(loader.dataset.images, make_dataset(50).images)
    np.testing.assert_array_equal(loader.dataset.labels, make_dataset(50).labels)


@settings(deadline=None)
@given(st.integers(0, 7), st.booleans(), st.integers(0, 5), st.booleans())
def test_crops_and_flips_in_one_pass_change_no_bit(start, per_pixel_mean, padding, flip):
    """The loader normalises, crops and flips in one pass: as given as any other function."""
    augment = RandomCropAndFlip(padding, flip)
    statistics = channel_statistics(make_dataset(50).images, per_pixel_mean=per_pixel_mean)
    one_pass, step_by_step = (
        make_loader(normalize=statistics, augment=given).epoch(1, start=start)
        for given in (augment, lambda x, rng: augment(x, rng))
    )
    for (x, _), (u, _) in zip(one_pass, step_by_step, strict=True):
        assert x.tobytes() == u.tobytes()


def several(first):
    """List augmentations as a recipe does, but for the first of them."""
    images = make_dataset(50).images
    jitter = ColourJitter(colour_covariance(images), channel_statistics(images)[1])
    return [first, jitter, Cutout(2)]


def test_several_augmentations_follow_each_other():
    """Given one generator, each what the one before made; the first in one pass or not."""

    def composed(x, rng):
        for augment in several(random_crop_and_flip):
            x = augment(x, rng)
        return x

    stepwise = several(lambda x, rng: random_crop_and_flip(x, rng))
    expected = [x.tobytes() for x, _ in make_loader(augment=composed).epoch(1)]
    for augment in (several(random_crop_and_flip), stepwise):
        assert [x.tobytes() for x, _ in make_loader(augment=augment).epoch(1)] == expected


@settings(deadline=None)
@given(st.integers(0, 7), st.integers(0, 3))
def test_with_several_an_epoch_goes_on_from_any_batch(start, epoch):
    whole, rest = (
        list(make_loader(augment=several(random_crop_and_flip)).epoch(epoch, start=at))
        for at in (0, start)
    )
    assert_same(whole[start:], rest)


# The thread


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@settings(deadline=None)
@given(st.integers(0, 7), st.integers(0, 3), st.sampled_from([None, random_crop_and_flip]))
def test_prefetching_changes_nothing(start, epoch, augment):
    with_thread, without = (
        make_loader(augment=augment, prefetch=prefetch).epoch(epoch, start=start)
        for prefetch in (True, False)
    )
    assert_same(with_thread, without)
    assert not threads()


def record(calls):
    """Make an augmentation that notes which thread it ran in."""

    def augment(x, rng):
        calls.append(threading.current_thread())
        return x

    return augment


def test_the_next_batch_is_prepared_while_this_one_is_used():
    calls = []
    batches = make_loader(augment=record(calls)).epoch(0)
    next(batches)
    wait_until(lambda: len(calls) == 2)  # though nobody has asked for the second
    next(batches)
    wait_until(lambda: len(calls) == 3)
    batches.close()
    assert len(calls) == 3  # never more than one ahead
    assert threading.main_thread() not in calls


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_without_prefetching_there_is_no_thread():
    calls = []
    next(make_loader(augment=record(calls), prefetch=False).epoch(0))
    assert calls == [threading.main_thread()]
    assert not threads()


def test_no_thread_before_the_first_batch_and_none_after_the_last():
    batches = make_loader().epoch(0)
    assert not threads()
    next(batches)
    assert len(threads()) == 1
    list(batches)
    assert not threads()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_leaving_an_epoch_ends_the_thread(error):
    for _ in make_loader().epoch(0):
        break
    assert not threads()

    def leave():
        for _ in make_loader().epoch(0):
            raise error

    with pytest.raises(error):
        leave()
    gc.collect()  # the traceback held the epoch
    assert not threads()


def test_an_error_of_the_thread_surfaces_where_the_batch_is_asked_for():
    calls = []

    def augment(x, rng):
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("the third batch")
        return x

    batches = make_loader(augment=augment).epoch(0)
    next(batches)
    next(batches)
    with pytest.raises(ZeroDivisionError, match="the third batch"):
        next(batches)
    assert not threads()
    assert next(batches, None) is None


def test_waiting_is_counted(monkeypatch):
    clock = [0]
    monkeypatch.setattr("tinygrad_cnn.data.loader.time.perf_counter", lambda: clock[0])

    def augment(x, rng):
        clock[0] += 2
        return x

    loader = make_loader(augment=augment, prefetch=False)
    for number, _ in enumerate(loader.epoch(0)):
        clock[0] += 100  # using a batch is not waiting for one
        assert loader.waited == 2 * (number + 1)
    next(loader.epoch(1))
    assert loader.waited == 2 * len(loader) + 2  # it goes on from epoch to epoch


def test_waiting_for_the_thread_is_counted():
    loader = make_loader(augment=lambda x, rng: time.sleep(0.01) or x)
    next(loader.epoch(0))
    assert loader.waited >= 0.01


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "Loader: batch_size is 0; expected at least 1"),
        ({"batch_size": -3}, "Loader: batch_size is -3; expected at least 1"),
        ({"batch_size": 51, "drop_last": True}, "50 images make no batch of 51; lower batch_size"),
        ({"n": 0}, "0 images make no batch of 8"),
        ({"seed": -1}, "seed is -1; expected an integer, 0 or more"),
        ({"seed": 0.5}, "seed is 0.5; expected an integer, 0 or more"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        make_loader(**settings)


@pytest.mark.parametrize(("epoch", "start"), [(-1, 0), (0, -1), (0, 8)])
def test_bad_positions_are_refused_before_the_first_batch(epoch, start):
    with pytest.raises(ValueError, match=f"epoch {epoch} from batch {start}; .*from 0 to 7"):
        make_loader().epoch(epoch, start=start)


def test_the_end_of_an_epoch_is_a_position():
    assert list(make_loader().epoch(0, start=7)) == []


# Data sets


@settings(deadline=None)
@given(st.integers(2, 200), st.data())
def test_split_takes_the_set_apart(n, data):
    n_validation = data.draw(st.integers(1, n - 1))
    dataset = make_dataset(n)
    parts = split(dataset, n_validation, seed=3)
    assert [len(part) for part in parts] == [n - n_validation, n_validation]
    chosen = [part.images[:, 0, 0, 0].tolist() for part in parts]
    assert sorted(chain(*chosen)) == list(range(n))
    assert all(order == sorted(order) for order in chosen)
    for part, order in zip(parts, chosen, strict=True):
        np.testing.assert_array_equal(part.labels, dataset.labels[order])
        np.testing.assert_array_equal(part.images, dataset.images[order])
        assert (part.name, part.classes) == (dataset.name, dataset.classes)


def test_split_depends_on_the_seed_alone():
    first, second, other = (split(make_dataset(50), 9, seed=seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.images, second.images)
    assert (first.images != other.images).any()


@pytest.mark.parametrize("n_validation", [0, 50, -1])
def test_split_leaves_no_part_empty(n_validation):
    with pytest.raises(ValueError, match=f"hold out {n_validation} of 50 images; expected 1 to 49"):
        split(make_dataset(50), n_validation, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((2, 3, 4, 4))}, "images are float64"),
        ({"images": np.zeros((2, 48), np.uint8)}, r"images are uint8 \(2, 48\)"),
        ({"labels": np.zeros(3, np.int64)}, r"labels int64 \(3,\); expected .* int64 \(n,\)"),
        ({"labels": np.zeros(2, np.int32)}, r"labels int32 \(2,\)"),
        ({"labels": np.array([0, 2])}, "labels run from 0 to 2; expected 0 to 1 for 2 classes"),
        ({"labels": np.array([-1, 0])}, "labels run from -1 to 0; expected 0 to 1"),
    ],
)
def test_data_sets_that_do_not_fit_together_are_refused(changes, message):
    good = dict(images=np.zeros((2, 3, 4, 4), np.uint8), labels=np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=message):
        Dataset(**good | changes, classes=("a", "b"), name="bad")


def test_a_data_set_says_what_it_is():
    assert repr(make_dataset(7)) == "Dataset('numbers', 7 images 3x4x4, 10 classes)"


def test_a_subset_is_channels_last():
    subset = make_dataset(7).subset(np.array([6, 1]))
    assert subset.images[:, 0, 0, 0].tolist() == [6, 1]
    assert subset.images.transpose(0, 2, 3, 1).flags.c_contiguous


# Random numbers


def test_numbers_belong_to_their_place():
    places = [
        (0, "shuffle"),
        (1, "shuffle"),
        (0, "augment"),
        (0, "shuffle", 1),
        (0, "augment", 0, 1),
    ]
    drawn = [rng_at(*place).integers(0, 2**60) for place in places]
    assert len(set(drawn)) == len(places)
    assert drawn == [rng_at(*place).integers(0, 2**60) for place in places]


def test_numbers_are_those_of_numpy():
    expected = np.random.default_rng([7, 1, 5, 3]).random(4)
    np.testing.assert_array_equal(rng_at(7, "augment", 5, 3).random(4), expected)


def test_an_unknown_purpose_is_refused():
    with pytest.raises(ValueError, match="purpose is 'fun'; expected one of shuffle, augment"):
        rng_at(0, "fun")
