"""CIFAR-10 and CIFAR-100, read from the official python archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import safe_pickle
from .archives import CIFAR10, CIFAR100, Archive
from .dataset import DataError, Dataset, channels_last
from .safe_pickle import Thing

PIXELS = 3 * 32 * 32
# The largest official file, CIFAR-100's unpacked archive, has 186 MB.
MAX_BYTES = 256 * 2**20


def cifar10(data_dir: str | os.PathLike[str] | None = None, *, train: bool = True) -> Dataset:
    """Load CIFAR-10: 50,000 training or 10,000 test images (n, 3, 32, 32) of ten classes.

    data_dir has cifar-10-batches-py or cifar-10-python.tar.gz in it, or is that folder itself;
    without it, it is data_folder(). The name of the result says whether the files are the official
    ones, by their MD5 checksums. Raises DataError where something is missing or wrong.
    """
    return _read(CIFAR10, data_dir, CIFAR10.train if train else CIFAR10.test)[0]


def cifar100(data_dir: str | os.PathLike[str] | None = None, *, train: bool = True) -> Dataset:
    """Load CIFAR-100 with its 100 fine classes, as cifar10 does."""
    return _read(CIFAR100, data_dir, CIFAR100.train if train else CIFAR100.test)[0]


def train_and_test(
    archive: Archive, data_dir: str | os.PathLike[str] | None = None
) -> tuple[Dataset, Dataset]:
    """Load both sets of an archive; one that is packed is unpacked only once."""
    train, test = _read(archive, data_dir, archive.train, archive.test)
    return train, test


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Say where data sets lie: `data_dir`, else TINYGRAD_CNN_DATA, else the user's cache."""
    if chosen := data_dir or os.environ.get("TINYGRAD_CNN_DATA"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinygrad_cnn"


def where(archive: Archive, data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Say in which folder or .tar.gz an archive's files lie, if they do."""
    return _where(archive, data_folder(data_dir), [*archive.train, *archive.test])


def verify(archive: Archive, data_dir: str | os.PathLike[str] | None = None) -> dict[str, bool]:
    """Say of each file of an archive whether its MD5 checksum is the official one."""
    official = archive.train | archive.test
    files = _files(archive, data_folder(data_dir), list(official))
    return {
        name: _md5(raw) == official[name] for name, (_, raw) in zip(official, files, strict=True)
    }


def _md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()


def _where(archive: Archive, root: Path, names: list[str]) -> Path | None:
    for folder in (root / archive.folder, root):
        if all((folder / name).is_file() for name in names):
            return folder
    return root / archive.tar if (root / archive.tar).is_file() else None


def _read(
    archive: Archive, data_dir: str | os.PathLike[str] | None, *parts: dict[str, str]
) -> list[Dataset]:
    """Read sets of images; each part maps the files of one to their MD5 checksums."""
    files = _files(archive, data_folder(data_dir), [name for part in parts for name in part])
    return [_dataset(archive, part, islice(files, len(part))) for part in parts]


def _dataset(
    archive: Archive, checksums: dict[str, str], files: Iterable[tuple[str, bytes]]
) -> Dataset:
    images, labels, found = [], [], []
    for path, raw in files:
        rows, numbers = _parse(archive, path, raw)
        images.append(channels_last(rows.reshape(-1, 3, 32, 32)))
        labels.append(numbers)
        found.append(_md5(raw))
    official = found == list(checksums.values())
    return Dataset(
        channels_last(np.concatenate(images)),
        np.concatenate(labels),
        archive.classes,
        archive.name if official else f"{archive.name} (not the official files)",
    )


def _files(archive: Archive, root: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Find the files `names` under `root`, unpacked or not, and read one after the other."""
    match _where(archive, root, names):
        case None:
            raise DataError(
                f"{archive.name}: {root} has neither {archive.folder} (with {', '.join(names)}) "
                f"nor {archive.tar}; fetch it by `tinygrad-cnn data {archive.name} --download`, "
                f"put the official python archive there, or say where it is with data_dir or "
                f"TINYGRAD_CNN_DATA"
            )
        case place if place.is_dir():
            return ((str(place / name), _slurp(place / name, open)) for name in names)
        case tar:
            return read_members(tar, [f"{archive.folder}/{name}" for name in names])


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


def read_members(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
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
