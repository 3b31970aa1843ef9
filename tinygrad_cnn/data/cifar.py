"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), read from the official python archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import safe_pickle
from .dataset import DataError, Dataset, channels_last
from .safe_pickle import Thing

PIXELS = 3 * 32 * 32
# The largest official file, CIFAR-100's unpacked archive, has 186 MB.
MAX_BYTES = 256 * 2**20

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse
    mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
    porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
    tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Archive:
    """Describe one official archive: where its files lie in it and their MD5 checksums."""

    name: str
    folder: str
    tar: str
    train: dict[str, str]
    test: dict[str, str]
    label_key: bytes
    classes: tuple[str, ...]


CIFAR10 = Archive(
    name="cifar10",
    folder="cifar-10-batches-py",
    tar="cifar-10-python.tar.gz",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    label_key=b"labels",
    classes=tuple(CIFAR10_CLASSES.split()),
)

CIFAR100 = Archive(
    name="cifar100",
    folder="cifar-100-python",
    tar="cifar-100-python.tar.gz",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    label_key=b"fine_labels",
    classes=tuple(CIFAR100_CLASSES.split()),
)


def cifar10(data_dir: str | os.PathLike[str] | None = None, *, train: bool = True) -> Dataset:
    """Load CIFAR-10: 50,000 training or 10,000 test images (n, 3, 32, 32) of ten classes.

    data_dir has cifar-10-batches-py or cifar-10-python.tar.gz in it, or is that folder itself;
    without it, it is data_folder(). The name of the result says whether the files are the official
    ones, by their MD5 checksums. Raises DataError where something is missing or wrong.
    """
    return _load(CIFAR10, data_dir, train)


def cifar100(data_dir: str | os.PathLike[str] | None = None, *, train: bool = True) -> Dataset:
    """Load CIFAR-100 with its 100 fine classes, as cifar10 does."""
    return _load(CIFAR100, data_dir, train)


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Say where data sets lie: `data_dir`, else TINYGRAD_CNN_DATA, else the user's cache."""
    if chosen := data_dir or os.environ.get("TINYGRAD_CNN_DATA"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinygrad_cnn"


def _load(archive: Archive, data_dir: str | os.PathLike[str] | None, train: bool) -> Dataset:
    checksums = archive.train if train else archive.test
    images, labels, found = [], [], []
    for path, raw in _files(archive, data_folder(data_dir), list(checksums)):
        rows, numbers = _parse(archive, path, raw)
        images.append(channels_last(rows.reshape(-1, 3, 32, 32)))
        labels.append(numbers)
        found.append(hashlib.md5(raw, usedforsecurity=False).hexdigest())
    official = found == list(checksums.values())
    return Dataset(
        channels_last(np.concatenate(images)),
        np.concatenate(labels),
        archive.classes,
        archive.name if official else f"{archive.name} (not the official files)",
    )


def _files(archive: Archive, root: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Find the files `names` under `root`, unpacked or not, and read one after the other."""
    for folder in (root / archive.folder, root):
        if all((folder / name).is_file() for name in names):
            return ((str(folder / name), _slurp(folder / name, open)) for name in names)
    if (root / archive.tar).is_file():
        return _members(root / archive.tar, [f"{archive.folder}/{name}" for name in names])
    raise DataError(
        f"{archive.name}: {root} has neither {archive.folder} (with {', '.join(names)}) nor "
        f"{archive.tar}; put the official python archive there, or say where it is with data_dir "
        f"or TINYGRAD_CNN_DATA"
    )


def _slurp(path: Path, opener: Callable[[Path, str], Any]) -> bytes:
    """Read a whole file, unless it is larger than any official one can be."""
    try:
        with opener(path, "rb") as file:
            raw: bytes = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, MemoryError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch the archive anew") from error
    if len(raw) > MAX_BYTES:
        raise DataError(f"{path} has more than {MAX_BYTES} bytes; fetch the archive anew")
    return raw


def _members(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Read the members `names` of a .tar.gz in memory: nothing is extracted, no path followed."""
    raw, places = _slurp(path, gzip.open), {}
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # would send the loop back for ever (CVE-2025-8194)
                    raise tarfile.ReadError("a member of negative size")
                places[member.name] = slice(member.offset_data, member.offset_data + member.size)
    except Exception as error:  # a damaged header makes other errors than TarError, too
        raise DataError(f"{path} is not a sound tar file; fetch the archive anew") from error
    if missing := [name for name in names if name not in places]:
        raise DataError(f"{path} has no {', '.join(missing)} in it; fetch the archive anew")
    return ((f"{path}:{name}", raw[places[name]]) for name in names)


def _parse(archive: Archive, path: str, raw: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read the rows of pixels (n, 3072) and the labels (n,) out of one file."""
    try:
        batch = safe_pickle.load(raw)
        if not isinstance(batch, dict) or not {b"data", archive.label_key} <= batch.keys():
            raise ValueError(f"it has no data and {archive.label_key.decode()}")
        rows = _rows(batch[b"data"])
        return rows, _labels(batch[archive.label_key], len(rows), len(archive.classes))
    except (pickle.UnpicklingError, ValueError) as error:
        raise DataError(
            f"{path} is not a {archive.name} file: {error}; fetch the archive anew"
        ) from error


def _rows(array: Any) -> NDArray[np.uint8]:
    match array:  # what NumPy's __reduce__ says: (version, shape, dtype, Fortran order?, bytes)
        case Thing(state=(_, (int(n), 3072), Thing(args=("u1" | b"u1", *_)), fortran, bytes(raw))):
            if len(raw) == n * PIXELS > 0:
                return np.frombuffer(raw, np.uint8).reshape(-1, PIXELS, order="FC"[not fortran])
    raise ValueError("its data is not a uint8 array (n, 3072)")


def _labels(labels: Any, n: int, classes: int) -> NDArray[np.int64]:
    if not isinstance(labels, list) or len(labels) != n:
        raise ValueError(f"its labels are not a list of {n}, one for each image")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise ValueError(f"its labels are not all integers from 0 to {classes - 1}")
    return np.array(labels, np.int64)
