"""What checkpointing activations saves in memory and costs in time, with equal gradients first.

    python benchmarks/checkpointing.py                            # ResNet-1001: ten minutes
    python benchmarks/checkpointing.py --model preact_resnet164 --batch-size 32 --small 8
    python benchmarks/checkpointing.py --quick --out results

* memory: a training step in a process of its own, with all activations kept and with checkpoints;
  at the small batch both, where their gradients must be equal to the last bit, at the large one
  only with checkpoints. The peak is the step's, the process's holds compiling and all else too.
* time: a step of a shallower network with and without, in turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy
import typer
from harness import BackendName, Out, Quick, Rounds, Table, Unequal, interleave, progress, stopwatch
from scaling import alone, columns, held_now, peak_since

import tinygrad_cnn as tg
from tinygrad_cnn import models, nn, optim, train
from tinygrad_cnn.cli import run

WAYS = {"all kept": False, "checkpointed": True}


class Measured(NamedTuple):
    """One step: memory in MB, the whole process's peak too, seconds, its gradients' checksum."""

    loaded: float
    peak: float
    of_process: float
    seconds: float
    gradients: str


def training(model: str, *, checkpointed: bool) -> tuple[models.Classifier, Callable[[int], Any]]:
    """Make a network and its training step, on so many images of noise."""
    net = models.build(model, rng=numpy.random.default_rng(0))
    if checkpointed:
        nn.checkpoint_activations(net)
    optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step(n: int) -> None:
        rng = numpy.random.default_rng(0)
        images = rng.standard_normal((n, *net.image_shape), numpy.float32)
        train.train_step(net, optimizer, images, rng.integers(0, 10, n))

    return net, step


# ---- memory ----


def print_step(model: str, batch_size: int, checkpointed: bool, backend: str) -> None:
    """Do one step after one of two images, which loads all code; print what it took, as JSON."""
    tg.set_backend(backend)
    net, step = training(model, checkpointed=checkpointed)
    step(2)
    before, loaded = peak_since(), held_now()
    seconds, peak = stopwatch(lambda: step(batch_size)), peak_since()
    found = Measured(loaded, peak, max(before, peak), seconds, checksum(net))
    print(json.dumps(found))


def checksum(net: nn.Module) -> str:
    """Reduce all gradients to a checksum of their bits."""
    digest = hashlib.sha256()
    for p in net.parameters():
        digest.update(p.grad.numpy().tobytes())  # type: ignore[union-attr]
    return digest.hexdigest()


def measure(model: str, batch_size: int, checkpointed: bool, backend: str) -> Measured:
    """Do one step in a process of its own."""
    arguments = model, batch_size, checkpointed, backend
    printed = alone(["-c", f"import checkpointing; checkpointing.print_step{arguments!r}"])
    return Measured(*json.loads(printed.splitlines()[-1]))


def memory(model: str, batch_size: int, small: int, backend: str, out: Out) -> None:
    """Compare the peaks of steps, and their gradients."""
    cases = [(small, "all kept"), (small, "checkpointed"), (batch_size, "checkpointed")]
    found = [measure(model, n, WAYS[way], backend) for n, way in progress(cases, "processes")]
    if found[0].gradients != found[1].gradients:
        raise Unequal(f"{model}, batch {small}: the gradients differ with checkpoints")
    table = Table(
        f"Memory of a step, {model}",
        ["batch", "activations", "loaded, MB", "peak, MB", "growth, MB", "process, MB", "step, s"],
    )
    growths = [each.peak - each.loaded for each in found]
    for (n, way), each, growth in zip(cases, found, growths, strict=True):
        sizes = each.loaded, each.peak, growth, each.of_process
        table.add(n, way, *(f"{size:.0f}" for size in sizes), f"{each.seconds:.1f}")
    table.notes += [
        f"backend {backend}; one step each; loaded: after a step of two images",
        f"the gradients of the two steps of {small} images are equal to the last bit",
    ]
    table.show()
    labels = [f"{way}, {n}" for n, way in cases]
    table.save(out, "checkpointing", lambda axes: columns(axes, labels, growths, "growth, MB"))


# ---- time ----


def recomputation(model: str, batch_size: int, rounds: int, backend: str, out: Out) -> None:
    """Compare the times of steps."""
    steps = {way: training(model, checkpointed=on)[1] for way, on in WAYS.items()}
    calls = {way: lambda step=step: step(batch_size) for way, step in steps.items()}
    timings = interleave(calls, rounds=rounds, calls=1)
    kept, checkpointed = timings.values()
    table = Table(f"Time of a step, {model}, batch {batch_size}", ["activations", "step, ms"])
    for way, timing in timings.items():
        table.add(way, timing)
    table.notes += [
        f"backend {backend}; n = {rounds} steps each",
        f"checkpointed / all kept: {checkpointed.median / kept.median:.2f}",
    ]
    table.show()
    medians = [1e3 * timing.median for timing in timings.values()]
    table.save(out, "recomputation", lambda axes: columns(axes, [*WAYS], medians, "step, ms"))


def main(
    model: Annotated[str, typer.Option(help="Whose memory is measured.")] = "preact_resnet1001",
    batch_size: Annotated[int, typer.Option(min=2, help="Images in the large batch.")] = 128,
    small: Annotated[int, typer.Option(min=2, help="Images where all can be kept.")] = 16,
    timed: Annotated[str, typer.Option(help="Whose time is measured.")] = "preact_resnet110",
    backend: BackendName = "numba",
    rounds: Rounds = 7,
    quick: Quick = False,
    out: Out = None,
) -> None:
    if quick:
        model, timed, batch_size, small, rounds = "resnet20", "resnet8", 8, 4, 2
    tg.set_backend(backend)
    memory(model, batch_size, small, backend, out)
    recomputation(timed, small, rounds, backend, out)


if __name__ == "__main__":
    run(main)
