"""What the benchmarks share: equal results first, then time side by side; tables, plots, machine.

A figure is the median over rounds. In a round every side runs in its turn: first a pause, in which
the threads of the side before fall asleep (a pool that spins costs the next one up to 40 %), then a
call that isn't counted, then some that are. What disturbs the machine for seconds then disturbs all
sides alike, and the ratio of two medians holds where the medians themselves don't.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy
import typer

PAUSE = 0.05  # seconds: OpenBLAS spins for 2**26 cycles after a product
LIBRARIES = {
    "numpy": "NumPy", "numba": "Numba", "cupy-cuda12x": "CuPy", "cupy-cuda13x": "CuPy",
    "torch": "PyTorch", "onnxruntime": "onnxruntime",
}  # fmt: skip
# What both sides read at their start. OpenBLAS too, for the peak that they are measured against.
AVX2_ONLY = {
    **{"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "", "OPENBLAS_CORETYPE": "Haswell"},
    **{"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}

Quick = Annotated[bool, typer.Option("--quick", help="Few and small cases: a minute at most.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and its plot.")]
Avx2 = Annotated[bool, typer.Option("--avx2", help="Keep both sides from using AVX-512.")]
BackendName = Annotated[str, typer.Option(help="numba, numpy or cupy.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often every side has its turn.")]

Call = Callable[[], Any]
T = TypeVar("T")


# ---- equal results ----


class Unequal(RuntimeError):
    """Two sides that computed different things, so that there is nothing to compare."""


def difference(a: Any, b: Any) -> float:
    """Give the largest difference of two arrays in units of b's largest value; NaN stays NaN."""
    a, b = (numpy.asarray(v, numpy.float64) for v in (a, b))
    if a.shape != b.shape:
        return math.inf
    largest = numpy.abs(b).max(initial=0)
    return float(numpy.abs(a - b).max(initial=0) / (largest or 1))


def check_equal(a: Any, b: Any, *, tolerance: float, what: str) -> float:
    """Give the difference of two results; raise Unequal if it is more than `tolerance`."""
    error = difference(a, b)
    if not error <= tolerance:
        raise Unequal(
            f"{what}: results differ by {error:.1e} of the largest value, more than "
            f"{tolerance:.0e}; what computes something else is not timed"
        )
    return error


# ---- time ----


@dataclass(frozen=True)
class Timing:
    """How long the calls of one side took."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The middle one, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the interquartile range, as a share of the median."""
        low, high = numpy.percentile(self.seconds, (25, 75))
        return float((high - low) / 2 / self.median)

    def __str__(self) -> str:
        return f"{milliseconds(self.median)} ±{self.spread:.0%}"


def stopwatch(call: Call) -> float:
    """Time one call in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(
    sides: Mapping[str, Call], *, rounds: int, calls: int = 3,
    clock: Callable[[Call], float] = stopwatch,
) -> dict[str, Timing]:  # fmt: skip
    """Time `calls` calls of every side in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            time.sleep(PAUSE)
            call()
            seconds[name] += [clock(call) for _ in range(calls)]
    return {name: Timing(values) for name, values in seconds.items()}


def geometric_mean(ratios: Iterable[float]) -> float:
    """Average ratios, so that 2 and 1/2 give 1."""
    return statistics.geometric_mean(ratios)


def milliseconds(seconds: float) -> str:
    """Write seconds as milliseconds with three digits."""
    value = 1e3 * seconds
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


# ---- the machine ----


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def threads() -> str:
    """Say how many threads each library of this process runs on."""
    from tinygrad_cnn.backends.numba_backend.threads import available

    found = [f"{available()} (Numba)"]
    if torch := sys.modules.get("torch"):
        found.append(f"{torch.get_num_threads()} (PyTorch)")
    return ", ".join(found)


def versions() -> str:
    """List the versions of Python and of the libraries that are installed."""
    found = [f"Python {platform.python_version()}"]
    for package, name in LIBRARIES.items():
        try:
            found.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def machine() -> list[str]:
    """Describe what the figures were measured on; a line of hardware and one of software."""
    from tinygrad_cnn.backends.numba_backend.host import ISA

    return [
        f"{cpu()}, {cores()} cores, {ISA}; threads: {threads()}; {platform.system()}",
        versions(),
    ]


def ceilings() -> str:
    """Measure what the machine can do at most."""
    return f"measured here: sgemm {sgemm_peak():.0f} GFLOP/s, copy {copy_bandwidth():.0f} GB/s"


def all_blas_threads() -> AbstractContextManager[Any]:
    """Let NumPy's products run on all cores; once Numba's kernels run, they have one thread."""
    return _blas().limit(limits=cores(), user_api="blas")


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # looking for the libraries takes milliseconds: once


def sgemm_peak(n: int = 1536) -> float:
    """Time float32 matrix products on all cores; the best one's GFLOP/s."""
    a, b = numpy.ones((2, n, n), numpy.float32)
    out = numpy.empty_like(a)
    with all_blas_threads():
        best = min(stopwatch(lambda: numpy.matmul(a, b, out=out)) for _ in range(8))
    return 2 * n**3 / best / 1e9


def copy_bandwidth(megabytes: int = 256) -> float:
    """Copy an array larger than the caches on all cores; the best one's GB/s read and written."""
    source, target = numpy.ones((2, megabytes << 17))  # float64
    shares = [*zip(*(numpy.array_split(a, cores()) for a in (target, source)), strict=True)]
    with ThreadPoolExecutor(cores()) as pool:
        best = min(
            stopwatch(lambda: [*pool.map(lambda pair: numpy.copyto(*pair), shares)])
            for _ in range(5)
        )
    return 2 * source.nbytes / best / 1e9


def restart_with(variables: Mapping[str, str]) -> None:
    """Run this program again with environment variables that are read at its start, and end."""
    if any(os.environ.get(name) != value for name, value in variables.items()):
        again = subprocess.run([sys.executable, *sys.argv], env=os.environ | variables, check=False)
        sys.exit(again.returncode)


def require_torch(program: str) -> None:
    """Say in one sentence that a program needs PyTorch."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise RuntimeError(
            f"{program} compares with PyTorch, which isn't installed; pip install torch"
        ) from None


# ---- what is shown and kept ----


@dataclass
class Table:
    """A table of text with a title above and notes below."""

    title: str
    columns: Sequence[str]
    notes: list[str] = field(default_factory=machine)
    rows: list[list[str]] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        """Append a row."""
        self.rows.append([str(cell) for cell in cells])

    def show(self) -> None:
        """Print the table: drawn in a terminal, as Markdown elsewhere."""
        if not sys.stdout.isatty():
            print(self.markdown())
            return
        from rich import print as rich_print
        from rich.markup import escape
        from rich.table import Table as Drawn

        drawn = Drawn(*self.columns, title=self.title, caption=escape("\n".join(self.notes)))
        for row in self.rows:
            drawn.add_row(*map(escape, row))
        rich_print(drawn)

    def markdown(self) -> str:
        """Give the table as Markdown."""
        lines = [list(self.columns), ["---"] * len(self.columns), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.title}\n\n{table}\n\n" + "\n".join(f"{n}  " for n in self.notes) + "\n"

    def write(self, folder: Path, name: str) -> None:
        """Write folder/name.md."""
        folder.mkdir(parents=True, exist_ok=True)
        text = self.markdown()
        replace(folder / f"{name}.md", lambda path: path.write_text(text, encoding="utf-8"))

    def save(self, folder: Path | None, name: str, plot: Callable[[Any], None]) -> None:
        """Write folder/name.md and folder/name.png, drawn by `plot` on Matplotlib's axes."""
        if folder is None:
            return
        from matplotlib.figure import Figure

        self.write(folder, name)
        figure = Figure(figsize=(10, 5), layout="constrained")
        axes = figure.subplots()
        plot(axes)
        axes.set_title(f"{self.title}\n{self.notes[0]}", fontsize=9)
        replace(folder / f"{name}.png", lambda path: figure.savefig(path, format="png", dpi=120))
        print(f"wrote {folder / name}.md and .png")


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside `path` and rename it, so that nobody sees half of it."""
    part = path.with_name(f".{path.name}.part")
    write(part)
    part.replace(path)


def bars(
    axes: Any, labels: Sequence[str], series: Mapping[str, Sequence[float]], *, unit: str
) -> None:
    """Draw a group of bars for each label; where the sides are equal, at 1, is a line."""
    width = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        axes.bar([x + i * width for x in range(len(labels))], values, width, label=name)
    middle = 0.4 - width / 2
    axes.set_xticks([x + middle for x in range(len(labels))], labels, rotation=60, ha="right")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel(unit)
    axes.legend()


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Go through items, with a progress bar in a terminal."""
    from rich.progress import track

    yield from track(items, what, disable=not sys.stdout.isatty(), transient=True)
