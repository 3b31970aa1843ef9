"""Your own pictures: a folder with a subfolder for each class."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import DataError, Dataset
from .image import read_image
from .randomness import rng_at

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
EXPECTED = "expected a subfolder of pictures for each class, at least two"


@dataclass(frozen=True)
class Listing:
    """What lies in a folder: each class's pictures in a fixed order, and how many other files."""

    pictures: dict[str, list[Path]]
    others: int


def image_folder(
    path: str | os.PathLike[str], *, size: int = 32, border: float = 0.0, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """Read pictures as (training set, test set) of images (n, 3, size, size).

    `path` has a subfolder for each class, or `train` and `test` with such subfolders; without
    them, a fifth of each class, drawn by `seed`, is the test set, and the name of both sets says
    so. The pictures are shuffled by `seed`: the first thousand are of all classes. They may lie
    deeper in a class's folder. Hidden files are passed over, files without a
    picture's suffix counted in the name; a picture that cannot be read is an error, so that no
    training goes on with less than its data unnoticed. `border` is read_image's.
    """
    root = Path(path).expanduser()
    parts, how = (root / "train", root / "test"), dict[str, Any](size=size, border=border)
    if all(part.is_dir() for part in parts):
        return _given_sets(root, *parts, how, seed=seed)
    found = list_pictures(root)
    name = _name(root, f"a fifth set aside by seed {seed}", _left_out(found.others))
    whole = _dataset(found, tuple(found.pictures), name, **how)
    aside = _fifth_of_each_class(whole.labels, seed)
    if not aside.any():
        raise DataError(f"{root} has one picture in each class; expected at least two, to test on")
    return _shuffled(whole, ~aside, seed), _shuffled(whole, aside, seed)


def list_pictures(root: Path) -> Listing:
    """Look for classes and their pictures, without opening any."""
    try:
        folders = [d for d in root.iterdir() if d.is_dir() and not d.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{root} cannot be read ({error.strerror}); {EXPECTED}") from error
    classes = sorted((_class_name(folder), folder) for folder in folders)
    files = {name: _visible_files(folder) for name, folder in classes}
    pictures = {c: [f for f in files[c] if f.suffix.lower() in SUFFIXES] for c in files}
    if len(classes) != len(pictures) or len(pictures) < 2:
        raise DataError(f"{root} has the classes {[c for c, _ in classes]}; {EXPECTED}")
    if empty := [name for name, found in pictures.items() if not found]:
        raise DataError(
            f"{root} has no pictures of {', '.join(empty)}; fill or remove what is empty "
            f"(pictures end in {', '.join(sorted(SUFFIXES))})"
        )
    return Listing(pictures, sum(map(len, files.values())) - sum(map(len, pictures.values())))


def _class_name(folder: Path) -> str:
    return unicodedata.normalize("NFC", folder.name)  # macOS writes é as e and an accent


def _visible_files(folder: Path) -> list[Path]:
    """List the files in a folder and below it in an order that no file system decides."""
    below = [(path.relative_to(folder), path) for path in folder.rglob("*") if path.is_file()]
    visible = [(p.parts, path) for p, path in below if not any(s[0] == "." for s in p.parts)]
    return [path for _, path in sorted(visible)]


def _given_sets(
    root: Path, train_folder: Path, test_folder: Path, how: dict[str, Any], *, seed: int
) -> tuple[Dataset, Dataset]:
    train, test = list_pictures(train_folder), list_pictures(test_folder)
    classes = tuple(train.pictures)
    if strange := test.pictures.keys() - train.pictures.keys():
        raise DataError(f"{test_folder} has {', '.join(sorted(strange))}, which train has not")
    name = _name(root, _left_out(train.others + test.others))
    sets = (_dataset(found, classes, name, **how) for found in (train, test))
    train_set, test_set = (_shuffled(part, np.ones(len(part), np.bool_), seed) for part in sets)
    return train_set, test_set


def _left_out(others: int) -> str:
    return f"{others} other files left out" if others else ""


def _name(root: Path, *notes: str) -> str:
    said = "; ".join(filter(None, notes))
    return f"folder:{root.resolve().name}" + (f" ({said})" if said else "")


def _dataset(
    found: Listing, classes: tuple[str, ...], name: str, *, size: int, border: float
) -> Dataset:
    paths = [path for pictures in found.pictures.values() for path in pictures]
    counts = [len(pictures) for pictures in found.pictures.values()]
    labels = np.repeat([classes.index(c) for c in found.pictures], counts)
    return Dataset(_decoded(paths, size, border), labels.astype(np.int64), classes, name)


def _decoded(paths: Sequence[Path], size: int, border: float) -> NDArray[np.uint8]:
    """Read all pictures, so that an error counts all that can't be read: (n, 3, size, size)."""
    from rich.progress import track

    images, bad = np.empty((len(paths), size, size, 3), np.uint8), []
    todo = track(paths, "reading pictures", transient=True, disable=not sys.stdout.isatty())
    for image, path in zip(images, todo, strict=True):
        try:
            image[:] = read_image(path, (3, size, size), border=border).transpose(1, 2, 0)
        except DataError as error:
            bad.append(error)
    if bad:
        raise DataError(f"{len(bad)} of {len(paths)} pictures are damaged; mend or remove {bad[0]}")
    return images.transpose(0, 3, 1, 2)


def _shuffled(dataset: Dataset, chosen: NDArray[np.bool_], seed: int) -> Dataset:
    return dataset.subset(rng_at(seed, "shuffle").permutation(np.flatnonzero(chosen)))


def _fifth_of_each_class(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Choose a fifth of each class; of two to five pictures, one."""
    rng, aside = rng_at(seed, "split"), np.zeros(len(labels), np.bool_)
    for label in range(labels.max() + 1):
        members = rng.permutation(np.flatnonzero(labels == label))
        aside[members[: max(len(members) // 5, int(len(members) > 1))]] = True
    return aside
