"""Kernels read and write inside of their arrays: beyond lie pages that nobody may touch."""

import os
import subprocess
import sys

import pytest

GUARDED = """
import ctypes
import mmap

import numpy as np

from tinygrad_cnn.backends import get
from tinygrad_cnn.backends.geometry import conv2d_settings, pool2d_settings
from tinygrad_cnn.backends.numba_backend import arrays, direct, winograd

PAGE, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
NUMBA, REFERENCE, rng = get("numba"), get("numpy"), np.random.default_rng(0)
at_the_end = True


def guarded(size, dtype=np.float32):
    # an array that ends where a forbidden page begins, or begins where one ends
    length = size * np.dtype(dtype).itemsize
    room = max(-(-length // PAGE), 1) * PAGE
    memory = mmap.mmap(-1, room + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for forbidden in address, address + PAGE + room:
        assert libc.mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(PAGE), 0) == 0
    return np.frombuffer(memory, dtype, size, PAGE + (room - length) * at_the_end)


def filled(*shape):
    a = guarded(int(np.prod(shape)))
    a[:] = rng.standard_normal(a.size)
    return a.reshape(shape)


def images(N, C, H, W):
    return filled(N, H, W, C).transpose(0, 3, 1, 2)


def run(kernel, *inputs, **at):
    arrays._scratch = arrays._scratch[:0]  # so that what is asked for is all there is
    return getattr(NUMBA, kernel)(*inputs, **at)


def convolve(N, C, O, H, W, k, stride, padding, dilation, groups):
    x, w = images(N, C, H, W), filled(O, C // groups, *k)
    at = conv2d_settings(
        x.shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    y = run("conv2d", x, w, **at)
    g, plus = images(*y.shape), images(*x.shape)
    run("conv2d_input_grad", g, w, x_shape=x.shape, **at)
    run("conv2d_input_grad", g, w, x_shape=x.shape, plus=plus, **at)
    run("conv2d_weight_grad", g, x, w_shape=w.shape, **at)
    bias = filled(O)
    added = run("conv2d", x, w, bias, g, relu=True, **at)
    for more, received in ((), y), ((bias, g), added):
        expected = REFERENCE.conv2d(x, w, *more, relu=len(more) > 0, **at)
        assert np.abs(received - expected).max() <= 3e-5 * np.abs(expected).max()


def pool(N, C, H, W, k, stride, padding):
    x = images(N, C, H, W)
    at = pool2d_settings(x.shape, k, stride, padding, op="pool")
    y, argmax = run("max_pool2d", x, **at)
    g = images(*y.shape)
    run("max_pool2d_grad", g, argmax, x_shape=x.shape, **at)
    run("avg_pool2d", x, **at)
    run("avg_pool2d_grad", g, x_shape=x.shape, **at)


def normalise(N, C, H, W):
    x, residual, g = (images(N, C, H, W) for _ in range(3))
    weight, bias = filled(C), filled(C)
    for added in None, residual:
        y, mean, var = run("batch_norm", x, weight, bias, added, eps=1e-5, relu=True)
        at = dict(mean=mean, var=var, y=y, eps=1e-5, training=True)
        at |= dict(residual=added is not None)
        run("batch_norm_grad", g, x, weight, bias, **at)
        run("batch_norm_grad", g, x, weight, bias, **at, plus=residual)
    for kernel, inputs in ("add", (x, g)), ("relu", (x,)), ("relu_grad", (g, x)):
        run(kernel, *inputs)


for module in arrays, direct, winograd:
    module.aligned = guarded
GROUPS = (16, 32, 1), (18, 16, 1), (48, 16, 1), (16, 64, 1), (3, 7, 1), (20, 33, 1)
GROUPS += (32, 32, 2), (32, 32, 32)
SIZES = (1, 1, 1, 1), (2, 5, 7, 1), (1, 3, 3, 0), (1, 2, 70, 3), (5, 14, 9, 1)
for at_the_end in True, False:
    for C, O, groups in GROUPS:
        for N, H, W, padding in SIZES:
            convolve(N, C, O, H, W, (3, 3), 1, padding, 1, groups)
        convolve(2, C, O, 9, 23, (3, 3), 2, 1, 1, groups)
        convolve(1, C, O, 12, 11, (5, 2), (3, 4), (4, 1), (2, 3), groups)
        convolve(3, C, O, 6, 5, (1, 1), 1, 0, 1, groups)
    for C in 1, 5, 16, 48:
        for size in (1, 1), (2, 7), (9, 8):
            pool(2, C, *size, 1, 2, 0)
            pool(2, C, *size, (2, 1), None, (1, 0))
            pool(1, C, *(n + 2 for n in size), 3, 2, 1)
            normalise(3, C, *size)
            normalise(64, C, *size)  # whole rows, whatever C
print("all inside")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as Linux has it")
def test_kernels_stay_inside_of_their_arrays():
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}  # its scratch memory then ends at a page
    command = [sys.executable, "-c", GUARDED]
    assert subprocess.check_output(command, env=environment, text=True) == "all inside\n"
