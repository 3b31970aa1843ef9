"""Checkpoint files: what is saved is read; what is damaged is named, whatever the damage."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as serialize

from tinygrad_cnn import atomic
from tinygrad_cnn.train import CheckpointError, checkpoint
from tinygrad_cnn.train.folder import RunFolder

ARRAYS = {
    "model.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "model.bias": np.array([-0.0, np.inf, np.nan]),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5),
}
FACTS = {"step": 7, "history": [{"epoch": 1, "lr": 0.1 + 0.2}], "name": 'Grüße \u2028 \\ " %'}

BYTES = {name: a.tobytes() for name, a in ARRAYS.items()}


@pytest.fixture
def path(tmp_path):
    checkpoint.save(tmp_path / "last.safetensors", ARRAYS, FACTS)
    return tmp_path / "last.safetensors"


def test_what_is_saved_is_read(path):
    arrays, facts = checkpoint.load(path)
    assert facts == FACTS
    assert arrays.keys() == ARRAYS.keys()
    for name, a in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (a.dtype, a.shape)
        assert arrays[name].tobytes() == a.tobytes()


def test_equal_states_give_equal_files(path):
    again = path.with_name("again.safetensors")
    shuffled = dict(random.Random(3).sample(list(ARRAYS.items()), len(ARRAYS)))
    checkpoint.save(again, dict(sorted(shuffled.items())), FACTS)
    checkpoint.save(path, dict(sorted(ARRAYS.items())), FACTS)
    assert again.read_bytes() == path.read_bytes()


def test_strides_do_not_matter(path):
    strided = np.zeros((4, 3, 2), np.float32).transpose(2, 1, 0)
    strided[...] = ARRAYS["model.weight"]
    checkpoint.save(path, {"a": strided[:, ::2]}, {})
    np.testing.assert_array_equal(checkpoint.load(path)[0]["a"], ARRAYS["model.weight"][:, ::2])


def test_the_library_reads_it_too(path):
    from safetensors.numpy import load_file

    assert load_file(path).keys() == ARRAYS.keys()


# ---- damage ----


def read_whole_or_refuse(path, content):
    """Check that a file is refused in a sentence that names it, or else has lost nothing."""
    path.write_bytes(content)
    refusal = None
    try:
        arrays, facts = checkpoint.load(path)
    except CheckpointError as error:
        refusal = str(error)
    if refusal is None:  # a space in the header, say
        assert facts == FACTS
        assert {n: a.tobytes() for n, a in arrays.items()} == BYTES
    else:
        assert refusal.startswith(str(path))
        assert len(refusal) < 500 + len(str(path))


def damaged(content, draw):
    """Flip, cut, insert, swap or overwrite bytes."""
    i, j = sorted(draw(st.integers(0, len(content))) for _ in range(2))
    some = draw(st.binary(min_size=1, max_size=9))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "swap", "overwrite", "middle"]))
    return {
        "flip": content[: i - 1] + bytes([content[i - 1] ^ 1 << draw(st.integers(0, 7))])
        + content[i:] if i else some,
        "cut": content[:i],
        "insert": content[:i] + some + content[i:],
        "swap": content[i:j] + content[:i] + content[j:],
        "overwrite": content[:i] + some + content[i + len(some) :],
        "middle": content[:i] + content[j:],
    }[kind]  # fmt: skip


@given(st.data())
def test_damage_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "last.safetensors"
    checkpoint.save(path, ARRAYS, FACTS)
    read_whole_or_refuse(path, damaged(path.read_bytes(), data.draw))


def test_every_single_bit_counts(path):
    """One bit of each byte, all through the file."""
    whole, rng = path.read_bytes(), random.Random(0)
    for i in range(len(whole)):
        flipped = bytearray(whole)
        flipped[i] ^= 1 << rng.randrange(8)
        read_whole_or_refuse(path, bytes(flipped))


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**40, 2**63, 2**64 - 1])
def test_absurd_header_lengths_allocate_nothing(path, length):
    whole = path.read_bytes()
    path.write_bytes(struct.pack("<Q", length) + whole[8:])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
            checkpoint.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 8, b"PK\x03\x04", b'{"model": 1}', bytes(range(256)) * 10]
)
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
        checkpoint.load(path)


def test_an_array_under_anothers_name_is_noticed(path):
    """Arrays of one shape, swapped, with all else as it was."""
    a, b = np.zeros(3), np.ones(3)
    checkpoint.save(path, {"a": a, "b": b}, {})
    entry = checkpoint._read(path)[1]
    path.write_bytes(serialize({"a": b, "b": a}, {checkpoint.ENTRY: entry}))
    with pytest.raises(CheckpointError, match="is damaged: a has changed"):
        checkpoint.load(path)
    path.write_bytes(serialize({"a": a}, {checkpoint.ENTRY: entry}))
    with pytest.raises(CheckpointError, match="is damaged: b has changed"):
        checkpoint.load(path)
    path.write_bytes(serialize({"a": a, "b": b, "c": a}, {checkpoint.ENTRY: entry}))
    with pytest.raises(CheckpointError, match="is damaged: the list of arrays has changed"):
        checkpoint.load(path)


def test_safetensors_of_others_are_no_checkpoints(path):
    path.write_bytes(serialize(ARRAYS, {"format": "pt"}))
    with pytest.raises(CheckpointError, match="holds arrays, but is no checkpoint of tinygrad_cnn"):
        checkpoint.load(path)


def test_another_format_is_named(path):
    text = json.dumps({"format": 9, "facts": {}, "sha256": {}})
    entry = f"{hashlib.sha256(text.encode()).hexdigest()} {text}"
    path.write_bytes(serialize({}, {checkpoint.ENTRY: entry}))
    with pytest.raises(CheckpointError, match="has format 9; this version reads format 1"):
        checkpoint.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors: there is no such file"):
        checkpoint.load(tmp_path / "none.safetensors")


# ---- the newest two ----


class Killed(BaseException):
    """What SIGKILL would do, as far as a test in the same process can."""


@pytest.mark.parametrize("moment", range(12))
def test_killed_at_any_moment_a_whole_one_is_left(tmp_path, monkeypatch, moment):
    """Each call of the system that changes something may be the last one that happens."""
    folder, calls = RunFolder(tmp_path), 0

    def or_die(call):
        def counted(*args, **settings):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return call(*args, **settings)

        return counted

    checkpoint.save(folder.last, ARRAYS, {"step": 0})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", or_die(Path.replace))
        patch.setattr(Path, "unlink", lambda *args, **settings: None)  # the dead don't tidy up
        patch.setattr(atomic.os, "fsync", or_die(atomic.os.fsync))
        saved = 0
        try:
            for saved in range(1, 4):
                checkpoint.save(folder.last, ARRAYS, {"step": saved}, keep=folder.previous)
        except Killed:
            saved -= 1
    _, facts = folder.recover()
    assert facts["step"] in (saved, saved + 1)
    checkpoint.save(folder.last, ARRAYS, {"step": 99}, keep=folder.previous)
    assert folder.recover()[1]["step"] == 99
    assert not list(tmp_path.glob("*.part"))


def test_a_failed_write_leaves_nothing_behind(path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, ARRAYS, {"step": 8}, keep=path.with_name("previous.safetensors"))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_damaged_one_is_named_and_the_one_before_it_used(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    assert folder.recover() is None
    for step in (1, 2):
        checkpoint.save(folder.last, ARRAYS, {"step": step}, keep=folder.previous)
    assert folder.recover()[1] == {"step": 2}
    assert capsys.readouterr().err == ""
    folder.last.write_bytes(folder.last.read_bytes()[:-1])
    assert folder.recover()[1] == {"step": 1}
    told = capsys.readouterr().err
    assert told.startswith(f"{folder.last} is damaged")
    assert told.endswith("; going on from the one before it\n")
    assert told.count("\n") == 1
    assert not folder.last.exists()
    folder.previous.write_bytes(b"")
    with pytest.raises(CheckpointError, match="has no whole checkpoint left; start again"):
        folder.recover()
