"""Check and measure all that wants a GPU, in ten minutes: tests, memory, tables beside PyTorch's.

    python benchmarks/gpu.py                              # or: make test-gpu
    python benchmarks/gpu.py --only kernels,layers        # some of it
    python benchmarks/gpu.py --data-dir DIR --race --minutes 40

Runs from a checkout that isn't installed, where CuPy, PyTorch, pytest and what this package depends
on are. Every part is a process of its own with a time of its own; what it leaves of that is the
later ones', and what goes wrong in one doesn't keep the others from running. The report is written
again after each. The exit status is 0 only if nothing failed and nothing ran out of time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

import device  # noqa: E402
import typer  # noqa: E402
from harness import cores, cpu, replace, versions  # noqa: E402

from tinygrad_cnn import backends  # noqa: E402
from tinygrad_cnn.cli import run  # noqa: E402

GRACE = 5.0  # seconds between asking a process to end and ending it
TAIL = 40  # lines of what a part that failed has said, for the report
WORKERS = 12  # at most, of pytest; each holds half a gigabyte of the GPU
ABOUT_EMULATION = ("emulation", "planted_bugs")  # tests that say nothing of a GPU


class Part(NamedTuple):
    """A part of the whole: its share of the time, why it isn't run or "", and its command."""

    share: float
    obstacle: str
    command: Callable[[float, Path], list[Any]]
    about: str


class Result(NamedTuple):
    """How a part went: "passed", "skipped" or else, how long it took, and what it said."""

    name: str
    outcome: str
    seconds: float
    said: str


# ---- the parts, as commands ----


def pytest(*options: str) -> Callable[[float, Path], list[Any]]:
    """Run tests, on several workers where that plugin is there, with no other plugin.

    Warnings are no errors here, for the libraries may be newer than those we know.
    """
    spread = ["-p", "xdist.plugin", "-n", min(WORKERS, cores())] if find_spec("xdist") else []
    ours = ["-o", "filterwarnings=default", "-o", "strict=false", "-o", "addopts="]
    ignored = ("numba_backend", *(f"cupy_backend/test_{name}.py" for name in ABOUT_EMULATION))
    command = [
        *(sys.executable, "-m", "pytest", "tests", "--quiet", "--tb=short", "-rfE"),
        *("-p", "no:cacheprovider", "--continue-on-collection-errors", *ours, *spread, *options),
        *(f"--ignore=tests/{place}" for place in ignored),
    ]
    return lambda seconds, out: command


def inside(name: str) -> Callable[[float, Path], list[Any]]:
    """Run a part of gpu_parts.py."""
    program = [sys.executable, ROOT / "benchmarks" / "gpu_parts.py", name]
    return lambda seconds, out: [*program, "--seconds", f"{seconds - 2 * GRACE:.1f}", "--out", out]


NO_SANITIZER = "compute-sanitizer is neither on the PATH nor in CUDA's folder"


def found_sanitizer() -> str | None:
    """Find compute-sanitizer, which images of CUDA have, but not always on the PATH."""
    homes = os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"
    folders = [os.environ.get("PATH", ""), *(os.path.join(home, "bin") for home in homes if home)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def sanitizer(tool: str) -> Callable[[float, Path], list[Any]]:
    """Run every kernel once under one of compute-sanitizer's tools."""
    program = [found_sanitizer(), "--tool", tool, "--error-exitcode", "9"]
    asked = ["--report-api-errors", "no"] * (tool == "memcheck")  # CuPy's questions may be denied
    return lambda seconds, out: [*program, *asked, *inside("exercise")(seconds, out)]


def selftest(seconds: float, out: Path) -> list[Any]:
    """Check every op's values, gradients and layout; needs no pytest."""
    return [sys.executable, "-m", "tinygrad_cnn", "selftest", "--backend", "cupy"]


def race(data_dir: Path) -> Callable[[float, Path], list[Any]]:
    """Train on CIFAR-10 as D. Page did, to 94 %."""
    return lambda seconds, out: [*inside("race")(seconds, out), "--data-dir", data_dir]


def missing(*modules: str) -> str:
    """Say what of some modules isn't installed; "" if all are."""
    absent = " ".join(name for name in modules if find_spec(name) is None)
    return f"not installed; pip install {absent}" if absent else ""


def parts(data_dir: Path | None) -> dict[str, Part]:
    """List the parts in the order in which they run: an error in the first would be one in all."""
    no_tests, no_peer = missing("pytest", "hypothesis"), missing("torch")
    no_sanitizer = "" if found_sanitizer() else NO_SANITIZER
    found = {
        "selftest": Part(100, "", selftest, "every op's values, gradients and layout"),
        "kernels": Part(
            80, no_tests, pytest("-m", "emulated", "--on-device"),
            "the tests of emulated kernels, tensor cores' fragments too, on the GPU's",
        ),
        "backend": Part(120, no_tests, pytest("-m", "device"), "the tests of backends, on cupy"),
        "memory": Part(50, "", inside("memory"), "1,000 steps need no more memory than 100"),
        "replays": Part(
            30, "", inside("replays"), "steps as CUDA graphs: the same bits, the same memory",
        ),
        "memcheck": Part(35, no_sanitizer, sanitizer("memcheck"), "no access beyond an array"),
        "racecheck": Part(35, no_sanitizer, sanitizer("racecheck"), "no race in shared memory"),
        "layers": Part(55, no_peer, inside("layers"), "convolutions beside cuDNN's"),
        "eager": Part(40, no_peer, inside("eager"), "training steps beside PyTorch's eager ones"),
        "compiled": Part(
            60, no_peer, inside("compiled"), "as CUDA graphs, beside torch.compile's",
        ),
        "bf16": Part(50, no_peer, inside("bf16"), "the same, multiplying in bfloat16"),
    }  # fmt: skip
    if data_dir:
        found["race"] = Part(900, "", race(data_dir), "ResNet-9 towards 94 % on CIFAR-10")
    return found


# ---- running them ----


def environment(cache: Path) -> dict[str, str]:
    """Give what the processes want: this checkout, and what the caller leaves open."""
    places = {
        "CUPY_CACHE_DIR": "cupy", "CUDA_CACHE_PATH": "cuda", "NUMBA_CACHE_DIR": "numba",
        "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton",
        "HYPOTHESIS_STORAGE_DIRECTORY": "hypothesis", "MPLCONFIGDIR": "matplotlib",
    }  # fmt: skip
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    open_ones = {name: str(cache / folder) for name, folder in places.items()} | threads
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return {**open_ones, **os.environ, **ours, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def cache_folder() -> Path:
    """Find where compiled kernels can stay: in the checkout, else for this time only."""
    kept = ROOT / ".gpu_cache"
    try:
        kept.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=kept).close()
    except OSError:
        return Path(tempfile.mkdtemp())
    return kept


def run_part(name: str, part: Part, seconds: float, *, out: Path, env: Mapping[str, str]) -> Result:
    """Run a part for so long at most; all that it says goes to out/log.txt."""
    if part.obstacle:
        return Result(name, "skipped", 0, part.obstacle)
    command, started = [*map(str, part.command(seconds, out))], time.monotonic()
    with (out / "log.txt").open("a+b") as log:
        log.write(f"\n=== {name}: {' '.join(command)}\n".encode())
        log.flush()
        begin = log.tell()
        status = wait(command, seconds, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=env)
        log.seek(begin)
        said = log.read().decode(errors="replace")
    return Result(name, outcome(status, said), time.monotonic() - started, said)


def wait(command: Sequence[str], seconds: float, **settings: Any) -> int | None:
    """Run a command, and all that it starts, for so long; give its exit status.

    Gives None if time was up; then it is first asked to end, upon which pytest says what it found.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, **settings
    )
    try:
        return process.wait(max(GRACE, seconds - GRACE))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def outcome(status: int | None, said: str) -> str:
    """Judge a part by its exit status, None where its time was up."""
    if status is None:
        return "out of time"
    if status and "Device not supported" in said:  # compute-sanitizer, in some virtual machines
        return "skipped"
    return "failed" if status else "passed"


# ---- the report ----


def report(
    results: Sequence[Result], chosen: Mapping[str, Part], header: Sequence[str], out: Path
) -> str:
    """Write down what is known so far."""
    lines = [f"# On a GPU, {date.today()}", "", *(f"{line}  " for line in header), ""]
    lines += ["| part | what is asked | outcome | seconds | its last line |", "|---" * 5 + "|"]
    by_name = {result.name: result for result in results}
    for name, part in chosen.items():
        found = by_name.get(name, Result(name, "not run", 0, ""))
        cells = (name, part.about, found.outcome, f"{found.seconds:.0f}", last_line(found.said))
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    tables = (out / f"{result.name}.md" for result in results)
    lines += [table.read_text(encoding="utf-8") for table in tables if table.exists()]
    for result in results:
        if result.outcome in ("failed", "out of time"):
            tail = result.said.splitlines()[-TAIL:]
            lines += ["", f"### {result.name}: {result.outcome}", "", "```", *tail, "```"]
    return "\n".join(lines) + "\n"


def last_line(said: str) -> str:
    """Give the last line that says something, as a cell of a table."""
    lines = [line.strip(" =") for line in said.splitlines() if line.strip(" =")]
    return lines[-1].replace("|", "/")[:200] if lines else ""


def driver() -> str:
    """Ask nvidia-smi for the driver's version."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi doesn't answer"
    return f"driver {' '.join(said.split()[:1])}"


def choose(all_parts: dict[str, Part], only: str) -> dict[str, Part]:
    """Give the parts that are asked for, by name; all where none is."""
    names = only.split(",") if only else [*all_parts]
    if unknown := [name for name in names if name not in all_parts]:
        raise typer.BadParameter(f"no part {unknown[0]!r}; there are {', '.join(all_parts)}")
    return {name: part for name, part in all_parts.items() if name in names}


def run_all(
    chosen: Mapping[str, Part], header: Sequence[str], *, end: float, out: Path
) -> list[Result]:
    """Run the parts until `end`; each has its share of the time that is left."""
    results: list[Result] = []
    left, env = sum(part.share for part in chosen.values()), environment(cache_folder())
    for name, part in chosen.items():
        seconds = (end - time.monotonic()) * part.share / left
        left -= part.share
        results.append(run_part(name, part, seconds, out=out, env=env))
        text = report(results, chosen, header, out)
        replace(out / "report.md", lambda path, text=text: path.write_text(text, encoding="utf-8"))
        _, outcome, took, said = results[-1]
        print(f"{name:<10} {outcome:<12} {took:4.0f} s  {last_line(said)}", flush=True)
    return results


def main(
    out: Annotated[Path, typer.Option(help="Folder for report, tables and log.")] = Path(
        "gpu-results"
    ),
    minutes: Annotated[float, typer.Option(help="For all of it.", min=0.1)] = 9.5,
    only: Annotated[str, typer.Option(help="Some parts, separated by commas.")] = "",
    race: Annotated[bool, typer.Option("--race", help="ResNet-9 towards 94 %, too.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="CIFAR-10's, for the race.")] = None,
) -> None:
    end = time.monotonic() + 60 * minutes
    if race and data_dir is None:
        raise typer.BadParameter("--race wants --data-dir, the folder with CIFAR-10")
    folder = data_dir.absolute() if race and data_dir else None  # the parts run elsewhere
    chosen = choose(parts(folder), only)
    header = [
        device.card(backends.get("cupy")), f"{cpu()}, {cores()} cores; {driver()}", versions()
    ]  # fmt: skip
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for old in ("log.txt", *(f"{name}.md" for name in chosen)):
        (out / old).unlink(missing_ok=True)
    print(*header, sep="\n", flush=True)
    results = run_all(chosen, header, end=end, out=out)
    print(f"wrote {out / 'report.md'}")
    if bad := [r.name for r in results if r.outcome not in ("passed", "skipped")]:
        raise RuntimeError(f"not passed: {', '.join(bad)}; {out / 'log.txt'} has what was said")


if __name__ == "__main__":
    run(main)
