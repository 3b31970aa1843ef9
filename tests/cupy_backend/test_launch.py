"""What stands between a kernel and CuPy."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from cupy_backend import nvrtc

from tinygrad_cnn.backends.cupy_backend import launch
from tinygrad_cnn.backends.cupy_backend.launch import Launcher, Program


@pytest.fixture
def compiled(monkeypatch):
    """Give a launcher and the list of what it has compiled and launched."""
    monkeypatch.setattr(Program, "all", [])
    seen = []

    def raw_module(*, code, options, name_expressions):
        seen.append(name_expressions)
        run = lambda name: lambda *args, **more: seen.append((name, *args, more))  # noqa: E731
        return SimpleNamespace(get_function=run)

    return Launcher(raw_module), seen


def test_a_program_is_compiled_once_for_a_dtype(compiled):
    run, seen = compiled
    program = Program("pointwise.cu", "add<T>", "Tsub<T, 4>")
    for dtype in "float32", np.dtype("float32"), "float64", "float32":
        run(program, "Tsub<T, 4>", dtype, (1,), 32, ())
    assert [names for names in seen if isinstance(names[-1], str)] == [
        ("add<float>", "Tsub<float, 4>"),
        ("add<double>", "Tsub<double, 4>"),
    ]


def test_numbers_get_the_types_that_kernels_declare(compiled):
    run, seen = compiled
    array, struct = np.ones(2), np.array((1, 2), "i4,i4")
    args = (array, 3, 0.5, None, struct, np.float32(2))
    run(Program("pointwise.cu", "add<T>"), "add<T>", "float32", (5, 2), 64, args, shared=128)
    name, grid, block, passed, more = seen[-1]
    assert (name, grid, block, more) == ("add<float>", (5, 2), (64,), dict(shared_mem=128))
    kinds = [np.ndarray, np.int32, np.float64, type(None), np.ndarray, np.float32]
    assert [type(a) for a in passed] == kinds


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [((0,), 32, 0), ((1, 65536), 32, 0), ((1,), 1025, 0), ((1,), 32, 49153), ((2**31,), 32, 0)],
)
def test_a_launch_that_no_gpu_takes(compiled, grid, block, shared):
    """CuPy would make a grid of 0 one of 1."""
    run, seen = compiled
    program = Program("pointwise.cu", "add<T>")
    with pytest.raises(ValueError, match=re.escape(f"no GPU runs a grid of {grid} blocks of")):
        run(program, "add<T>", "float32", grid, block, (), shared=shared)
    assert not seen


def test_an_array_with_gaps_is_refused(compiled):
    run, _ = compiled
    with pytest.raises(ValueError, match=re.escape("given an array (3,) of strides (16,); copy")):
        run(Program("pointwise.cu", "add<T>"), "add<T>", "float64", (1,), 32, (np.ones(6)[::2],))


def test_an_integer_beyond_32_bits_is_refused(compiled):
    run, _ = compiled
    with pytest.raises(OverflowError):
        run(Program("pointwise.cu", "add<T>"), "add<T>", "float32", (1,), 32, (2**31,))


def test_headers_come_in_once_and_lines_keep_their_numbers(monkeypatch, tmp_path):
    files = {
        "main.cu": 'first\n#include "a.cuh"\n#include "b.cuh"\nfourth\n#include <system>',
        "a.cuh": '#include "b.cuh"\nin a',
        "b.cuh": "in b",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    assert launch.source("main.cu").split("\n") == [
        '#line 1 "main.cu"', "first", '#line 1 "a.cuh"', '#line 1 "b.cuh"', "in b",
        '#line 2 "a.cuh"', "in a", '#line 3 "main.cu"', "", "fourth", "#include <system>", "",
    ]  # fmt: skip


def test_the_kernels_are_shipped():
    """As package data; every file is one that a program or a header names."""
    files = {file.name for file in [*launch.FOLDER.glob("*.cu"), *launch.FOLDER.glob("*.cuh")]}
    named = {program.file for program in nvrtc.programs()}
    included = set(re.findall(r'#line 1 "(.+)"', "".join(map(launch.source, named))))
    assert files == included
