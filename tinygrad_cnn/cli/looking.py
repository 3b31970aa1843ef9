"""Commands that show what there is: selftest, models, summary, backends."""

from __future__ import annotations

from typing import Annotated

import typer

import tinygrad_cnn as tg

from .. import models, nn
from ..backends.geometry import conv2d_settings
from ..backends.precision import use_precision
from .options import BackendOption, PrecisionOption, chosen, complete_model
from .table import print_table, quantity


def selftest(backend: BackendOption = None) -> None:
    """Check every op on this machine: gradients, adjoints, dtypes, memory layout."""
    from ..selftest import run

    on = chosen(backend)
    print(f"backend {on.name}")
    failed = 0
    for result in run(on.name):
        failed += not result.passed
        verdict = "ok" if result.passed else f"FAILED: {result.message}"
        print(f"{result.op:24} {result.checks:3d} checks {result.seconds:6.2f} s  {verdict}")
    print(f"{failed} ops failed" if failed else "all ops passed")
    raise typer.Exit(1 if failed else 0)


SUMMARY_EXAMPLES = """\
Examples:

* `tinygrad-cnn summary resnet20`
* `tinygrad-cnn summary resnet20 --input 3,64,64 --classes 100 --batch-size 128`
"""


def summary(
    model: Annotated[str, typer.Argument(help="A network's name.", autocompletion=complete_model)],
    input: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="Size of an image; default: the network's.")
    ] = None,
    classes: Annotated[int, typer.Option(help="Number of classes.", min=1)] = 10,
    batch_size: Annotated[int, typer.Option(help="Images whose memory to add up.", min=1)] = 1,
) -> None:
    """Show each layer's output, parameters, multiply-accumulates and memory, for one image.

    MACs are those of convolutions and matrix products. "made" is the memory of the output; "kept"
    is what the recorded graph holds on to until backward, measured on a real forward pass and
    counted where it is first kept.
    """
    from ..summary import summarize

    found = summarize(models.build(model, classes), _image_shape(input))
    rows = [
        [row.path or "(model)", row.kind, "x".join(map(str, row.output)), f"{row.parameters:,}",
         f"{row.macs:,}", f"{row.made:,}", f"{row.kept:,}"]
        for row in found.rows
    ]  # fmt: skip
    headers = ["layer", "type", "output", "parameters", "MACs", "made (B)", "kept (B)"]
    print_table(headers, rows, words=2)
    print(
        f"{found.parameters:,} parameters, {quantity(4 * found.parameters, 'B')}; "
        f"{quantity(found.macs)} MACs an image; activations of {batch_size}: "
        f"{quantity(batch_size * found.made, 'B')} made, "
        f"{quantity(batch_size * found.kept, 'B')} kept for backward"
    )


def _image_shape(text: str | None) -> tuple[int, ...] | None:
    sizes = [] if text is None else text.split(",")
    if text is not None and (len(sizes) != 3 or not all(s.strip().isdigit() for s in sizes)):
        raise typer.BadParameter(f"--input is {text!r}; expected C,H,W such as 3,32,32")
    return tuple(map(int, sizes)) or None


def list_models() -> None:
    """List the networks and how many parameters each has, for ten classes."""
    width = max(map(len, models.names()))
    with nn.init.skipped():
        for name in models.names():
            print(f"{name:{width}} {models.build(name).num_parameters():>12,} parameters")


def list_backends(
    explain: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Show the algorithm of each convolution.")
    ] = None,
    backend: BackendOption = None, precision: PrecisionOption = None,
) -> None:  # fmt: skip
    """List the backends, and why one can't run here."""
    if explain:
        with use_precision(precision or "fp32", chosen(backend)):
            _explain(explain, chosen(backend))
        return
    for name, reason in tg.available_backends().items():
        print(f"{name:8} {f'{reason.reason}; try: {reason.remedy}' if reason else 'ready'}")
    print(f"\nnew tensors are made on {chosen(backend).name}")


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


def warmup() -> None:
    """Compile the CPU kernels now and keep them on disk, so that no training starts with that."""
    tg.backends.get("numba")  # or the reason why it can't run here
    from ..backends.numba_backend import warm_up

    total = 0.0
    for name, dtype, seconds in warm_up():
        total += seconds
        print(f"{name:28} {dtype:8} {seconds:6.2f} s")
    print(f"all kernels are ready, after {total:.0f} s")
