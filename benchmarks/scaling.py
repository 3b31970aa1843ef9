"""How time and memory grow: with depth, batch and threads; start-up; peak memory.

    python benchmarks/scaling.py                         # five minutes, most of it ResNet-110
    python benchmarks/scaling.py --part start-up         # or depth, batch, threads, memory
    python benchmarks/scaling.py --quick --out results   # small nets and batches; tables, plots

* depth: the steps of ResNet-20, 56 and 110, and how far 56 lies from the line through the others.
* batch: images per second, beside PyTorch's (channels_last) where that is installed.
* threads: the step of ResNet-20 on 1, 2, ... threads.
* start-up: each in a process of its own; "cold" with an empty kernel cache, so it compiles.
* memory: how far some steps raise a process's peak over what it holds once a step of two images has
  loaded all code; ours and PyTorch's, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import typer
from harness import (
    BackendName,
    Out,
    Quick,
    Rounds,
    Table,
    interleave,
    progress,
    stopwatch,
)  # fmt: skip
from steps import EXACT, OURS, batches, begin, check_starts, fresh_weights, over, trainer

import tinygrad_cnn as tg
from tinygrad_cnn.cli import run

TORCH = "channels_last"
FIRST_STEP = """
import numpy
import tinygrad_cnn as tg
from tinygrad_cnn import models, optim, train

tg.set_backend({backend!r})
net = models.build({model!r})
optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
train.train_step(net, optimizer, numpy.ones((8, 3, 32, 32), "float32"), numpy.zeros(8, int))
"""
START_UP = {
    "import tinygrad_cnn": ["-c", "import tinygrad_cnn"],
    "tinygrad-cnn --help": ["-m", "tinygrad_cnn", "--help"],
}


class Sizes(NamedTuple):
    """What is measured: three depths 6n + 2, a batch, batches, rounds."""

    depths: Sequence[int]
    batch: int
    batches: Sequence[int]
    rounds: int
    backend: str


FULL = dict(depths=(20, 56, 110), batch=128, batches=(32, 64, 128, 256, 512))
QUICK = dict(depths=(8, 20, 32), batch=8, batches=(4, 8, 16))


# ---- depth, batch, threads ----


def depth(sizes: Sizes, out: Out) -> None:
    """Time three depths; the one between ought to lie on the line through the others."""
    some, names = batches(None, sizes.batch), [f"resnet{d}" for d in sizes.depths]
    calls = {name: over(trainer(OURS, name, fresh_weights(name)), some) for name in names}
    timings = interleave(calls, rounds=sizes.rounds, calls=3)
    table = Table(f"Depth, batch {sizes.batch}", ["network", "step, ms", "images/s"])
    for name, timing in timings.items():
        table.add(name, timing, f"{sizes.batch / timing.median:.0f}")
    seconds = [timings[name].median for name in names]
    off, ratio = off_the_line(sizes.depths, seconds), seconds[2] / seconds[0]
    n = len(timings[names[0]].seconds)
    table.notes.append(
        f"n = {n} steps; {names[1]} is {off:+.1%} off the line through the others; "
        f"t({sizes.depths[2]})/t({sizes.depths[0]}) = {ratio:.2f}"
    )
    shown(table, out, "depth", sizes.depths, {OURS: [1e3 * s for s in seconds]}, "step, ms")


def off_the_line(x: Sequence[float], y: Sequence[float]) -> float:
    """Say how far the second of three points lies above the line through the other two, as a share.

    >>> off_the_line((0, 1, 3), (1.0, 2.2, 4.0))
    0.1
    """
    expected = y[0] + (y[2] - y[0]) * (x[1] - x[0]) / (x[2] - x[0])
    return round(y[1] / expected - 1, 12)


def batch(sizes: Sizes, out: Out) -> None:
    """Give images per second for several sizes of the batch, here and in PyTorch."""
    model, sides = f"resnet{sizes.depths[0]}", [OURS, TORCH] if has_torch() else [OURS]
    table = Table(f"Batch size, {model}", ["batch", *(f"{side}, images/s" for side in sides)])
    rates: dict[str, list[float]] = {side: [] for side in sides}
    weights = fresh_weights(model)
    for size in progress(sizes.batches, "batch sizes"):
        some = batches(None, size)
        trainers = {side: trainer(side, model, weights) for side in sides}
        if TORCH in trainers:
            starts = {side: begin(each, some) for side, each in trainers.items()}
            check_starts(starts, begin(trainer(EXACT, model, weights), some))
        calls = {side: over(each, some) for side, each in trainers.items()}
        for side, timing in interleave(calls, rounds=sizes.rounds, calls=3).items():
            rates[side].append(size / timing.median)
        table.add(size, *(f"{rates[side][-1]:.0f}" for side in sides))
    table.notes.append(f"n = {3 * sizes.rounds} steps each; {against_standard(sizes, rates[OURS])}")
    shown(table, out, "batch", sizes.batches, rates, "images/s")


def against_standard(sizes: Sizes, rates: Sequence[float]) -> str:
    """Compare the largest batch with the usual one."""
    usual = rates[[*sizes.batches].index(sizes.batch)]
    return (
        f"batch {sizes.batches[-1]} runs at {rates[-1] / usual:.2f} of batch {sizes.batch}'s rate"
    )


def threads(sizes: Sizes, out: Out) -> None:
    """Time a step on one thread, two, and so on."""
    from tinygrad_cnn.backends.numba_backend.threads import available, set_threads

    model, counts = f"resnet{sizes.depths[0]}", range(1, available() + 1)
    call = over(trainer(OURS, model, fresh_weights(model)), batches(None, sizes.batch))

    def on(n: int) -> None:
        set_threads(n)
        call()

    timings = interleave({str(n): partial(on, n) for n in counts}, rounds=sizes.rounds, calls=3)
    set_threads(available())
    table = Table(f"Threads, {model}, batch {sizes.batch}", ["threads", "step, ms", "speed-up"])
    medians = [timings[str(n)].median for n in counts]
    speed_ups = [medians[0] / seconds for seconds in medians]
    for n, speed_up in zip(counts, speed_ups, strict=True):
        table.add(n, timings[str(n)], f"{speed_up:.2f}")
    table.notes.append(f"n = {3 * sizes.rounds} steps each; backend {sizes.backend}")
    shown(table, out, "threads", list(counts), {OURS: speed_ups}, "speed-up")


def has_torch() -> bool:
    """Say whether PyTorch can be imported."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


# ---- start-up ----


def start_up(sizes: Sizes, out: Out) -> None:
    """Time a process's whole life: import, --help, a first step cold and warm."""
    step = FIRST_STEP.format(model=f"resnet{sizes.depths[0]}", backend=sizes.backend)
    with TemporaryDirectory() as cache:
        warm = partial(alone, ["-c", step], NUMBA_CACHE_DIR=cache)
        cold = stopwatch(warm)
        calls = {name: partial(alone, args) for name, args in START_UP.items()}
        timings = interleave(calls | {"first step, warm": warm}, rounds=sizes.rounds, calls=1)
    table = Table("Start-up: processes from their start to their end", ["what", "seconds", "n"])
    for name, timing in timings.items():
        table.add(name, f"{timing.median:.2f}", len(timing.seconds))
    table.add("first step, cold", f"{cold:.1f}", 1)
    table.notes.append(f"the first step is ResNet-{sizes.depths[0]}'s; backend {sizes.backend}")
    seconds = [*(t.median for t in timings.values()), cold]
    table.show()
    labels = [*timings, "first step, cold"]
    table.save(out, "start_up", lambda axes: columns(axes, labels, seconds, "seconds"))


def alone(arguments: Sequence[str], **environment: str) -> str:
    """Run Python to its end in a process of its own, in this folder; give what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, cwd=Path(__file__).parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"python {arguments[0]} ... failed: {done.stderr.strip()[-500:]}")
    return done.stdout


# ---- memory ----


def memory(sizes: Sizes, out: Out) -> None:
    """Compare how far steps raise the peak, here and in PyTorch."""
    model, sides = f"resnet{sizes.depths[0]}", [OURS, TORCH] if has_torch() else [OURS]
    table = Table(
        f"Memory, {model}, batch {sizes.batch}",
        ["side", "loaded, MB", "peak, MB", "growth, MB"],
    )
    growths = []
    for side in progress(sides, "processes"):
        arguments = side, model, sizes.batch, sizes.backend
        printed = alone(["-c", f"import scaling; scaling.print_memory{arguments!r}"])
        loaded, peak = json.loads(printed.splitlines()[-1])
        growths.append(peak - loaded)
        table.add(side, f"{loaded:.0f}", f"{peak:.0f}", f"{growths[-1]:.0f}")
    table.notes.append(
        "loaded: after a step of two images; peak: the highest in ten steps after it"
    )
    table.show()
    table.save(out, "memory", lambda axes: columns(axes, sides, growths, "growth, MB"))


def print_memory(side: str, model: str, batch_size: int, backend: str) -> None:
    """Print, as JSON, what the process holds after a small step, and its peak in ten large ones."""
    if side == OURS:
        tg.set_backend(backend)
    some, weights = batches(None, batch_size), fresh_weights(model)
    x, targets = some[0]
    training = trainer(side, model, weights)
    training.step(x[:2], targets[:2])
    call, loaded = over(training, some), held_now()
    for _ in range(10):
        call()
    print(json.dumps([loaded, peak_since()]))


def held_now() -> float:
    """Give the memory that this process holds, in MB, and let its peak begin anew there.

    The peak of getrusage counts what compiling took before, and even what the parent process held
    when it started this one; Linux forgets it when it is asked to.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_since()
    with suppress(PermissionError):  # then the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return kilobytes(status, "VmRSS") / 1024


def peak_since() -> float:
    """Give this process's peak memory in MB; on Linux since `held_now`."""
    status = Path("/proc/self/status")
    if status.exists():
        return kilobytes(status, "VmHWM") / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # macOS counts bytes


def kilobytes(status: Path, name: str) -> int:
    """Read one line of /proc/self/status."""
    lines = status.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# ---- what is shown ----


def shown(
    table: Table, out: Out, name: str, x: Sequence[float], lines: Mapping[str, Sequence[float]],
    unit: str,
) -> None:  # fmt: skip
    """Print a table; write it and a plot of its lines."""

    def draw(axes: Any) -> None:
        for label, values in lines.items():
            axes.plot(x, values, marker="o", label=label)
        axes.set_xlabel(name)
        axes.set_ylabel(unit)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend()

    table.show()
    table.save(out, name, draw)


def columns(axes: Any, labels: Sequence[str], values: Sequence[float], unit: str) -> None:
    """Draw a bar for each label."""
    axes.bar(labels, values)
    axes.set_ylabel(unit)


PARTS: dict[str, Callable[[Sizes, Out], None]] = {
    "depth": depth,
    "batch": batch,
    "threads": threads,
    "start-up": start_up,
    "memory": memory,
}


def main(
    part: Annotated[str, typer.Option(help=f"Some of {','.join(PARTS)}.")] = ",".join(PARTS),
    backend: BackendName = "numba",
    rounds: Rounds = 3,
    quick: Quick = False,
    out: Out = None,
) -> None:
    if unknown := set(part.split(",")) - set(PARTS):
        raise ValueError(f"no part {unknown.pop()!r}; there are {', '.join(PARTS)}")
    tg.set_backend(backend)
    chosen = dict(QUICK, rounds=min(rounds, 2)) if quick else dict(FULL, rounds=rounds)
    for name in part.split(","):
        PARTS[name](Sizes(**chosen, backend=backend), out)


if __name__ == "__main__":
    run(main)
