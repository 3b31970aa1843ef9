"""The CIFAR archives: read as they should be, and never anything but DataError for the rest."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import re
import struct
import tarfile
import tracemalloc
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_cnn.data import DataError, cifar, cifar10, cifar100, data_folder

FOLDER = "cifar-10-batches-py"
BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


class OfficialPickler(pickle._Pickler):
    """Write byte strings and NumPy's names as the Python 2 pickles of the official archives do."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, obj):
        short = len(obj) < 256
        self.write(b"U" + bytes([len(obj)]) if short else b"T" + struct.pack("<i", len(obj)))
        self.write(obj)
        self.memoize(obj)

    dispatch[bytes] = save_bytes

    def save_global(self, obj, name=None):
        if getattr(obj, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch[type(print)] = save_global


def official(batch: Any) -> bytes:
    file = io.BytesIO()
    OfficialPickler(file, protocol=2).dump(batch)
    return file.getvalue()


def make_batch(n: int = 2, *, seed: int = 0, **changes: Any) -> dict[bytes, Any]:
    rng = np.random.default_rng(seed)
    batch = {
        b"batch_label": b"testing batch 1 of 1",
        b"labels": rng.integers(0, 10, n).tolist(),
        b"data": rng.integers(0, 256, (n, 3072), np.uint8),
        b"filenames": [b"a.png"] * n,
    }
    return batch | {key.encode(): value for key, value in changes.items()}


def write_test_batch(root: Path, raw: bytes) -> Path:
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    (root / FOLDER / "test_batch").write_bytes(raw)
    return root


def make_tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return buffer.getvalue()


def write_tar(root: Path, packed: bytes) -> Path:
    root.mkdir(exist_ok=True)
    (root / "cifar-10-python.tar.gz").write_bytes(packed)
    return root


def assert_one_sentence(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 600


@pytest.fixture(scope="module")
def training_files() -> dict[str, bytes]:
    return {name: official(make_batch(3, seed=i)) for i, name in enumerate(BATCHES)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give one folder for all the examples of a fuzz test."""
    return tmp_path_factory.mktemp("fuzz")


# What is read


def test_training_set_is_the_five_batches_in_order(tmp_path, training_files):
    (tmp_path / FOLDER).mkdir()
    for name, raw in training_files.items():
        (tmp_path / FOLDER / name).write_bytes(raw)
    dataset = cifar10(tmp_path)
    batches = [make_batch(3, seed=i) for i in range(5)]
    rows = np.concatenate([batch[b"data"] for batch in batches])
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int64
    np.testing.assert_array_equal(dataset.images, rows.reshape(15, 3, 32, 32))
    np.testing.assert_array_equal(dataset.labels, np.concatenate([b[b"labels"] for b in batches]))
    assert dataset.images.transpose(0, 2, 3, 1).flags.c_contiguous
    assert dataset.images.flags.writeable
    assert dataset.classes[3] == "cat"
    assert dataset.name == "cifar10 (not the official files)"


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_python_3_pickles_are_read_too(tmp_path, protocol, n):
    batch = make_batch(n)
    dataset = cifar10(write_test_batch(tmp_path, pickle.dumps(batch, protocol)), train=False)
    np.testing.assert_array_equal(dataset.images, batch[b"data"].reshape(n, 3, 32, 32))
    np.testing.assert_array_equal(dataset.labels, batch[b"labels"])


def test_an_array_in_fortran_order_is_read(tmp_path):
    batch = make_batch(4)
    raw = official(batch | {b"data": np.asfortranarray(batch[b"data"])})
    dataset = cifar10(write_test_batch(tmp_path, raw), train=False)
    np.testing.assert_array_equal(dataset.images, batch[b"data"].reshape(4, 3, 32, 32))


def test_cifar100_takes_the_fine_labels(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    batch = make_batch(3, fine_labels=[99, 0, 47], coarse_labels=[1, 2, 3])
    (tmp_path / "cifar-100-python" / "test").write_bytes(official(batch))
    dataset = cifar100(tmp_path, train=False)
    assert dataset.labels.tolist() == [99, 0, 47]
    assert [dataset.classes[i] for i in dataset.labels] == ["worm", "apple", "maple_tree"]


def test_class_names():
    assert len(set(cifar.CIFAR10.classes)) == 10
    assert len(set(cifar.CIFAR100.classes)) == 100
    assert list(cifar.CIFAR100.classes) == sorted(cifar.CIFAR100.classes)


def test_official_files_are_known_by_their_checksum(tmp_path, monkeypatch):
    raw = official(make_batch())
    write_test_batch(tmp_path, raw)
    monkeypatch.setitem(cifar.CIFAR10.test, "test_batch", hashlib.md5(raw).hexdigest())
    assert cifar10(tmp_path, train=False).name == "cifar10"


# Where it is looked for


def test_the_folder_itself_will_do(tmp_path):
    write_test_batch(tmp_path, official(make_batch()))
    assert len(cifar10(tmp_path / FOLDER, train=False)) == 2


def test_the_tar_is_read_without_extraction(tmp_path, training_files):
    members = {f"{FOLDER}/{name}": raw for name, raw in training_files.items()}
    write_tar(tmp_path, gzip.compress(make_tar({"../evil": b"x", "/evil": b"x", **members})))
    assert len(cifar10(tmp_path)) == 15
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


def test_an_incomplete_folder_gives_way_to_the_tar(tmp_path, training_files):
    members = {f"{FOLDER}/{name}": raw for name, raw in training_files.items()}
    write_tar(tmp_path, gzip.compress(make_tar(members)))
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / BATCHES[0]).write_bytes(b"half extract")
    assert len(cifar10(tmp_path)) == 15


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYGRAD_CNN_DATA", raising=False)
    assert data_folder() == tmp_path / "cache" / "tinygrad_cnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path.home() / ".cache" / "tinygrad_cnn"
    monkeypatch.setenv("TINYGRAD_CNN_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    assert data_folder("~/elsewhere") == Path.home() / "elsewhere"


def test_the_environment_is_read_at_the_call(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYGRAD_CNN_DATA", str(write_test_batch(tmp_path, official(make_batch()))))
    assert len(cifar10(train=False)) == 2


def test_nothing_found_says_where_what_and_what_to_do(tmp_path):
    with pytest.raises(DataError) as caught:
        cifar10(tmp_path / "nowhere")
    for word in (str(tmp_path / "nowhere"), *BATCHES, "cifar-10-python.tar.gz", "data_dir"):
        assert word in str(caught.value)
    assert isinstance(caught.value, RuntimeError)
    assert_one_sentence(caught.value)


# Foreign files


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "it has no data and labels"),
        ({}, "it has no data and labels"),
        (make_batch() | {b"labels": None}, "labels are not a list of 2"),
        (make_batch(labels=[1]), "labels are not a list of 2"),
        (make_batch(labels=np.arange(2)), "labels are not a list of 2"),
        (make_batch(labels=[0, 10]), "not all integers from 0 to 9"),
        (make_batch(labels=[0, -1]), "not all integers from 0 to 9"),
        (make_batch(labels=[0, 1.0]), "not all integers from 0 to 9"),
        (make_batch(labels=[0, True]), "not all integers from 0 to 9"),
        (make_batch(labels=[0, b"1"]), "not all integers from 0 to 9"),
        (make_batch(data=None), r"not a uint8 array \(n, 3072\)"),
        (make_batch(data=[[0] * 3072] * 2), r"not a uint8 array"),
        (make_batch(data=np.zeros((2, 3071), np.uint8)), r"not a uint8 array"),
        (make_batch(data=np.zeros((2, 3, 32, 32), np.uint8)), r"not a uint8 array"),
        (make_batch(data=np.zeros((2, 3072), np.int8)), r"not a uint8 array"),
        (make_batch(data=np.zeros((2, 3072), np.float32)), r"not a uint8 array"),
        (make_batch(data=np.full((2, 3072), None)), r"not a uint8 array"),
        (make_batch(0), r"not a uint8 array"),
        ({"data": 1, "labels": 2}, "it has a str for a name"),
        (make_batch(extra={1, 2}), "names 'builtins.set', which is refused"),
        (make_batch(extra=np.float64(1)), "multiarray.scalar', which is refused"),
    ],
)
def test_foreign_files_are_refused(tmp_path, batch, message):
    path = write_test_batch(tmp_path, pickle.dumps(batch, 3)) / FOLDER / "test_batch"
    sentence = f"{re.escape(str(path))} is not a cifar10 file: .*{message}.*; fetch"
    with pytest.raises(DataError, match=sentence) as caught:
        cifar10(tmp_path, train=False)
    assert_one_sentence(caught.value)


def test_a_shape_that_the_pixels_do_not_fill_is_refused(tmp_path):
    shape = b"K\x02M\x00\x0c\x86"  # (2, 3072)
    assert official(make_batch()).count(shape) == 1
    raw = official(make_batch()).replace(shape, b"K\x03M\x00\x0c\x86")
    with pytest.raises(DataError, match=r"its data is not a uint8 array \(n, 3072\)"):
        cifar10(write_test_batch(tmp_path, raw), train=False)


def test_a_cifar100_file_is_no_cifar10_file(tmp_path):
    batch = make_batch(fine_labels=[1, 2])
    del batch[b"labels"]
    with pytest.raises(DataError, match="it has no data and labels"):
        cifar10(write_test_batch(tmp_path, official(batch)), train=False)


def test_a_file_of_any_size_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "MAX_BYTES", 2**20)
    write_test_batch(tmp_path, b"")
    os.truncate(tmp_path / FOLDER / "test_batch", 2**40)  # sparse: takes no room
    with pytest.raises(DataError, match="test_batch has more than 1048576 bytes"):
        cifar10(tmp_path, train=False)


def test_a_decompression_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "MAX_BYTES", 2**20)
    write_tar(tmp_path, gzip.compress(bytes(2**24)))
    with pytest.raises(DataError, match=r"tar\.gz has more than 1048576 bytes"):
        cifar10(tmp_path)


@pytest.mark.parametrize("members", [1, 64])
def test_a_bomb_takes_no_more_memory_than_is_allowed(tmp_path, monkeypatch, members):
    """A gzip file may be many in a row, each within the bound."""
    monkeypatch.setattr(cifar, "MAX_BYTES", 2**20)
    write_tar(tmp_path, members * gzip.compress(bytes(2**26 // members)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="has more than 1048576 bytes"):
            cifar10(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    write_test_batch(tmp_path, b"")

    def refuse(*args: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"test_batch cannot be read \(.*Permission denied\)"):
        cifar10(tmp_path, train=False)


# Hostile files


class Evil:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("inside", [False, True])
def test_a_pickle_that_would_make_a_file_makes_none(tmp_path, protocol, inside):
    trace = tmp_path / "trace"
    evil = Evil(open, str(trace), "w")
    raw = pickle.dumps(make_batch(filenames=[evil]) if inside else evil, protocol)
    with pytest.raises(DataError) as caught:
        cifar10(write_test_batch(tmp_path, raw), train=False)
    assert not trace.exists()
    assert_one_sentence(caught.value)
    if 2 <= protocol <= 4:
        assert f"it names '{open.__module__}.open', which is refused" in str(caught.value)


def test_a_pickle_inside_a_pickle_stays_bytes(tmp_path):
    trace = tmp_path / "trace"
    inner = pickle.dumps(Evil(open, str(trace), "w"), 2)
    for nested in (inner, pickle.dumps(inner, 2), gzip.compress(inner)):
        raw = official(make_batch(filenames=[nested, nested]) | {nested[:40]: nested})
        assert len(cifar10(write_test_batch(tmp_path, raw), train=False)) == 2
    assert not trace.exists()


@pytest.mark.parametrize("place", ["data", "labels"])
def test_a_pickle_in_place_of_what_is_wanted_is_refused(tmp_path, place):
    trace = tmp_path / "trace"
    inner = pickle.dumps(Evil(open, str(trace), "w"), 2)
    raw = official(make_batch(**{place: inner}))
    with pytest.raises(DataError, match="test_batch is not a cifar10 file"):
        cifar10(write_test_batch(tmp_path, raw), train=False)
    assert not trace.exists()


# Pickles by hand: c names a global, ( marks, t makes a tuple, R calls, b sets a state, . stops.
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
HOSTILE = {
    "a command": b"cos\nsystem\n(U\x04echo\x85R.",
    "a command, named by two strings": b"\x80\x04\x8c\x05posix\x8c\x06system\x93U\x04echo\x85R.",
    "an attribute of an allowed module": b"cnumpy\nload\nU\x01x\x85R.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
    "an instance": b"(ios\nsystem\n.",
    "a class made anew": b"cnumpy\nndarray\n)\x81.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a persistent id": b"Pid\n.",
    "a long name": b"c" + b"x" * 300_000 + b"\n" + b"y" * 300_000 + b"\n.",
    "a name with line ends": b"\x80\x04\x8c\x04a\nb\x0a\x8c\x03c\nd\x93.",
    "another codec": b"c_codecs\nencode\nX\x01\x00\x00\x00aU\x05idnax\x86R.",
    "a call of a number": b"K\x01)R.",
    "a state for a number": b"K\x01}b.",
    "a state for a global": b"cnumpy\nndarray\nU\x01xb.",
    "attributes for a global": b"cnumpy\nndarray\nN}U\x08__call__K\x01s\x86b.",
    "an array without a state": RECONSTRUCT + b")R.",
    "a huge array": RECONSTRUCT + b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01b\x87R.",
    "a huge memo index": b"Nr\xff\xff\xff\x7f.",
    "a huge byte string": b"B\xff\xff\xff\xff.",
    "a huge string": b"T\xff\xff\xff\x7f.",
    "a string of negative length": b"T\xff\xff\xff\xff.",
    "a huge buffer": b"\x96" + struct.pack("<Q", 2**30) + b".",
    "huge bytes": b"\x8e" + struct.pack("<Q", 2**62) + b".",
    "a huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
    "a deep tuple as a key": b"})" + b"\x85" * 300_000 + b"Ns.",
    "a deep tuple as data": b"}U\x04data)" + b"\x85" * 300_000 + b"sU\x06labels]s.",
    "a deep tuple as labels": b"}U\x06labels)" + b"\x85" * 300_000 + b"sU\x04data)s.",
    "a list in itself": b"]q\x00h\x00a.",
    "an unknown memo index": b"h\x07.",
    "no stop": b"N",
    "nothing": b"",
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, raw):
    write_test_batch(tmp_path, raw)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="test_batch is not a cifar10 file") as caught:
            cifar10(tmp_path, train=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_one_sentence(caught.value)
    assert peak < cifar.MAX_BYTES + 2**28


def test_hostile_pickles_leave_no_mark(tmp_path):
    for raw in HOSTILE.values():
        if len(raw) < 1000:
            with pytest.raises(DataError):
                cifar10(write_test_batch(tmp_path, raw), train=False)
    assert len(cifar10(write_test_batch(tmp_path, official(make_batch())), train=False)) == 2


# Damaged files


def places(raw: bytes, spare: slice) -> st.SearchStrategy[int]:
    """Draw positions in `raw`, of those in `spare` only every hundredth."""
    everywhere = range(len(raw))
    return st.sampled_from([*everywhere[: spare.start], *everywhere[spare][::100],
                            *everywhere[spare.stop :]])  # fmt: skip


def damaged(raw: bytes, spare: slice = slice(0, 0)) -> st.SearchStrategy[bytes]:
    """Flip, cut, repeat, swap or insert bytes of `raw`, up to three times."""
    place, kind, noise = places(raw, spare), st.sampled_from("cdrsof"), st.binary(max_size=4)
    return st.lists(st.tuples(kind, place, place, noise), min_size=1, max_size=3).map(
        lambda strokes: reduce(damage, strokes, raw)
    )


def damage(raw: bytes, stroke: tuple[str, int, int, bytes]) -> bytes:
    kind, i, j, noise = stroke
    i, j = min(i, j), max(i, j)
    match kind:
        case "c":
            return raw[:i]  # cut
        case "d":
            return raw[:i] + raw[j:]  # drop
        case "r":
            return raw[:j] + raw[i:]  # repeat
        case "s":
            return raw[:i] + raw[j : j + 9] + raw[i + 9 : j] + raw[i : i + 9] + raw[j + 9 :]  # swap
        case "o":
            return raw[:i] + noise + raw[i + len(noise) :]  # overwrite
    return raw[:i] + bytes(b ^ 1 << j % 8 for b in raw[i : i + 1]) + raw[i + 1 :]  # flip


def assert_read_or_refused(root: Path) -> None:
    try:
        dataset = cifar10(root, train=False)
    except DataError as error:
        assert_one_sentence(error)
    else:
        assert dataset.images.shape[1:] == (3, 32, 32)
        assert dataset.labels.shape == dataset.images.shape[:1]


BATCH = official(make_batch())
PIXELS = slice(BATCH.index(make_batch()[b"data"].tobytes()), len(BATCH) - 100)
TAR = make_tar({f"{FOLDER}/readme": b"", f"{FOLDER}/test_batch": BATCH})
BOTH = make_tar({f"{FOLDER}/{name}": BATCH for name in (*BATCHES, "test_batch")})


@settings(max_examples=400, deadline=None)
@given(raw=damaged(BATCH, PIXELS))
def test_a_damaged_batch_is_read_or_refused(folder, raw):
    assert_read_or_refused(write_test_batch(folder / "batch", raw))


@settings(max_examples=200, deadline=None)
@given(tar=damaged(TAR, slice(1536, len(TAR))))
def test_a_damaged_tar_is_read_or_refused(folder, tar):
    assert_read_or_refused(write_tar(folder, gzip.compress(tar, 1)))


GZ = gzip.compress(TAR)


@settings(max_examples=100, deadline=None)
@given(raw=damaged(GZ, slice(50, len(GZ) - 50)))
def test_a_damaged_gzip_is_read_or_refused(folder, raw):
    assert_read_or_refused(write_tar(folder, raw))


FINE = official(make_batch(fine_labels=[5, 99], coarse_labels=[1, 2]))


@settings(max_examples=100, deadline=None)
@given(raw=damaged(FINE, slice(FINE.index(make_batch()[b"data"].tobytes()), len(FINE) - 200)))
def test_a_damaged_cifar100_file_is_read_or_refused(folder, raw):
    (folder / "cifar-100-python").mkdir(exist_ok=True)
    (folder / "cifar-100-python" / "test").write_bytes(raw)
    try:
        dataset = cifar100(folder, train=False)
    except DataError as error:
        assert_one_sentence(error)
    else:
        assert dataset.labels.shape == dataset.images.shape[:1]


def test_swapped_files_are_read_and_not_taken_for_the_official_ones(
    tmp_path, training_files, monkeypatch
):
    sums = {name: hashlib.md5(raw).hexdigest() for name, raw in training_files.items()}
    monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, train=sums))
    (tmp_path / FOLDER).mkdir()
    for name, raw in training_files.items():
        (tmp_path / FOLDER / name).write_bytes(raw)
    assert cifar10(tmp_path).name == "cifar10"
    one, other = (tmp_path / FOLDER / name for name in BATCHES[:2])
    one.write_bytes(training_files[BATCHES[1]])
    other.write_bytes(training_files[BATCHES[0]])
    assert cifar10(tmp_path).name == "cifar10 (not the official files)"


@settings(max_examples=60, deadline=None)
@given(tar=damaged(BOTH, slice(2000, len(BOTH) - 2000)))
def test_both_sets_of_a_damaged_tar_are_read_or_refused(folder, tar):
    write_tar(folder / "both", gzip.compress(tar, 1))
    try:
        train, test = cifar.train_and_test(cifar.CIFAR10, folder / "both")
    except DataError as error:
        assert_one_sentence(error)
    else:
        assert train.images.shape[1:] == test.images.shape[1:] == (3, 32, 32)


@pytest.mark.parametrize("cut", [0, 1, 100, len(BATCH) // 2, len(BATCH) - 1])
def test_a_truncated_batch_is_refused(tmp_path, cut):
    with pytest.raises(DataError, match="test_batch is not a cifar10 file"):
        cifar10(write_test_batch(tmp_path, BATCH[:cut]), train=False)


@pytest.mark.parametrize(
    ("tar", "message"),
    [
        (make_tar({}), "has no cifar-10-batches-py/test_batch in it"),
        (make_tar({"./test_batch": BATCH, "test_batch": BATCH}), "has no cifar-10-batches-py/test"),
        (b"not a tar" * 100, "is not a sound tar file"),
        (gzip.compress(TAR), "is not a sound tar file"),
        (TAR[:700], "has no cifar-10-batches-py/test_batch in it|is not a sound tar file"),
    ],
)
def test_tars_without_the_file(tmp_path, tar, message):
    with pytest.raises(DataError, match=message) as caught:
        cifar10(write_tar(tmp_path, gzip.compress(tar)), train=False)
    assert_one_sentence(caught.value)


def test_a_member_of_negative_size_does_not_hang(tmp_path):
    member = tarfile.TarInfo(f"{FOLDER}/test_batch")
    member.size = -512
    write_tar(tmp_path, gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(4096)))
    with pytest.raises(DataError, match="is not a sound tar file"):
        cifar10(tmp_path, train=False)


def test_a_link_out_of_the_tar_is_not_followed(tmp_path):
    buffer = io.BytesIO()
    write_test_batch(tmp_path, BATCH)
    (tmp_path / FOLDER / "test_batch").rename(tmp_path / "secret")
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(f"{FOLDER}/test_batch")
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        tar.addfile(member)
    with pytest.raises(DataError, match="cut short or damaged"):
        cifar10(write_tar(tmp_path, gzip.compress(buffer.getvalue())), train=False)


# The real thing


@pytest.mark.parametrize(("train", "n"), [(True, 50_000), (False, 10_000)])
def test_real_cifar10(real_cifar10, train, n):
    dataset = cifar10(real_cifar10, train=train)
    assert dataset.images.shape == (n, 3, 32, 32)
    assert np.bincount(dataset.labels).tolist() == [n // 10] * 10
    means = dataset.images.mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=0.005)
    assert dataset.name in ("cifar10", "cifar10 (not the official files)")
