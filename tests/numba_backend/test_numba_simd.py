"""The SIMD vocabulary: each word does to vectors what NumPy does to arrays."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit

from tinygrad_cnn.backends.numba_backend import host, norm
from tinygrad_cnn.backends.numba_backend.arrays import aligned
from tinygrad_cnn.backends.numba_backend.host import BROAD, LANES, ROWS, WIDTH
from tinygrad_cnn.backends.numba_backend.simd import (
    add_lines,
    add_product,
    add_stored,
    at_least,
    clear,
    copy,
    fence,
    fma,
    gather,
    load,
    load_inside,
    load_line,
    load_tile,
    maximum,
    prefetch,
    scatter,
    select_greater,
    splat,
    store,
    store_rows,
    stream_rows,
    tile_width,
    width_of,
    zero_tile,
)  # fmt: skip

RNG = np.random.default_rng(0)


def values(n):
    return RNG.standard_normal(n).astype(np.float32)


@njit
def arithmetic(a, b, out):
    x, y = load(a, 1), load(b, 2)
    store(out, 0, x + y)
    store(out, LANES, x - y)
    store(out, 2 * LANES, x * y)
    store(out, 3 * LANES, fma(x, y, splat(np.float32(0.5))))
    store(out, 4 * LANES, maximum(x, y))


def test_arithmetic_from_any_place():
    a, b, out = values(LANES + 1), values(LANES + 2), np.zeros(5 * LANES, np.float32)
    arithmetic(a, b, out)
    x, y = a[1:], b[2:]
    exact = np.float64(x) * y + 0.5
    expected = [x + y, x - y, x * y, exact.astype(np.float32), np.maximum(x, y)]
    np.testing.assert_array_equal(out.reshape(5, LANES), expected)


@njit
def take_maximum(a, b, out):
    store(out, 0, maximum(load(a, 0), load(b, 0)))


def test_maximum_gives_the_second_where_there_is_a_nan():
    a, b, out = (np.full(LANES, v, np.float32) for v in (np.nan, 2, 0))
    take_maximum(a, b, out)
    assert (out == 2).all()
    take_maximum(b, a, out)
    assert np.isnan(out).all()


@pytest.mark.parametrize("step", [1, 3, -1])
def test_gather_and_scatter(step):
    a = values(3 * LANES + 2)
    first = 2 if step > 0 else LANES + 1
    out = np.zeros_like(a)

    @njit
    def run(a, out):
        scatter(out, first - 1, step, gather(a, first, step))

    run(a, out)
    places = first + step * np.arange(LANES)
    np.testing.assert_array_equal(out[places - 1], a[places])
    assert np.count_nonzero(out) == LANES


@njit
def move(a, out):
    copy(out, 3, a, 1, 5)
    clear(out, 10, 4)
    prefetch(a, 0, 0)
    prefetch(out, 0, 1)


def test_copy_and_clear_touch_nothing_else():
    a, out = values(8), np.full(20, 7, np.float32)
    move(a, out)
    expected = np.full(20, 7, np.float32)
    expected[3:8], expected[10:14] = a[1:6], 0
    np.testing.assert_array_equal(out, expected)


@njit
def lines(a, step, first, size, n, out):
    inside = load_inside(a, 0, step, 4, first, size)
    store_rows(out, 0, LANES, add_lines(load_line(a, 0, step, 4), inside), n)


@pytest.mark.parametrize(("first", "size"), [(0, 4), (-2, 5), (1, 3), (3, 0), (-9, 4), (9, 4)])
def test_a_line_reads_zeros_outside(first, size):
    a, out = values(5 * LANES), np.full(4 * LANES, 7, np.float32)
    lines(a, LANES + 1, first, size, 3, out)
    rows = np.stack([a[r * (LANES + 1) :][:LANES] for r in range(4)])
    inside = [0 <= first + r < size for r in range(4)]
    expected = rows + rows * np.array(inside, np.float32)[:, None]
    expected[3] = 7  # only three vectors were to be written
    np.testing.assert_array_equal(out.reshape(4, LANES), expected)


@njit
def stream(a, out, n):
    stream_rows(out, 0, 2 * LANES, load_line(a, 0, LANES, 4), n)
    fence()


@pytest.mark.parametrize("n", [4, 3, 0, -1])
def test_a_streamed_line_is_a_stored_one(n):
    a, out = values(4 * LANES), aligned(8 * LANES)
    out[:] = 7
    stream(a, out, n)
    expected = np.full((4, 2, LANES), 7, np.float32)
    expected[: max(n, 0), 0] = a.reshape(4, LANES)[: max(n, 0)]
    np.testing.assert_array_equal(out, expected.reshape(-1))


@njit
def outside(a, size, out):
    store_rows(out, 0, LANES, load_inside(a, 10**15, 1, 2, size, size), 2)


def test_what_is_outside_is_not_read():
    out = np.full(2 * LANES, 7, np.float32)
    outside(values(1), 5, out)  # an address that no process has
    assert not out.any()


@njit
def product(like, a, row, step, b, depth, start, out, n):
    width = width_of(like)
    tile = load_tile(start, 0, width, like) if len(start) else like
    store_rows(out, 0, width, add_product(tile, a, 0, row, step, b, 0, width, depth), n)


@njit
def product_of_width(width, *args):
    if width == WIDTH:
        product(zero_tile(ROWS, WIDTH), *args)
    else:
        product(zero_tile(ROWS, BROAD), *args)


@njit
def added(a, n, out):
    tile = load_tile(a, 0, WIDTH, zero_tile(ROWS, WIDTH))
    store_rows(out, 0, WIDTH, add_stored(tile, a, 0, WIDTH, n), ROWS)


@pytest.mark.parametrize("n", sorted({0, 1, ROWS - 1, ROWS, ROWS + 3}))
def test_what_is_stored_is_added_to_a_tile(n):
    a, out = values((ROWS, WIDTH)), np.empty((ROWS, WIDTH), np.float32)
    added(a.ravel(), n, out.ravel())
    rows = np.arange(ROWS)[:, None]
    np.testing.assert_array_equal(out, a * np.where(rows < n, 2, 1).astype(np.float32))


@pytest.mark.parametrize("depth", [0, 1, 7, 100])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("width", sorted({WIDTH, BROAD}))
def test_a_tile_is_a_matrix_product(depth, transposed, accumulate, width):
    a, b = values((ROWS, depth)), values((depth, width))
    start = values(ROWS * width if accumulate else 0)
    out = np.full((ROWS, width), 7, np.float32)
    laid, steps = (a.T.copy(), (1, ROWS)) if transposed else (a, (depth, 1))
    product_of_width(width, laid.ravel(), *steps, b.ravel(), depth, start, out.ravel(), ROWS - 1)
    expected = np.float64(a) @ b + (start.reshape(ROWS, width) if accumulate else 0)
    np.testing.assert_allclose(out[:-1], expected[:-1], atol=1e-5)
    assert (out[-1] == 7).all()  # the row that was not to be written


@njit
def tiles(a, b, out):
    zero = zero_tile(2, BROAD)
    x, y = load_tile(a, 0, BROAD, zero), load_tile(b, 0, BROAD, zero)
    n = 2 * BROAD
    store_rows(out, 0, BROAD, x + y, 2)
    store_rows(out, n, BROAD, x - y, 2)
    store_rows(out, 2 * n, BROAD, x * y, 2)
    store_rows(out, 3 * n, BROAD, fma(x, y, x), 2)
    store_rows(out, 4 * n, BROAD, select_greater(x, y, x, zero), 2)
    store_rows(out, 5 * n, BROAD, at_least(x, np.float32(0.5)), 2)
    stream_rows(out, 6 * n, BROAD, x, 1)
    fence()


def test_words_do_to_a_tile_what_they_do_to_its_vectors():
    a, b, out = values(2 * BROAD), values(2 * BROAD), aligned(7 * 2 * BROAD)
    a[3], b[5], out[:] = np.nan, np.nan, 7
    tiles(a, b, out)
    x, y = np.float64(a), np.float64(b)
    expected = [a + b, a - b, a * b, x * y + x, np.where(a > b, a, 0), np.maximum(a, 0.5), a]
    expected = np.stack([np.float32(e) for e in expected])
    expected[6, BROAD:] = 7  # one row was to be written
    np.testing.assert_array_equal(out.reshape(7, -1), expected)


def test_a_tile_leaves_registers_free():
    assert 8 <= ROWS * WIDTH // LANES <= ROWS * BROAD // LANES <= host.REGISTERS // 2
    assert ROWS <= host.TALL < host.REGISTERS * LANES // WIDTH
    assert LANES % ROWS == 0
    assert WIDTH % LANES == 0
    assert norm.row_length(1) % norm.SPAN == 0


@pytest.mark.parametrize("channels", [WIDTH, 2 * WIDTH, 3 * WIDTH, 4 * WIDTH])
def test_tiles_cover_the_channels(channels):
    assert channels % tile_width(channels) == 0
    assert tile_width(channels) == (BROAD if channels % BROAD == 0 else WIDTH)


@pytest.mark.skipif(not host.ISA.startswith(("AVX", "SSE")), reason="the CPU is no x86-64")
@pytest.mark.parametrize(
    ("cpu", "expected"),
    [("haswell", "AVX 8"), ("nehalem", "SSE 4"), ("skylake-avx512", "AVX-512 16")],
)
def test_the_width_is_that_of_the_cpu_that_numba_compiles_for(cpu, expected):
    program = "from tinygrad_cnn.backends.numba_backend.host import ISA, LANES; print(ISA, LANES)"
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    output = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert output.strip() == expected
