"""The command line: `tinygrad-cnn` or `python -m tinygrad_cnn`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import tinygrad_cnn as tg

from . import models, nn
from .backends.geometry import conv2d_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="A small, readable and fast autograd engine for convolutional networks.",
)
BackendOption = Annotated[
    str | None, typer.Option(help="numpy, numba, cupy or auto; default: TINYGRAD_CNN_BACKEND.")
]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Read the options that stand before the command."""


def _chosen(backend: str | None) -> tg.backends.Backend:
    return tg.backends.get(backend) if backend else tg.backends.current()


@app.command()
def selftest(backend: BackendOption = None) -> None:
    """Check every op on this machine: gradients, adjoints, dtypes, memory layout."""
    from .selftest import run

    chosen = _chosen(backend)
    print(f"backend {chosen.name}")
    failed = 0
    for result in run(chosen.name):
        failed += not result.passed
        verdict = "ok" if result.passed else f"FAILED: {result.message}"
        print(f"{result.op:24} {result.checks:3d} checks {result.seconds:6.2f} s  {verdict}")
    print(f"{failed} ops failed" if failed else "all ops passed")
    raise typer.Exit(1 if failed else 0)


@app.command()
def warmup() -> None:
    """Compile the CPU kernels now and keep them on disk, so that no training starts with that."""
    tg.backends.get("numba")  # or the reason why it can't run here
    from .backends.numba_backend import warm_up

    total = 0.0
    for name, dtype, seconds in warm_up():
        total += seconds
        print(f"{name:24} {dtype:8} {seconds:6.2f} s")
    print(f"all kernels are ready, after {total:.0f} s")


@app.command("models")
def list_models() -> None:
    """List the networks and how many parameters each has."""
    for name in models.names():
        print(f"{name:12} {models.build(name).num_parameters():>12,} parameters")


@app.command("backends")
def list_backends(
    explain: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Show the algorithm of each convolution.")
    ] = None,
    backend: BackendOption = None,
) -> None:
    """List the backends, and why one can't run here."""
    if explain:
        _explain(explain, _chosen(backend))
        return
    for name, reason in tg.available_backends().items():
        print(f"{name:8} {f'{reason.reason}; try: {reason.remedy}' if reason else 'ready'}")
    print(f"\nnew tensors are made on {_chosen(backend).name}")


def _explain(model_name: str, backend: tg.backends.Backend) -> None:
    model = models.build(model_name)
    model.eval().to(backend)
    layers = {id(layer): name for name, layer in model.named_modules()}

    def show(layer: nn.Module, args: tuple[tg.Tensor, ...], y: tg.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            x, w = args[0], layer.weight
            at = conv2d_settings(x.shape, w.shape, **layer.settings)
            path = backend.choose("conv2d", shapes=(x.shape, w.shape), dtype=x.dtype, **at)
            print(f"{layers[id(layer)]:20} {x.shape!s:20} {w.shape!s:20} {path}")

    for layer in model.modules():
        layer.register_forward_hook(show)
    with tg.no_grad():
        model(tg.zeros(1, *model.image_shape, backend=backend))


def main() -> None:
    """Run the command line."""
    run(app)


def run(command: Callable[..., Any]) -> None:
    """Run a typer app or function; an error is one line on stderr, with --debug a traceback."""
    if not isinstance(command, typer.Typer):
        program = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        program.command()(command)
        command = program
    try:
        command()
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        notes = " ".join(getattr(error, "__notes__", ()))
        name = Path(sys.argv[0]).stem.replace("__main__", "tinygrad-cnn")
        print(f"{name}: {error} {notes}".rstrip(), file=sys.stderr)
        sys.exit(1)
