"""Time convolutions here and in PyTorch: forward, gradients of the input (dX) and weights (dW).

    python benchmarks/layers.py                         # two to three minutes
    python benchmarks/layers.py --only 1x1              # the layers whose group or name has this
    python benchmarks/layers.py --avx2                  # without AVX-512 on either side
    python benchmarks/layers.py --backend cupy          # both sides on the GPU
    python benchmarks/layers.py --quick --out results   # a few images; tables and plots as files

Both sides get the same channels-last arrays. PyTorch runs conv2d and, for each gradient by itself,
aten.convolution_backward. Each result of either side is first compared with float64, and what is
off by more than 1e-4 of the largest value is not timed; the table says by how much ours is. GFLOP/s
count the multiplications of the direct convolution, so Winograd can pass the peak.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy
import typer
from device import ceilings, clock, limits, on_gpu, torch_device
from harness import (
    AVX2_ONLY,
    Avx2,
    BackendName,
    Call,
    Out,
    Quick,
    Rounds,
    Table,
    Timing,
    bars,
    check_equal,
    geometric_mean,
    interleave,
    milliseconds,
    progress,
    require_torch,
    restart_with,
)  # fmt: skip

import tinygrad_cnn as tg
from tinygrad_cnn.backends.base import Backend, nchw
from tinygrad_cnn.backends.geometry import conv2d_settings, output_size
from tinygrad_cnn.cli import run

TITLE = "Convolutions: ours (times PyTorch's speed)"
TOLERANCE = 1e-4  # of the largest value; Winograd's errors are 1e-5, a wrong tap's 1e-1


class Layer(NamedTuple):
    """A convolution: images, input channels and size, output channels, kernel, settings."""

    group: str
    name: str
    N: int
    C: int
    size: int
    O: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def out(self) -> int:
        """How many pixels the result is wide and high."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (self.size + 2 * self.padding - reach) // self.stride + 1


LAYERS = (
    Layer("3x3", "ResNet-20, 16@32", 128, 16, 32, 16, 3, padding=1),
    Layer("3x3", "ResNet-20, 32@16", 128, 32, 16, 32, 3, padding=1),
    Layer("3x3", "ResNet-20, 64@8", 128, 64, 8, 64, 3, padding=1),
    Layer("3x3", "64@56", 32, 64, 56, 64, 3, padding=1),
    Layer("3x3", "128@28", 32, 128, 28, 128, 3, padding=1),
    Layer("3x3", "256@14", 32, 256, 14, 256, 3, padding=1),
    Layer("3x3", "512@7", 32, 512, 7, 512, 3, padding=1),
    Layer("stride 2", "ResNet-20, 16@32 to 32", 128, 16, 32, 32, 3, stride=2, padding=1),
    Layer("stride 2", "ResNet-20, 32@16 to 64", 128, 32, 16, 64, 3, stride=2, padding=1),
    Layer("stride 2", "64@56 to 128", 32, 64, 56, 128, 3, stride=2, padding=1),
    Layer("stem", "ResNet-20, 3@32 to 16", 128, 3, 32, 16, 3, padding=1),
    Layer("stem", "7x7/2, 3@224 to 64", 32, 3, 224, 64, 7, stride=2, padding=3),
    Layer("1x1", "64@56 to 256", 32, 64, 56, 256, 1),
    Layer("1x1", "256@56 to 64", 32, 256, 56, 64, 1),
    Layer("1x1", "512@28 to 128", 32, 512, 28, 128, 1),
    Layer("1x1", "256@14 to 1024", 32, 256, 14, 1024, 1),
    Layer("AlexNet", "11x11/4, 3@227 to 96", 32, 3, 227, 96, 11, stride=4),
    Layer("AlexNet", "5x5, 96@27 to 256", 32, 96, 27, 256, 5, padding=2),
    Layer("AlexNet", "5x5, 2 groups", 32, 96, 27, 256, 5, padding=2, groups=2),
    Layer("other", "depthwise 3x3, 64@56", 32, 64, 56, 64, 3, padding=1, groups=64),
    Layer("other", "dilated 3x3, 64@28", 32, 64, 28, 64, 3, padding=2, dilation=2),
)


class Work(NamedTuple):
    """One result, computed by two sides and, to check them, in float64."""

    ours: Call
    theirs: Call
    exact: Call


# ---- convolutions ----


def images(shape: tuple[int, ...], rng: numpy.random.Generator) -> Any:
    """Draw channels-last images (N, C, H, W)."""
    N, C, H, W = shape
    return nchw(rng.standard_normal((N, H, W, C), "float32"))


def convolution(layer: Layer, backend: Backend, rng: numpy.random.Generator) -> dict[str, Work]:
    """Give the three passes of a convolution."""
    N, C, size, O, k = layer[2:7]
    settings = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    x = images((N, C, size, size), rng)
    w = rng.standard_normal((O, C // layer.groups, k, k), "float32")
    w /= math.sqrt(w[0].size)
    at = conv2d_settings(x.shape, w.shape, groups=layer.groups, **settings)
    pairs = {name: at[name] for name in ("stride", "padding", "dilation")}
    g = images((N, O, *output_size((size, size), kernel=(k, k), **pairs)), rng)
    device = torch_device(backend)
    theirs = torch_convolution(layer, x, w, g, device=device)
    exact = torch_convolution(layer, x, w, g, device=device, double=True)
    x, w, g = (backend.asarray(a) for a in (x, w, g))
    ours = {
        "forward": lambda: backend.conv2d(x, w, **at),
        "dX": lambda: backend.conv2d_input_grad(g, w, x_shape=x.shape, **at),
        "dW": lambda: backend.conv2d_weight_grad(g, x, w_shape=w.shape, **at),
    }
    return {name: Work(ours[name], theirs[name], exact[name]) for name in ours}


def torch_convolution(
    layer: Layer, x: Any, w: Any, g: Any, *, device: str = "cpu", double: bool = False
) -> dict[str, Call]:
    """Give PyTorch's passes, channels_last."""
    import torch

    dtype = torch.float64 if double else torch.float32
    x, w, g = (
        torch.from_numpy(a).to(device, dtype).contiguous(memory_format=torch.channels_last)
        for a in (x, w, g)
    )
    pairs = [[value] * 2 for value in (layer.stride, layer.padding, layer.dilation)]
    at = (*pairs, False, [0, 0], layer.groups)

    def backward(*mask: bool) -> Any:
        grads = torch.ops.aten.convolution_backward(g, x, w, None, *at, mask)
        return grads[mask.index(True)]

    return {
        "forward": lambda: torch.nn.functional.conv2d(x, w, None, *pairs, layer.groups),
        "dX": lambda: backward(True, False, False),
        "dW": lambda: backward(False, True, False),
    }


def gflop(layer: Layer) -> float:
    """Count a pass of the direct convolution, 2 for each multiplication and addition, in 1e9."""
    per_output = layer.C // layer.groups * layer.kernel**2
    return 2 * layer.N * layer.out**2 * layer.O * per_output / 1e9


def gigabytes(layer: Layer) -> float:
    """Count what a pass reads and writes at least: images, their results and weights, in 1e9."""
    N, C, size, O, k = layer[2:7]
    return 4 * (N * C * size**2 + N * O * layer.out**2 + O * C // layer.groups * k**2) / 1e9


def paths(layer: Layer, backend: Backend) -> str:
    """Name the algorithms of the three passes; once if they are the same."""
    x, w = (layer.N, layer.C, layer.size, layer.size), (
        layer.O, layer.C // layer.groups, layer.kernel, layer.kernel
    )  # fmt: skip
    settings = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    at = conv2d_settings(x, w, groups=layer.groups, **settings)
    pairs = {name: at[name] for name in ("stride", "padding", "dilation")}
    g = (layer.N, layer.O, *output_size(x[2:], kernel=w[2:], **pairs))
    found = [
        backend.choose("conv2d", shapes=(x, w), dtype="float32", **at),
        backend.choose("conv2d_input_grad", shapes=(g, w), dtype="float32", x_shape=x, **at),
        backend.choose("conv2d_weight_grad", shapes=(g, x), dtype="float32", w_shape=w, **at),
    ]
    return "/".join(dict.fromkeys(found))


# ---- measuring ----


def arrays(result: Any) -> list[Any]:
    """Give one or several results as NumPy arrays."""
    several = result if isinstance(result, list | tuple) else [result]
    several = [a.detach().cpu() if hasattr(a, "detach") else a for a in several]
    return [a.get() if hasattr(a, "get") else numpy.asarray(a) for a in several]  # get: CuPy's


def measure(
    work: Work, *, what: str, rounds: int, backend: Backend
) -> tuple[Timing, Timing, float]:
    """Check both sides, then time them: ours, theirs, and our largest error."""
    wanted = arrays(work.exact())
    error = 0.0
    for side, call in {"ours": work.ours, "PyTorch's": work.theirs}.items():
        found = zip(arrays(call()), wanted, strict=True)
        errors = [check_equal(a, b, tolerance=TOLERANCE, what=f"{what}, {side}") for a, b in found]
        error = max(errors) if side == "ours" else error
    sides = {"ours": work.ours, "theirs": work.theirs}
    timings = interleave(sides, rounds=rounds, clock=clock(backend))
    return timings["ours"], timings["theirs"], error


def cell(ours: Timing, theirs: Timing) -> str:
    """Write our median and how many times faster it is."""
    return f"{milliseconds(ours.median)} ({theirs.median / ours.median:.2f}x)"


def means(groups: Iterable[tuple[str, dict[str, float]]]) -> list[str]:
    """Write the geometric means by group and pass, a line for each group."""
    collected: dict[str, dict[str, list[float]]] = {}
    for group, ratios in groups:
        for name, ratio in ratios.items():
            collected.setdefault(group, {}).setdefault(name, []).append(ratio)
    lines = ["geometric means of PyTorch / ours:"]
    for group, passes in collected.items():
        values = [ratio for some in passes.values() for ratio in some]
        each = ", ".join(f"{name} {geometric_mean(some):.2f}" for name, some in passes.items())
        whole = f"{geometric_mean(values):.2f} (the smallest is {min(values):.2f})"
        lines.append(f"{group}: {each}; all passes {whole}")
    return lines


class Row(NamedTuple):
    """A layer's cells, and PyTorch's time in units of ours for each pass."""

    cells: list[str]
    ratios: dict[str, float]


def columns(backend: Backend) -> list[str]:
    """Name the columns; a GPU's have the roofline."""
    found = ["layer", "path", "forward, ms", "dX, ms", "dW, ms", "GFLOP/s forward, dX, dW"]
    roofline = ["GB/s forward, dX, dW", "of the nearer ceiling"] * on_gpu(backend)
    return [*found, *roofline, "error forward, dX, dW"]


def measured(layer: Layer, backend: Backend, rng: numpy.random.Generator, rounds: int) -> Row:
    """Measure a layer's three passes."""
    seconds, cells, errors, ratios = [], [], [], {}
    for name, work in convolution(layer, backend, rng).items():
        what = f"{layer.name} {name}"
        ours, theirs, error = measure(work, what=what, rounds=rounds, backend=backend)
        ratios[name] = theirs.median / ours.median
        cells.append(cell(ours, theirs))
        seconds.append(ours.median)
        errors.append(f"{error:.0e}")
    name = f"{layer.group}: {layer.name}, {layer.N} images"
    cells = [name, paths(layer, backend), *cells, *rates(layer, backend, seconds)]
    return Row([*cells, ", ".join(errors)], ratios)


def rates(layer: Layer, backend: Backend, seconds: Sequence[float]) -> list[str]:
    """Write GFLOP/s; of a GPU also GB/s, and the share of what the device can do at most."""
    operations, moved = gflop(layer), gigabytes(layer)
    cells = [", ".join(f"{operations / s:.0f}" for s in seconds)]
    if on_gpu(backend):
        most = ceilings(backend)
        least = 1e9 * max(operations / most.operations, moved / most.bytes)  # seconds
        cells.append(", ".join(f"{moved / s:.0f}" for s in seconds))
        cells.append(", ".join(f"{least / s:.0%}" for s in seconds))
    return cells


def convolutions(
    layers: Sequence[Layer], backend: Backend, rng: numpy.random.Generator, rounds: int, out: Out
) -> None:
    """Measure convolutions and show their table."""
    table = Table(TITLE, columns(backend))
    ratios = []
    for layer in progress(layers, "convolutions"):
        row = measured(layer, backend, rng, rounds)
        table.add(*row.cells)
        ratios.append(row.ratios)
    table.notes += notes(layers, ratios, backend, rounds)
    show(table, out, "layers", [layer.name for layer in layers], ratios)


def notes(
    layers: Sequence[Layer], ratios: Sequence[dict[str, float]], backend: Backend, rounds: int
) -> list[str]:
    """Say what the figures are, and their means."""
    return [
        f"n = {3 * rounds}; {limits(backend)}",
        "errors: against float64, of the largest value",
        *means((layer.group, row) for layer, row in zip(layers, ratios, strict=True)),
    ]


def show(
    table: Table, out: Out, name: str, labels: list[str], ratios: list[dict[str, float]]
) -> None:
    """Print a table; write it and its plot."""
    table.show()
    series = {key: [row[key] for row in ratios] for key in ratios[0]}
    table.save(out, name, lambda axes: bars(axes, labels, series, unit="PyTorch / ours"))


def main(
    backend: BackendName = "numba",
    rounds: Rounds = 5,
    batch_size: Annotated[int, typer.Option(help="Images in a batch; 0: as in the table.")] = 0,
    only: Annotated[str, typer.Option(help="Layers whose group or name contains this.")] = "",
    quick: Quick = False,
    avx2: Avx2 = False,
    out: Out = None,
) -> None:
    require_torch("layers.py")
    if avx2:
        restart_with(AVX2_ONLY)
    if quick:
        batch_size, rounds = batch_size or 4, min(rounds, 2)
    chosen, rng = tg.backends.get(backend), numpy.random.default_rng(0)
    layers = [
        layer._replace(N=batch_size or layer.N)
        for layer in LAYERS
        if only in layer.group + layer.name
    ]
    if not layers:
        raise ValueError(f"no layer with {only!r} in its group or name")
    convolutions(layers, chosen, rng, rounds, out)


if __name__ == "__main__":
    run(main)
