"""Time every kernel of the Backend protocol on every backend that runs here, at ResNet-20's sizes.

    python benchmarks/backends.py                       # a minute
    python benchmarks/backends.py --quick --out results # batches of 16; table and plot as files

numpy is the oracle: a kernel is timed only if its result is numpy's, to 5e-5 of the largest value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy
import typer
from harness import (
    Out,
    Quick,
    Rounds,
    Table,
    all_blas_threads,
    bars,
    check_equal,
    interleave,
    progress,
)

import tinygrad_cnn as tg
from tinygrad_cnn.backends.base import Array, Backend, nchw
from tinygrad_cnn.backends.geometry import conv2d_settings, pool2d_settings
from tinygrad_cnn.cli import run

TOLERANCE = 5e-5  # of the largest value: Winograd's weight gradient needs it
STAGES = ((16, 32), (32, 16), (64, 8))  # (channels, pixels) of ResNet-20's three stages
# What all the others are made with: no kernels themselves.
AROUND = {"asarray", "to_numpy", "synchronize", "choose", "empty", "zeros", "map"}


class Case(NamedTuple):
    """A kernel and what it is called with."""

    kernel: str
    size: str
    arrays: tuple[Any, ...]
    settings: dict[str, Any]


def kernels() -> set[str]:
    """Name the kernels of the protocol."""
    return {name for name in vars(Backend) if not name.startswith("_")} - AROUND


def cases(batch: int, rng: numpy.random.Generator) -> Iterator[Case]:
    """Yield every kernel, the convolutions at the sizes of all three stages."""

    def images(channels: int, pixels: int) -> Array:
        return nchw(rng.standard_normal((batch, pixels, pixels, channels), "float32"))

    for channels, pixels in STAGES:
        yield from convolutions(images(channels, pixels), images(channels, pixels), rng)
    x, g = images(16, 32), images(16, 32)
    yield from pools(images(64, 8), images(64, 4))
    yield from norms(x, g, rng)
    yield from elementwise(x, g)
    yield from rest(batch, rng)


def convolutions(x: Array, g: Array, rng: numpy.random.Generator) -> Iterator[Case]:
    """Yield a 3x3 convolution that keeps the size of x, and its gradients."""
    channels = x.shape[1]
    w = 0.1 * rng.standard_normal((channels, channels, 3, 3), "float32")
    at = conv2d_settings(x.shape, w.shape, stride=1, padding=1, dilation=1, groups=1)
    size = f"{channels}@{x.shape[2]}x{x.shape[3]}"
    yield Case("conv2d", size, (x, w), at)
    yield Case("conv2d_input_grad", size, (g, w), at | dict(x_shape=x.shape))
    yield Case("conv2d_weight_grad", size, (g, x), at | dict(w_shape=w.shape))


def pools(x: Array, g: Array) -> Iterator[Case]:
    """Yield pooling of x by 2x2, and its gradients."""
    at = pool2d_settings(x.shape, 2, 2, 0, op="pool")
    argmax = tg.backends.get("numpy").max_pool2d(x, **at)[1]
    size, back = f"{x.shape[1]}@{x.shape[2]}x{x.shape[3]}", at | dict(x_shape=x.shape)
    yield Case("max_pool2d", size, (x,), at)
    yield Case("max_pool2d_grad", size, (g, argmax), back)
    yield Case("max_pool2d_gather", size, (x, argmax), at)
    yield Case("avg_pool2d", size, (x,), at)
    yield Case("avg_pool2d_grad", size, (g,), back)


def norms(x: Array, g: Array, rng: numpy.random.Generator) -> Iterator[Case]:
    """Yield the normalisations of x; batch norm as a block ends, with residual and ReLU."""
    numpy_backend, size = tg.backends.get("numpy"), f"{x.shape[1]}@{x.shape[2]}x{x.shape[3]}"
    weight, bias = rng.uniform(0.5, 1.5, (2, x.shape[1])).astype("float32")
    y, mean, var = numpy_backend.batch_norm(x, weight, bias, g, eps=1e-5, relu=True)
    statistics = dict(mean=mean, var=var, y=y, eps=1e-5, training=True, residual=True)
    window = dict(size=5, alpha=1e-4, beta=0.75)
    scale = numpy_backend.local_response_norm(x, k=2.0, **window)[1]
    yield Case("batch_norm", size, (x, weight, bias, g), dict(eps=1e-5, relu=True))
    yield Case("batch_norm_grad", size, (g, x, weight, bias), statistics)
    average = dict(new=mean, momentum=0.1, scale=1.0)
    yield Case("running_average", f"{x.shape[1]} channels", (bias,), average)
    yield Case("local_response_norm", size, (x,), window | dict(k=2.0))
    yield Case("local_response_norm_grad", size, (g, x, scale), window)


def elementwise(x: Array, g: Array) -> Iterator[Case]:
    """Yield what is done value by value."""
    size = f"{x.shape[1]}@{x.shape[2]}x{x.shape[3]}"
    yield Case("add", size, (x, g), {})
    yield Case("relu", size, (x,), {})
    yield Case("relu_grad", size, (g, x), {})
    yield Case("erf", "64@8x8", (x.reshape(len(x), 64, 16, 16)[:, :, :8, :8],), {})


def rest(batch: int, rng: numpy.random.Generator) -> Iterator[Case]:
    """Yield loss, update and augmentation."""
    logits, targets = rng.standard_normal((batch, 10), "float32"), rng.integers(10, size=batch)
    p, g, velocity = rng.standard_normal((3, 64, 64, 3, 3), "float32")
    sgd = dict(lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=False)
    pixels = rng.integers(256, size=(batch, 3, 32, 32)).astype("uint8")
    offsets, flips = rng.integers(9, size=(batch, 2)), rng.integers(2, size=batch) == 1
    features, weights = rng.standard_normal((batch, 64), "float32"), p[:, :10, 0, 0]
    yield Case("matmul", "64 to 10", (features, weights), {})
    yield Case("softmax_cross_entropy", "10 classes", (logits, targets), dict(label_smoothing=0.0))
    yield Case("sgd_update", "64x64x3x3", (p, g, velocity), sgd)
    yield Case("crop_and_flip", "3@32x32", (pixels, offsets, flips), dict(padding=4))


def on(backend: Backend, case: Case) -> Case:
    """Move a case's arrays to a backend; each gets its own, for an update changes them."""

    def moved(value: Any) -> Any:
        return backend.asarray(value.copy("K")) if isinstance(value, numpy.ndarray) else value

    settings = {name: moved(value) for name, value in case.settings.items()}
    return case._replace(arrays=tuple(map(moved, case.arrays)), settings=settings)


def results(backend: Backend, case: Case) -> list[Array]:
    """Run a kernel once; give what it returns or, of an update, what it has changed."""
    case = on(backend, case)
    returned = getattr(backend, case.kernel)(*case.arrays, **case.settings)
    if returned is None:
        returned = case.arrays
    several = returned if isinstance(returned, tuple) else (returned,)
    return [backend.to_numpy(a) for a in several if a is not None]


def check(
    backend: Backend, case: Case, wanted: list[Array], *, tolerance: float = TOLERANCE
) -> None:
    """Raise Unequal unless a kernel's results are numpy's, to a part of the largest value."""
    found = results(backend, case)
    for a, b in zip(found, wanted, strict=True):
        check_equal(a, b, tolerance=tolerance, what=f"{case.kernel} {case.size} on {backend.name}")


def call(backend: Backend, case: Case) -> None:
    """Run a kernel to its end, numpy's with all threads of BLAS, as in a program without Numba."""
    with all_blas_threads() if backend.name == "numpy" else nullcontext():
        getattr(backend, case.kernel)(*case.arrays, **case.settings)
    backend.synchronize()


def path(backend: Backend, case: Case) -> str:
    """Name the algorithm that serves a case."""
    shapes = tuple(a.shape for a in case.arrays)
    return backend.choose(case.kernel, shapes=shapes, dtype=case.arrays[0].dtype, **case.settings)


def main(
    batch_size: int = 128,
    rounds: Rounds = 5,
    only: Annotated[str, typer.Option(help="Kernels whose names contain this.")] = "",
    quick: Quick = False,
    out: Out = None,
) -> None:
    if quick:
        batch_size, rounds = min(batch_size, 16), min(rounds, 2)
    usable = [name for name, reason in tg.available_backends().items() if reason is None]
    others = [tg.backends.get(name) for name in usable if name != "numpy"]
    numpy_backend = tg.backends.get("numpy")
    columns = ["kernel", "size", "numpy, ms"]
    for backend in others:
        columns += [f"{backend.name}, ms", "times numpy's speed", "path"]
    table = Table(f"Kernels, batch {batch_size}, float32, median of {3 * rounds} calls", columns)
    ratios: dict[str, list[float]] = {backend.name: [] for backend in others}
    chosen = [c for c in cases(batch_size, numpy.random.default_rng(0)) if only in c.kernel]
    for case in progress(chosen, "kernels"):
        wanted = results(numpy_backend, case)
        for backend in others:
            check(backend, case, wanted)
        sides = {b.name: partial(call, b, on(b, case)) for b in (numpy_backend, *others)}
        timings = {}
        for side in sides:  # one after the other: OpenBLAS's threads go on spinning after a product
            timings |= interleave({side: sides[side]}, rounds=rounds)
        cells = [case.kernel, case.size, timings["numpy"]]
        for backend in others:
            ratio = timings["numpy"].median / timings[backend.name].median
            ratios[backend.name].append(ratio)
            cells += [timings[backend.name], f"{ratio:.1f}", path(backend, case)]
        table.add(*cells)
    for name, reason in tg.available_backends().items():
        if reason is not None:
            table.notes.append(f"{name} can't run here: {reason.reason}")
    table.show()
    labels = [f"{case.kernel} {case.size}" for case in chosen]
    table.save(out, "backends", lambda axes: bars(axes, labels, ratios, unit="numpy / backend"))


if __name__ == "__main__":
    run(main)
