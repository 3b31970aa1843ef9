"""What gpu.py runs on the GPU in processes of their own: memory, the kernels once, the tables.

    python benchmarks/gpu_parts.py layers --out results --seconds 90

The programs whose tables these are, layers.py and steps.py, end at a row that is wrong and take the
time they take; here the other rows are still measured, and time is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import device
import layers as convolutions
import numpy
import steps
import typer
from harness import Table, check_equal

import backends as kernels
import tinygrad_cnn as tg
from tinygrad_cnn import data, optim, train
from tinygrad_cnn.backends.base import Backend
from tinygrad_cnn.backends.precision import (
    PRECISIONS,
    PrecisionUnavailable,
    check_precision,
    use_precision,
)
from tinygrad_cnn.cli import run
from tinygrad_cnn.train import recipe

T = TypeVar("T")
# Of the largest value: operands are rounded to 10 bits or 7; a wrong index's error is 1e-1.
TOLERANCES = {"tf32": 2e-3, "bf16": 2e-2, "fp16": 2e-3}
ROUNDS = 2
EAGER, SIZES = ("NCHW", "channels_last"), (512, 128, 2048)
HALF_BATCH, STEPS = 16, 20  # of a training with CUDA graphs
DRIVER_S_OWN = 8 << 20  # bytes of the device that may go elsewhere
WANTED = 0.94  # of the race
# What D. Page's cifar10-fast takes to get there; the recipe `speedrun` is made for a CPU.
PAGE = dict(epochs=24, batch_size=512, optimizer=dict(lr=0.4), augment=dict(cutout=8))


class Setting(NamedTuple):
    """Where a part runs: its backend, the folder for its table, and until when."""

    backend: Backend
    out: Path
    deadline: float  # of time.monotonic
    data_dir: Path | None = None


# ---- checks ----


def memory(at: Setting) -> str:
    """Train for 1,000 steps; the device's pool must hold no more than after the first 100."""
    trainer = steps.our_trainer("resnet8", steps.fresh_weights("resnet8"))
    some = [trainer.place(*noise(n)) for n in (32, 32, 17)]  # an epoch's last batch is smaller
    return steady_memory(at, lambda step: trainer.step(*some[step % 3]), name="memory")


def steady_memory(at: Setting, do: Callable[[int], Any], *, name: str, pieces: int = 0) -> str:
    """Do 1,000 steps; write a table of the device's pool, and of what is taken of the device.

    What the pool holds but isn't in use may grow by `pieces`, bytes that lie between others.
    """
    xp = at.backend.xp
    pool, columns = xp.get_default_memory_pool(), ["in use, MB", "held, MB", "taken, MB"]
    table = Table(f"The device's memory: {name}", ["steps", *columns], [])
    seen: list[tuple[int, int, int]] = []
    for step in range(1, 1001):
        do(step)
        if step % 100 == 0:
            free, total = xp.cuda.runtime.memGetInfo()
            seen.append((pool.used_bytes(), pool.total_bytes(), total - free))
            table.add(step, *(f"{n / 1e6:.3f}" for n in seen[-1]))
            table.write(at.out, name)
        if time.monotonic() > at.deadline:
            raise RuntimeError(f"time was up after {step} steps of 1,000")
    used, held, taken = (last - first for first, last in zip(seen[0], seen[-1], strict=True))
    if used > 0 or held > pieces or taken > DRIVER_S_OWN:
        raise RuntimeError(
            f"in 900 steps the memory in use grew by {used} bytes, what the pool holds by {held}, "
            f"what is taken of the device by {taken}"
        )
    return f"{seen[-1][0] / 1e6:.1f} MB in use after 100 steps, and no more after 1,000"


def replays(at: Setting) -> str:
    """Train with CUDA graphs and without: the same bits; replay 1,000 times in the same memory.

    After every 50 steps the weights are others, so that the next are recorded anew.
    """
    for precision in precisions(at.backend, "conv2d"):
        with use_precision(precision, at.backend):
            compare_replays(at.backend, precision=precision)
    net = steps.our_network("resnet8", steps.fresh_weights("resnet8"))
    sgd = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    recorded = train.RecordedStep(net, sgd, batch_size=2 * HALF_BATCH)
    values, (x, targets) = net.state_dict(), noise(2 * HALF_BATCH)
    x = at.backend.asarray(x)

    def do(step: int) -> None:
        if step % 50 == 0:
            net.load_state_dict(values)
        if not recorded(x, targets):
            raise RuntimeError(f"step {step} was not recorded")

    said = steady_memory(at, do, name="replays", pieces=DRIVER_S_OWN)
    return f"after {STEPS} steps the same bits; {said}"


def compare_replays(backend: Backend, *, precision: str) -> None:
    """Raise unless replayed steps are the usual ones."""
    if precision == "fp16":  # in which cuBLAS multiplies matrices: no graph can hold that
        return
    by_graph, as_usual = (resident_training(backend, graphs=graphs) for graphs in (True, False))
    for trainer in by_graph, as_usual:
        trainer.run()
    if by_graph.recorded is None or by_graph.recorded.graph is None:
        raise RuntimeError(f"in {precision} the steps were not recorded")
    wanted = as_usual.state_dict()["arrays"]
    for name, a in by_graph.state_dict()["arrays"].items():
        what = f"{name} after {STEPS} steps in {precision}"
        check_equal(a, wanted[name], tolerance=0, what=what)


def resident_training(backend: Backend, *, graphs: bool) -> train.Trainer:
    """Prepare a training of which every third batch is smaller."""
    pixels = data.shapes(5 * HALF_BATCH)
    loader = data.ResidentLoader(
        pixels, 2 * HALF_BATCH, backend=backend, seed=0, augment=data.RandomCropAndFlip(),
        normalize=data.channel_statistics(pixels.images),
    )  # fmt: skip
    net = steps.our_network("resnet8", steps.fresh_weights("resnet8"))
    sgd = optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    return train.Trainer(
        net, sgd, loader, steps=STEPS, schedule=lambda step: 0.05 / (1 + step),
        label_smoothing=0.1, ema=0.9, cuda_graphs=graphs,
    )  # fmt: skip


def noise(batch_size: int) -> tuple[Any, Any]:
    """Draw a batch of noise; drawing shapes would take longer than the steps."""
    rng = numpy.random.default_rng(batch_size)
    return convolutions.images((batch_size, 3, 32, 32), rng), rng.integers(0, 10, batch_size)


def exercise(at: Setting) -> str:
    """Run the kernels of backends.py once, and in each precision what multiplies; do a step.

    Results are compared with numpy's. Each array is an allocation of its own: in the large pieces
    of CuPy's pool nobody could see where one ends.
    """
    if device.on_gpu(at.backend):
        at.backend.xp.cuda.set_allocator(None)
    numpy_backend, cases = tg.backends.get("numpy"), 0
    for case in kernels.cases(2, numpy.random.default_rng(0)):
        wanted = kernels.results(numpy_backend, case)
        for name in precisions(at.backend, case.kernel):
            with use_precision(name, at.backend):
                kernels.check(
                    at.backend, case, wanted, tolerance=TOLERANCES.get(name, kernels.TOLERANCE)
                )
            cases += 1
    check_resident_batches(at.backend)
    trainer = steps.our_trainer("resnet8", steps.fresh_weights("resnet8"))
    loss = min(float(trainer.step(*noise(n))) for n in (3, 2))
    return f"{cases} calls of kernels agree with numpy's; a step's loss is {loss:.3f}"


def check_resident_batches(backend: Backend) -> None:
    """Compare batches made on the device, if it can, with those of the CPU's loader."""
    crops, pixels = data.RandomCropAndFlip(4, True), data.shapes(4)
    if not data.ResidentLoader.serves(backend, crops):
        return
    statistics = data.channel_statistics(pixels.images)
    at: dict[str, Any] = dict(seed=0, normalize=statistics, augment=crops)
    resident = data.ResidentLoader(pixels, 4, backend=backend, **at)
    ((a, _),), ((b, _),) = resident.epoch(0), data.Loader(pixels, 4, **at).epoch(0)
    check_equal(backend.to_numpy(a), b, tolerance=kernels.TOLERANCE, what="a resident batch")
    still = numpy.zeros((4, 2), int), numpy.zeros(4, bool)
    found = backend.crop_and_flip(a, *still, padding=0)
    check_equal(backend.to_numpy(found), backend.to_numpy(a), tolerance=0, what="crop_and_flip")


def precisions(backend: Backend, kernel: str) -> list[str]:
    """List the precisions of a backend that make a difference to a kernel."""
    rounded = kernel == "matmul" or kernel.startswith("conv2d")
    return [name for name in PRECISIONS if name == "fp32" or (rounded and has(backend, name))]


def has(backend: Backend, precision: str) -> bool:
    """Tell whether a backend has a precision."""
    try:
        check_precision(precision, backend)
    except PrecisionUnavailable:
        return False
    return True


# ---- tables ----


def layers(at: Setting) -> str:
    """Measure convolutions beside PyTorch's."""
    rng, done = numpy.random.default_rng(0), []
    table = Table(convolutions.TITLE, convolutions.columns(at.backend), [])

    def row(layer: convolutions.Layer) -> list[str]:
        found = convolutions.measured(layer, at.backend, rng, ROUNDS)
        done.append((layer, found.ratios))
        return found.cells

    def notes() -> list[str]:
        measured, ratios = zip(*done, strict=True)
        return convolutions.notes(measured, ratios, at.backend, ROUNDS)

    return fill(table, convolutions.LAYERS, row, notes, name="layers", at=at)


class Row(NamedTuple):
    """A network in training, and PyTorch's variants beside it."""

    case: steps.Case
    peers: Sequence[str]


def eager(at: Setting) -> str:
    """Measure training steps beside PyTorch's as most users run it."""
    networks = ("resnet20", "resnet9", "resnet56")
    rows = [Row(steps.Case(network, n), EAGER) for n in SIZES for network in networks]
    return training_steps(rows, name="eager", at=at)


def compiled(at: Setting) -> str:
    """Measure steps as CUDA graphs beside torch.compile's, which take minutes to compile."""
    cases = [steps.Case("resnet20", n) for n in SIZES]
    cases.insert(1, steps.Case("resnet9", SIZES[0]))
    rows = [Row(case, ("channels_last", "compile")) for case in cases]
    return training_steps(rows, name="compiled", ours=steps.GRAPHS, at=at)


def bf16(at: Setting) -> str:
    """Measure steps as CUDA graphs that multiply in bfloat16, beside PyTorch's that do."""
    deep, wide = (steps.Case(network, SIZES[0]) for network in ("resnet20", "resnet9"))
    rows = [Row(deep, ("bf16",)), Row(wide, ("bf16",)), Row(deep, ("bf16 compile",))]
    with use_precision("bf16", at.backend):
        return training_steps(rows, name="bf16", ours=steps.BF16_GRAPHS, at=at)


READS = "as training does, ours reads each step's loss and scores; PyTorch's waits for none"
ROUNDS_MORE = "PyTorch's autocast keeps activations in bfloat16, too; ours keeps them in float32"


def training_steps(rows: Sequence[Row], *, name: str, at: Setting, ours: str = steps.OURS) -> str:
    """Measure training steps, usual ones or graphs, beside some of PyTorch's variants."""
    where = device.torch_device(at.backend)
    peers = [*dict.fromkeys(peer for row in rows for peer in row.peers)]

    def measured(row: Row) -> list[str]:
        case, weights = row.case, steps.fresh_weights(row.case.model)
        some = [noise(case.batch_size)] * 2
        sides = {
            side: steps.trainer(side, case.model, weights, where)
            for side in (steps.EXACT, ours, *row.peers)
        }
        exact = steps.begin(sides.pop(steps.EXACT), some)
        timings = steps.alternating(sides, some, exact, rounds=ROUNDS, backend=at.backend)
        timings[steps.OURS] = timings.pop(ours)
        return [*map(str, case), *steps.cells(case, timings, peers, rivals=peers)]

    def notes() -> list[str]:
        more = {steps.OURS: [READS], steps.BF16_GRAPHS: [ROUNDS_MORE]}.get(ours, [])
        return [*steps.notes("noise", at.backend), *more]

    columns = [f"PyTorch {peer}, ms" for peer in peers]
    columns = ["network", "batch", f"{ours}, ms", *columns, "best PyTorch / ours"]
    table = Table(f"{steps.TITLE}: {name}", [*columns, "images/s", "GFLOP/s"], [])
    return fill(table, rows, measured, notes, name=name, at=at)


def fill(
    table: Table, items: Sequence[T], row: Callable[[T], Iterable[Any]],
    notes: Callable[[], list[str]], *, name: str, at: Setting,
) -> str:  # fmt: skip
    """Add a row for each item while there is time for one as long as the longest so far.

    What goes wrong with one is told below the table, and in the end. The table is written after
    each row, for the process may be ended in the next.
    """
    wrong: list[str] = []
    longest = 0.0
    for n, item in enumerate(items):
        begun = time.monotonic()
        if begun + longest > at.deadline:
            table.notes.append(f"time was up after {n} rows of {len(items)}")
            break
        try:
            table.add(*row(item))
        except Exception as error:  # whatever it is, the other rows are still worth measuring
            wrong.append(f"{getattr(item, 'name', item)}: {type(error).__name__}: {error}")
            table.notes.append(" ".join(wrong[-1].split())[:300])
        table.write(at.out, name)
        longest = max(longest, time.monotonic() - begun)
    table.notes += notes() if table.rows else []
    table.write(at.out, name)
    if wrong:
        raise RuntimeError(f"{len(wrong)} rows of {len(items)} failed; the first: {wrong[0]}")
    return f"{len(table.rows)} rows of {len(items)}"


# ---- the race ----


def race(at: Setting) -> str:
    """Train by the recipe `speedrun` with PAGE's settings; ask for 94 % on the test images."""
    from accuracy import ours

    images = data.load(at.data_dir, images=50_000)
    settings = recipe.load("speedrun").override(PAGE)
    accuracy, seconds = ours(settings, images, 0)
    said = f"{accuracy:.2%} on {images[1].name}'s test images after {seconds:.1f} s of training"
    if accuracy < WANTED:
        raise RuntimeError(f"{said}; expected {WANTED:.0%}")
    return said


PARTS: dict[str, Callable[[Setting], str]] = {
    f.__name__: f for f in (memory, replays, exercise, layers, eager, compiled, bf16, race)
}


def main(
    part: Annotated[str, typer.Argument(help=f"One of {', '.join(PARTS)}.")],
    seconds: Annotated[float, typer.Option(help="After so many no new row is begun.")] = 90.0,
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = Path("gpu-results"),
    data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    backend: Annotated[str, typer.Option(help="To see a part without a GPU: numpy.")] = "cupy",
) -> None:
    if part not in PARTS:
        raise typer.BadParameter(f"no part {part!r}; there are {', '.join(PARTS)}")
    deadline = time.monotonic() + seconds
    tg.set_backend(backend)
    print(PARTS[part](Setting(tg.backends.current(), out, deadline, data_dir)))


if __name__ == "__main__":
    run(main)
