"""A folder with a subfolder for each class, as people have them."""

from __future__ import annotations

import os
import random
import unicodedata

import numpy as np
import pytest
from PIL import Image

from tinygrad_cnn import data
from tinygrad_cnn.data import DataError, image_folder

COLOURS = [(10, 0, 0), (0, 20, 0), (0, 0, 30), (40, 40, 0)]


def make(root, **classes):
    """Fill folders; a picture's colour tells class and number."""
    for label, (name, n) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(n):
            colour = tuple(np.add(COLOURS[label], i))
            Image.new("RGB", (40, 40), colour).save(root / name / f"{i}.png")
    return root


def colours(dataset):
    assert all(np.ptp(image, axis=(1, 2)).max() == 0 for image in dataset.images)
    return dataset.images[:, :, 0, 0].tolist()


def refusal(root):
    with pytest.raises(DataError) as caught:
        image_folder(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_fifth_of_each_class_is_set_aside(tmp_path):
    train, test = image_folder(make(tmp_path / "pets", cat=10, dog=15, emu=5))
    assert train.classes == test.classes == ("cat", "dog", "emu")
    assert np.bincount(train.labels).tolist() == [8, 12, 4]
    assert np.bincount(test.labels).tolist() == [2, 3, 1]
    assert train.name == test.name == "folder:pets (a fifth set aside by seed 0)"
    together = sorted(colours(train) + colours(test))
    assert together == sorted(
        np.add(COLOURS[c], i).tolist() for c, n in enumerate((10, 15, 5)) for i in range(n)
    )
    for dataset in (train, test):
        assert dataset.images.transpose(0, 2, 3, 1).flags.c_contiguous
        for colour, label in zip(colours(dataset), dataset.labels, strict=True):
            assert np.argmax(colour) == label


def test_the_seed_decides_which(tmp_path):
    make(tmp_path, cat=30, dog=30)
    sets = [colours(image_folder(tmp_path, seed=seed)[1]) for seed in (0, 0, 1)]
    assert sets[0] == sets[1] != sets[2]


@pytest.mark.parametrize("given", [False, True])
def test_the_first_pictures_are_of_all_classes(tmp_path, given):
    for part in ("train", "test") if given else (".",):
        make(tmp_path / part, cat=50, dog=50)
    for dataset in image_folder(tmp_path):
        assert set(dataset.labels[: len(dataset) // 2].tolist()) == {0, 1}


@pytest.mark.parametrize(("n", "aside"), [(1, 0), (2, 1), (4, 1), (9, 1), (10, 2)])
def test_small_classes(tmp_path, n, aside):
    train, test = image_folder(make(tmp_path, few=n, many=10))
    assert (train.labels == 0).sum() == n - aside
    assert (test.labels == 0).sum() == aside


def test_train_and_test_are_taken_as_they_are(tmp_path):
    make(tmp_path / "pets" / "train", cat=3, dog=2)
    make(tmp_path / "pets" / "test", cat=1, dog=4)
    train, test = image_folder(tmp_path / "pets")
    assert train.name == test.name == "folder:pets"
    assert np.bincount(train.labels).tolist() == [3, 2]
    assert np.bincount(test.labels).tolist() == [1, 4]


def test_a_test_set_may_lack_classes_but_not_have_others(tmp_path):
    make(tmp_path / "train", cat=1, dog=1, emu=1)
    make(tmp_path / "test", cat=2, emu=2)
    _, test = image_folder(tmp_path)
    assert sorted(test.labels) == [0, 0, 2, 2]
    make(tmp_path / "test", gnu=1)
    assert refusal(tmp_path) == f"{tmp_path / 'test'} has gnu, which train has not"


def test_a_class_may_be_called_train(tmp_path):
    train, _ = image_folder(make(tmp_path, bus=5, train=5))
    assert train.classes == ("bus", "train")


def test_pictures_may_lie_deeper(tmp_path):
    make(tmp_path, cat=3, dog=3)
    (tmp_path / "cat" / "big" / "old").mkdir(parents=True)
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "big" / "old" / "0.png")
    assert sum(len(part) for part in image_folder(tmp_path)) == 6


def test_the_order_is_not_the_file_systems(tmp_path, monkeypatch):
    make(tmp_path, cat=12, dog=12)
    expected = colours(image_folder(tmp_path)[0])
    scandir, listdir = os.scandir, os.listdir

    class Shuffled:
        def __init__(self, *args):
            with scandir(*args) as entries:
                self.entries = list(entries)
            random.shuffle(self.entries)

        __enter__ = __iter__ = lambda self: iter(self.entries)
        __exit__ = lambda self, *args: None  # noqa: E731

    monkeypatch.setattr(os, "scandir", Shuffled)
    monkeypatch.setattr(os, "listdir", lambda *args: random.sample(x := listdir(*args), len(x)))
    assert colours(image_folder(tmp_path)[0]) == expected


def test_names_in_any_alphabet(tmp_path):
    accent = unicodedata.normalize("NFD", "zèbre")  # as macOS writes it
    make(tmp_path / "mein Tierpark", **{accent: 2, "кошка": 2, "犬 (dog)": 2})
    train, _ = image_folder(tmp_path / "mein Tierpark")
    assert train.classes == ("zèbre", "кошка", "犬 (dog)")


@pytest.mark.skipif(os.name == "nt", reason="Windows and macOS may take them for one")
def test_two_ways_to_write_one_name(tmp_path):
    try:
        make(tmp_path, **{unicodedata.normalize(form, "zèbre"): 2 for form in ("NFC", "NFD")})
    except FileExistsError:
        pytest.skip("this file system takes them for one")
    assert "has the classes ['zèbre', 'zèbre']" in refusal(tmp_path)


def test_hidden_files_are_passed_over_and_others_counted(tmp_path):
    make(tmp_path / "pets", cat=2, dog=2)
    (tmp_path / "pets" / ".git").mkdir()
    (tmp_path / "pets" / "README.md").write_text("beside the classes")
    (tmp_path / "pets" / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "pets" / "dog" / "clip.mp4").write_bytes(b"x")
    train, _ = image_folder(tmp_path / "pets")
    assert train.classes == ("cat", "dog")
    assert train.name == "folder:pets (a fifth set aside by seed 0; 2 other files left out)"


def test_suffixes_in_capitals(tmp_path):
    make(tmp_path, cat=2, dog=2)
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "0.PNG")
    assert sum(len(part) for part in image_folder(tmp_path)) == 4


def test_other_sizes(tmp_path):
    train, test = image_folder(make(tmp_path, cat=2, dog=2), size=48)
    assert train.images.shape == test.images.shape == (2, 3, 48, 48)


# What cannot be used


def test_damaged_pictures_are_counted_and_the_first_is_named(tmp_path):
    make(tmp_path, cat=5, dog=5)
    for path in (tmp_path / "cat" / "3.png", tmp_path / "dog" / "1.png"):
        path.write_bytes(path.read_bytes()[:50])
    assert refusal(tmp_path).startswith(
        f"2 of 10 pictures are damaged; mend or remove {tmp_path / 'cat' / '3.png'} is no picture"
    )


@pytest.mark.parametrize("classes", [{}, {"cat": 3}])
def test_fewer_than_two_classes(tmp_path, classes):
    make(tmp_path, **classes)
    assert refusal(tmp_path) == (
        f"{tmp_path} has the classes {list(classes)}; expected a subfolder of pictures for each "
        f"class, at least two"
    )


def test_an_empty_class(tmp_path):
    make(tmp_path, cat=3, dog=3, emu=0)
    assert f"{tmp_path} has no pictures of emu; fill or remove what is empty" in refusal(tmp_path)


def test_one_picture_in_each_class(tmp_path):
    make(tmp_path, cat=1, dog=1)
    assert "has one picture in each class; expected at least two" in refusal(tmp_path)


def test_no_folder(tmp_path):
    assert "none cannot be read (No such file or directory); expected" in refusal(tmp_path / "none")
    (tmp_path / "file").touch()
    assert "file cannot be read (" in refusal(tmp_path / "file")


def test_open_data_reads_a_folder(tmp_path):
    make(tmp_path, cat=10, dog=10)
    train, test = data.open_data(f"folder:{tmp_path}", seed=3, size=8)
    assert (train.images.shape, test.images.shape) == ((16, 3, 8, 8), (4, 3, 8, 8))
    assert colours(test) == colours(image_folder(tmp_path, seed=3)[1])
