"""Time pools and norms, which do little but pass over memory, here and in PyTorch.

    python benchmarks/memory_passes.py                       # half a minute
    python benchmarks/memory_passes.py --only norm --avx2    # without AVX-512 on either side
    python benchmarks/memory_passes.py --quick --out results # a few images; table, plot as files

Ours does batch norm, the residual's addition and the ReLU in one op; PyTorch does three, as its
users write them, and runs their gradients by autograd. Checked against float64 as in layers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy
import typer
from harness import (
    AVX2_ONLY,
    Avx2,
    BackendName,
    Call,
    Out,
    Quick,
    Rounds,
    Table,
    progress,
    require_torch,
    restart_with,
)
from layers import Work, cell, images, means, measure, show

import tinygrad_cnn as tg
from tinygrad_cnn.backends.base import Backend
from tinygrad_cnn.backends.geometry import pool2d_settings
from tinygrad_cnn.cli import run


class Op(NamedTuple):
    """A pool or a norm: what it does to images (N, C, size, size), here and in PyTorch."""

    group: str
    name: str
    N: int
    C: int
    size: int
    works: Callable[..., dict[str, Work]]


def pool(kind: str, kernel: int, stride: int, padding: int) -> Callable[..., dict[str, Work]]:
    """Give the two passes of a pool."""

    def works(x: Any, backend: Backend, rng: numpy.random.Generator) -> dict[str, Work]:
        import torch

        at = pool2d_settings(x.shape, kernel, stride, padding, op=kind)
        forward, backward = getattr(backend, kind), getattr(backend, f"{kind}_grad")
        result = forward(x, **at)
        y, argmax = result if isinstance(result, tuple) else (result, None)
        g = images(y.shape, rng)
        saved = (g,) if argmax is None else (g, argmax)
        call = getattr(torch.nn.functional, kind)
        theirs, exact = (
            torch_passes(lambda v: call(v, kernel, stride, padding), [x], g, double=double)
            for double in (False, True)
        )
        return {
            "forward": Work(lambda: first(forward(x, **at)), theirs[0], exact[0]),
            "backward": Work(
                lambda: [backward(*saved, x_shape=x.shape, **at)], theirs[1], exact[1]
            ),
        }

    return works


def norm(*, residual: bool) -> Callable[..., dict[str, Work]]:
    """Give the two passes of batch norm in training with ReLU, and a residual before that."""

    def works(x: Any, backend: Backend, rng: numpy.random.Generator) -> dict[str, Work]:
        weight, bias = rng.uniform(0.5, 1.5, (2, x.shape[1])).astype("float32")
        rest = images(x.shape, rng) if residual else None
        y, mean, var = backend.batch_norm(x, weight, bias, rest, eps=1e-5, relu=True)
        back = dict(mean=mean, var=var, y=y, eps=1e-5, training=True, residual=residual)
        inputs = [x, weight, bias] + [rest] * residual
        g = images(x.shape, rng)
        before_relu = torch_passes(norm_and_add, inputs, g, double=True)[0]().detach().numpy()
        g[abs(before_relu) < 1e-4] = 0  # which side of 0 it falls on there is a matter of rounding
        theirs, exact = (torch_passes(norm_and_relu, inputs, g, double=d) for d in (False, True))
        return {
            "forward": Work(
                lambda: first(backend.batch_norm(x, weight, bias, rest, eps=1e-5, relu=True)),
                theirs[0], exact[0],
            ),
            "backward": Work(
                lambda: backend.batch_norm_grad(g, x, weight, bias, **back)[: 3 + residual],
                theirs[1], exact[1],
            ),
        }  # fmt: skip

    return works


def first(result: Any) -> Any:
    """Give the first of several results."""
    return result[0] if isinstance(result, tuple) else result


def norm_and_relu(*inputs: Any) -> Any:
    """Normalise, add and clip as PyTorch's users do: three ops."""
    return norm_and_add(*inputs).relu()


def norm_and_add(x: Any, weight: Any, bias: Any, residual: Any = None) -> Any:
    """Normalise and add."""
    from torch.nn.functional import batch_norm

    y = batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)
    return y if residual is None else y + residual


def torch_passes(
    f: Callable[..., Any], inputs: list[Any], g: Any, *, double: bool
) -> tuple[Call, Call]:
    """Give forward and backward of a composition in PyTorch, as autograd runs them."""
    import torch

    dtype = torch.float64 if double else torch.float32
    leaves = [torch.from_numpy(a).to(dtype).requires_grad_() for a in inputs]
    y, seed = f(*leaves), torch.from_numpy(g).to(dtype)
    return lambda: f(*leaves), lambda: torch.autograd.grad(y, leaves, seed, retain_graph=True)


OPS = (
    Op("pools", "max pool 3x3/2, 64@112", 32, 64, 112, pool("max_pool2d", 3, 2, 1)),
    Op("pools", "max pool 2x2/2, 32@32", 128, 32, 32, pool("max_pool2d", 2, 2, 0)),
    Op("pools", "average pool 2x2/2, 32@32", 128, 32, 32, pool("avg_pool2d", 2, 2, 0)),
    Op("norms", "norm + ReLU, 16@32", 128, 16, 32, norm(residual=False)),
    Op("norms", "norm + residual + ReLU, 16@32", 128, 16, 32, norm(residual=True)),
    Op("norms", "norm + ReLU, 64@8", 128, 64, 8, norm(residual=False)),
    Op("norms", "norm + residual + ReLU, 64@56", 32, 64, 56, norm(residual=True)),
)


def memory_passes(
    cases: Sequence[Op], backend: Backend, rng: numpy.random.Generator, rounds: int, out: Out
) -> None:
    """Measure pools and norms and show their table."""
    table = Table(
        "Pools and norms: ours (times PyTorch's speed)", ["op", "forward, ms", "backward, ms"]
    )
    ratios = []
    for case in progress(cases, "pools and norms"):
        works = case.works(images((case.N, case.C, case.size, case.size), rng), backend, rng)
        cells, row = [], {}
        for name, work in works.items():
            what = f"{case.name} {name}"
            ours, theirs, _ = measure(work, what=what, rounds=rounds, backend=backend)
            cells.append(cell(ours, theirs))
            row[name] = theirs.median / ours.median
        ratios.append(row)
        table.add(f"{case.name}, {case.N} images", *cells)
    table.notes += [
        f"n = {3 * rounds} calls; PyTorch runs norm, addition and ReLU as three ops",
        *means((case.group, row) for case, row in zip(cases, ratios, strict=True)),
    ]
    show(table, out, "memory_passes", [case.name for case in cases], ratios)


def main(
    backend: BackendName = "numba",
    rounds: Rounds = 5,
    batch_size: Annotated[int, typer.Option(help="Images in a batch; 0: as in the table.")] = 0,
    only: Annotated[str, typer.Option(help="Ops whose group or name contains this.")] = "",
    quick: Quick = False,
    avx2: Avx2 = False,
    out: Out = None,
) -> None:
    require_torch("memory_passes.py")
    if avx2:
        restart_with(AVX2_ONLY)
    if quick:
        batch_size, rounds = batch_size or 4, min(rounds, 2)
    ops = [op._replace(N=batch_size or op.N) for op in OPS if only in op.group + op.name]
    if not ops:
        raise ValueError(f"no op with {only!r} in its group or name")
    memory_passes(ops, tg.backends.get(backend), numpy.random.default_rng(0), rounds, out)


if __name__ == "__main__":
    run(main)
