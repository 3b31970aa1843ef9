"""Time training steps of residual networks here and in PyTorch, on the same images and weights.

    python benchmarks/steps.py                                  # ResNet-20, batch 128: 3 minutes
    python benchmarks/steps.py --models resnet20,resnet56 --batch-sizes 32,512
    python benchmarks/steps.py --all --out results              # every network: half an hour
    python benchmarks/steps.py --avx2 --figure fresh            # without AVX-512 on either side
    python benchmarks/steps.py --data-dir DIR --quick           # CIFAR-10; small batches
    python benchmarks/steps.py --backend cupy                   # on the GPU, "alternating" only

Two figures. "fresh": each side runs in processes of its own with its own defaults, which is what a
user gets. "alternating": all sides in one process, in blocks of ten steps, with this backend's
setting of malloc, which makes PyTorch faster too. All sides first do two steps from the same
weights and must have the losses that PyTorch has in float64, and the first must move each parameter
as far as it does there.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import numpy
import typer
from device import clock, limits, on_gpu, torch_device
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
    Unequal,
    bars,
    interleave,
    milliseconds,
    progress,
    require_torch,
    restart_with,
    stopwatch,
)  # fmt: skip

import tinygrad_cnn as tg
from tinygrad_cnn import data, models, nn, optim, train
from tinygrad_cnn.backends.base import Backend
from tinygrad_cnn.cli import run

OURS, GRAPHS, BF16_GRAPHS = "ours", "graphs", "bf16 graphs"  # of which the last two want a GPU
FLOAT32 = "NCHW", "channels_last", "compile"
PEERS = (*FLOAT32, "bf16")
TITLE = "Training steps, SGD with momentum"
COLUMNS = (
    "network", "batch", "figure", "ours, ms", *(f"PyTorch {peer}, ms" for peer in PEERS),
    "best float32 PyTorch / ours", "images/s", "GFLOP/s",
)  # fmt: skip
SLOW_TO_COMPILE = "torch.compile takes minutes for {}; --peers compile asks for it"
QUICK_TO_COMPILE = ("resnet8", "resnet9", "resnet20")
EXACT = "float64"  # what all are compared with: PyTorch's, where rounding doesn't count
# How far from it, relative: the losses of two steps, and how far the first moves each parameter.
# Rounding turns some ReLUs, more of them with depth. PyTorch's float32 batch norm in channels_last
# rounds its statistics a hundred times as coarsely as in NCHW, so that in preact_resnet164 one
# parameter moves by 20 % more than it should; ours and NCHW stay below 5 %.
LOSSES, MOVES = (1e-5, 1e-2), 0.05
TOLERANCES = {"channels_last": (LOSSES, 0.25), "bf16": ((2e-2, 1e-1), 1.0)}
BATCHES = 4  # that the steps go round in

Batch = tuple[Any, Any]


class Trainer(NamedTuple):
    """A network in training: its step gives the loss; its parameters as they are then.

    `place` moves a batch to where the step wants it; without, the step itself does.
    """

    step: Callable[[Any, Any], Any]
    parameters: Callable[[], list[Any]]
    place: Callable[[Any, Any], Batch]


class Start(NamedTuple):
    """A side's first two steps: their losses, and how far the first moved each parameter."""

    losses: list[float]
    moved: list[float]


class Case(NamedTuple):
    """A network and the size of its batches."""

    model: str
    batch_size: int


STANDARD = (Case("resnet20", 128),)
ALL = (
    *(Case("resnet20", n) for n in (32, 128, 512)),
    *(Case(name, 128) for name in ("resnet56", "resnet110", "preact_resnet164", "resnet9")),
)


# ---- the sides ----


def fresh_weights(model: str) -> list[Any]:
    """Draw a network's parameters, always the same."""
    with tg.use_backend("numpy"):
        return [
            p.numpy() for p in models.build(model, rng=numpy.random.default_rng(0)).parameters()
        ]


def our_network(model: str, weights: Sequence[Any]) -> models.Classifier:
    """Build a network with these parameters."""
    net = models.build(model, rng=numpy.random.default_rng(0))
    for p, w in zip(net.parameters(), weights, strict=True):
        p.data = p.backend.asarray(w.copy())
    return net


class GraphSteps:
    """Our steps as CUDA graphs; as a number, the last one's loss. The very first is one, too."""

    def __init__(self, net: models.Classifier, optimizer: optim.Optimizer) -> None:
        self.net, self.optimizer = net, optimizer
        self.recorded: train.RecordedStep | None = None

    def __call__(self, x: Any, targets: Any) -> GraphSteps:
        """Do a step, without waiting for it."""
        if self.recorded is None:
            self.recorded = self._ready(x, targets)
        if not (self.recorded(x, targets) and self.recorded.graph):
            raise RuntimeError(f"a step of {len(targets)} images was not replayed as a CUDA graph")
        return self

    def _ready(self, x: Any, targets: Any) -> train.RecordedStep:
        """Record a step, and put back all that the steps until then have changed."""
        net, optimizer = self.net, self.optimizer
        values, state = net.state_dict(), optimizer.state_dict()
        recorded = train.RecordedStep(net, optimizer, batch_size=len(targets))
        while recorded.graph is None and recorded(x, targets):
            pass
        for name, t in (*net.named_parameters(), *net.named_buffers()):
            t.data[...] = t.backend.asarray(values[name])
        optimizer.load_state_dict(state)
        recorded.take()
        return recorded

    def __float__(self) -> float:
        assert self.recorded is not None
        return self.recorded.take()[-1][0]


def our_trainer(model: str, weights: Sequence[Any], *, graphs: bool = False) -> Trainer:
    """Prepare our training."""
    net = our_network(model, weights)
    optimizer = optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

    def as_usual(x: Any, targets: Any) -> float:
        return train.train_step(net, optimizer, x, targets)[0]

    return Trainer(
        GraphSteps(net, optimizer) if graphs else as_usual,
        lambda: [p.numpy() for p in net.parameters()],
        lambda x, targets: (tg.backends.current().asarray(x), targets),
    )


def trainer(side: str, model: str, weights: Sequence[Any], device: str = "cpu") -> Trainer:
    """Prepare a side's training, PyTorch's on a device."""
    if side in (OURS, GRAPHS, BF16_GRAPHS):
        return our_trainer(model, weights, graphs=side != OURS)
    import torch_models

    variant = torch_models.VARIANTS[side]
    return Trainer(*torch_models.training(model, weights, device=device, **variant))


def batches(data_dir: Path | None, batch_size: int) -> list[Batch]:
    """Make a few augmented training batches."""
    train_set, _ = data.load(data_dir, images=2 * BATCHES * batch_size)
    loader = data.Loader(
        train_set, batch_size, seed=0, normalize=data.channel_statistics(train_set.images),
        augment=data.random_crop_and_flip, drop_last=True,
    )  # fmt: skip
    return list(itertools.islice(loader.epoch(0), BATCHES))


def begin(trainer: Trainer, some: Sequence[Batch]) -> Start:
    """Do a side's first two steps."""
    before = [p.copy() for p in trainer.parameters()]
    losses = [float(trainer.step(*some[0]))]
    pairs = zip(trainer.parameters(), before, strict=True)
    moved = [float(numpy.linalg.norm(after - p)) for after, p in pairs]
    return Start([*losses, float(trainer.step(*some[1]))], moved)


def check_starts(starts: Mapping[str, Start], exact: Start) -> None:
    """Raise Unequal unless all sides began as float64 does, to rounding."""
    for side, start in starts.items():
        losses, moves = TOLERANCES.get(side.split()[0], (LOSSES, MOVES))
        if not numpy.allclose(start.losses, exact.losses, rtol=losses, atol=0):
            raise Unequal(
                f"{side}: the first two steps' losses are {start.losses}, in float64 "
                f"{exact.losses}, expected to differ by {losses} at most (relative); nothing is "
                "timed"
            )
        errors = abs(numpy.divide(start.moved, exact.moved) - 1)
        if not errors.max() <= moves:
            raise Unequal(
                f"{side}: parameter {errors.argmax()} of {len(errors)} moved in the first step by "
                f"{start.moved[errors.argmax()]:.6g}, in float64 by "
                f"{exact.moved[errors.argmax()]:.6g}, expected to differ by {moves} at most "
                "(relative); nothing is timed"
            )


# ---- alternating, in this process ----


def alternating(
    trainers: Mapping[str, Trainer], some: list[Batch], exact: Start, *, rounds: int,
    backend: Backend,
) -> dict[str, Timing]:  # fmt: skip
    """Time the sides in blocks of ten steps, the first of which isn't counted.

    On a GPU the time is that of five steps, from the first's start to the last's end.
    """
    check_starts({side: begin(trainer, some) for side, trainer in trainers.items()}, exact)
    calls = {side: over(trainer, some) for side, trainer in trainers.items()}
    return interleave(
        calls, rounds=rounds, calls=3 if on_gpu(backend) else 9,
        clock=clock(backend, calls=5, queued=False),
    )  # fmt: skip


def over(trainer: Trainer, some: list[Batch]) -> Call:
    """Let each call do the next of a few batches, which lie where the step wants them."""
    stream = itertools.cycle([trainer.place(*batch) for batch in some])
    return lambda: trainer.step(*next(stream))


# ---- fresh, each side in a process of its own ----


def write(folder: Path, weights: Sequence[Any], some: Sequence[Batch]) -> None:
    """Leave weights and batches for the processes to come."""
    numpy.savez(folder / "weights.npz", *weights)
    numpy.savez(folder / "batches.npz", *itertools.chain.from_iterable(some))


def read(folder: Path) -> tuple[list[Any], list[Batch]]:
    """Read what `write` left."""
    with numpy.load(folder / "weights.npz") as weights, numpy.load(folder / "batches.npz") as some:
        flat = [some[name] for name in some.files]
        return [weights[n] for n in weights.files], [*zip(flat[::2], flat[1::2], strict=True)]


def in_this_process(side: str, model: str, folder: Path, seconds: float) -> None:
    """Do a side's steps for some seconds and print losses and times as JSON."""
    weights, some = read(folder)
    training = trainer(side, model, weights)
    beginning, call, times = begin(training, some), over(training, some), []
    call()
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        times.append(stopwatch(call))
    print(json.dumps([beginning, times]))


def in_own_process(
    side: str, case: Case, folder: Path, seconds: float, backend: str
) -> tuple[Start, list[float]]:
    """Start `in_this_process` elsewhere; give what it measured, or raise what went wrong there."""
    options = ["--models", case.model, "--side", side, "--folder", folder, "--seconds", seconds]
    command = [sys.executable, __file__, *map(str, options), "--backend", backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"{side}, {case.model}: its process failed: {lines[-1]}")
    beginning, times = json.loads(done.stdout.splitlines()[-1])
    return Start(*beginning), times


def fresh(
    case: Case, sides: Sequence[str], weights: Sequence[Any], some: list[Batch], exact: Start,
    *, rounds: int, seconds: float, backend: str,
) -> dict[str, Timing]:  # fmt: skip
    """Time the sides in turn, each time in a new process."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    with TemporaryDirectory() as folder:
        write(Path(folder), weights, some)
        for _ in range(rounds):
            found = {s: in_own_process(s, case, Path(folder), seconds, backend) for s in sides}
            check_starts({side: beginning for side, (beginning, _) in found.items()}, exact)
            for side, (_, measured) in found.items():
                times[side] += measured
    return {side: Timing(values) for side, values in times.items()}


# ---- the table ----


def gflop(model: str) -> float:
    """Count a training step's direct convolutions for one image, in 1e9; no dX of the first one."""
    counts: list[int] = []

    def count(layer: nn.Module, args: Any, y: tg.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            counts.append(2 * y.size * layer.weight.size // y.shape[1])

    with tg.use_backend("numpy"), tg.no_grad():
        net = models.build(model, rng=numpy.random.default_rng(0))
        for layer in net.modules():
            layer.register_forward_hook(count)
        net(tg.zeros(1, *net.image_shape))
    return (3 * sum(counts) - counts[0]) / 1e9


def cells(
    case: Case, timings: Mapping[str, Timing], peers: Sequence[str], *,
    rivals: Sequence[str] = FLOAT32,
) -> list[str]:  # fmt: skip
    """Write ours and, with their ratio to it, the peers; then the ratio to the best rival.

    The rivals are those of the peers that compute in ours' precision.
    """
    ours = timings[OURS].median
    row = [f"{timings[OURS]} (n = {len(timings[OURS].seconds)})"]
    for peer in peers:
        found = timings.get(peer)
        row.append(f"{milliseconds(found.median)} ({found.median / ours:.2f}x)" if found else "-")
    best = min((timings[p].median for p in rivals if p in timings), default=None)
    row.append(f"**{best / ours:.2f}**" if best else "-")
    rate = gflop(case.model) * case.batch_size / ours
    return [*row, f"{case.batch_size / ours:.0f}", f"{rate:.0f}"]


def sides_of(case: Case, peers: Sequence[str] | None) -> tuple[list[str], str | None]:
    """List the sides of a case, and say which was left out."""
    if peers is not None:
        return [OURS, *peers], None
    if case.model in QUICK_TO_COMPILE:
        return [OURS, *PEERS], None
    return [OURS, *(p for p in PEERS if p != "compile")], SLOW_TO_COMPILE.format(case.model)


def usable(
    sides: Sequence[str], model: str, weights: Sequence[Any], some: list[Batch],
    device: str = "cpu",
) -> dict[str, Trainer]:  # fmt: skip
    """Prepare each side; where torch.compile can't run it is left out, with the reason."""
    trainers = {side: trainer(side, model, weights, device) for side in sides}
    if "compile" in trainers:
        try:  # now it compiles; the processes to come find that on disk
            trainers["compile"].step(*some[0])
            trainers["compile"] = trainer("compile", model, weights, device)
        except Exception as error:  # whatever a compiler may raise
            del trainers["compile"]
            print(f"torch.compile is left out: {str(error).splitlines()[0]}", file=sys.stderr)
    return trainers


def measure(
    case: Case, figures: Sequence[str], peers: Sequence[str] | None, *, rounds: int,
    seconds: float, data_dir: Path | None, table: Table, backend: str,
) -> dict[str, dict[str, Timing]]:  # fmt: skip
    """Measure a case's figures and add their rows to the table."""
    sides, left_out = sides_of(case, peers)
    if left_out and left_out not in table.notes:
        table.notes.append(left_out)
    weights, some = fresh_weights(case.model), batches(data_dir, case.batch_size)
    own = tg.backends.get(backend)
    on = torch_device(own)
    exact = begin(trainer(EXACT, case.model, weights, on), some)
    trainers = usable(sides, case.model, weights, some, on)
    found = {}
    if "fresh" in figures:
        found["fresh"] = fresh(
            case, [*trainers], weights, some, exact,
            rounds=rounds, seconds=seconds, backend=backend,
        )  # fmt: skip
    if "alternating" in figures:
        found["alternating"] = alternating(trainers, some, exact, rounds=rounds, backend=own)
    for figure, timings in found.items():
        table.add(case.model, case.batch_size, figure, *cells(case, timings, PEERS))
    return found


def cases(names: str | None, sizes: str, all_of_them: bool) -> list[Case]:
    """List the cases that are asked for; a network that isn't there is skipped, with a line."""
    asked = ALL if all_of_them else STANDARD
    if names:
        asked = tuple(
            Case(name, int(size))
            for name, size in itertools.product(names.split(","), sizes.split(","))
        )
    for name in dict.fromkeys(case.model for case in asked if case.model not in models.names()):
        print(f"{name}: skipped, there is no such network (yet)")
    return [case for case in asked if case.model in models.names()]


def main(
    networks: Annotated[
        str | None, typer.Option("--models", help="Networks, separated by commas.")
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="With --models: of each network.")] = "128",
    everything: Annotated[bool, typer.Option("--all", help="All networks and sizes.")] = False,
    peers: Annotated[str | None, typer.Option(help=f"Some of {','.join(PEERS)}.")] = None,
    figure: Annotated[str, typer.Option(help="fresh, alternating or both.")] = "both",
    data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    backend: BackendName = "numba",
    rounds: Rounds = 3,
    seconds: Annotated[float, typer.Option(help="Of each process of the fresh figure.")] = 3.0,
    quick: Quick = False,
    avx2: Avx2 = False,
    out: Out = None,
    side: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    if side in ("", OURS):
        tg.set_backend(backend)  # in PyTorch's own process it would change malloc
    if side:
        in_this_process(side, networks or "", folder, seconds)
        return
    require_torch("steps.py")
    if avx2:
        restart_with(AVX2_ONLY)
    if quick:
        networks, batch_sizes, rounds, seconds = networks or "resnet20", "16", min(rounds, 2), 0.3
        peers = peers or "NCHW,channels_last,bf16"
    figures = ("fresh", "alternating") if figure == "both" else (figure,)
    if on_gpu(tg.backends.get(backend)):
        if figure == "fresh":
            raise typer.BadParameter("a GPU's clock times one process; take --figure alternating")
        figures = ("alternating",)
    table = Table(TITLE, COLUMNS)
    chosen, results = cases(networks, batch_sizes, everything), {}
    for case in progress(chosen, "networks"):
        found = measure(
            case, figures, peers.split(",") if peers else None, rounds=rounds, seconds=seconds,
            data_dir=data_dir, table=table, backend=backend,
        )  # fmt: skip
        results.update({f"{case.model}, {case.batch_size}, {f}": t for f, t in found.items()})
    images = "CIFAR-10" if data_dir else "built-in shapes"
    table.notes += notes(images, tg.backends.get(backend))
    table.show()
    table.save(out, "steps", lambda axes: plot(axes, results))


def notes(images: str, backend: Backend) -> list[str]:
    """Say what the figures are."""
    return [
        f"images: {images}; backend {backend.name}; {limits(backend)}",
        "GFLOP/s: of direct convolutions, without the dX of the first",
    ]


def plot(axes: Any, results: Mapping[str, Mapping[str, Timing]]) -> None:
    """Draw how many times longer PyTorch takes."""
    series = {
        peer: [t[peer].median / t[OURS].median if peer in t else 0.0 for t in results.values()]
        for peer in PEERS
    }
    bars(axes, [*results], series, unit="PyTorch / ours")


if __name__ == "__main__":
    run(main)
