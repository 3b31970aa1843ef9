"""Does a recipe reach the same accuracy here and in PyTorch? Seeds, an interval and a t-test.

    python benchmarks/accuracy.py --data-dir DIR --results FILE --seeds 5 --set epochs=2
    python benchmarks/accuracy.py --results FILE --report

A run has a process of its own and leaves a line in FILE; what is there isn't run again. The test
set is looked at once, after the last step. PyTorch's seeds are others than ours: with equal ones,
weights and batches would be equal too, but the t-test (Welch's, two-sided) wants independent
samples.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from harness import Out, Table, require_torch, versions

import tinygrad_cnn as tg
from tinygrad_cnn import data, train
from tinygrad_cnn.cli import run
from tinygrad_cnn.train import recipe as recipes
from tinygrad_cnn.train import run as runs

FIRST_SEED = {"ours": 0, "torch": 1000}

Record = dict[str, Any]
Images = tuple[data.Dataset, data.Dataset]


# ---- a run ----


def ours(recipe: train.Recipe, images: Images, seed: int) -> tuple[float, float]:
    """Follow a recipe; give the accuracy on the test set and the seconds of training."""
    train_set, test_set = images
    trainer = runs.build(train.Config(recipe, seed=seed), train_set)
    trainer.callbacks = [train.StopAtNaN(), train.Progress()]
    started = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - started
    loader = data.Loader(
        test_set, 200, seed=0, normalize=trainer.loader.statistics, shuffle=False,
        dtype=recipe.dtype,
    )  # fmt: skip
    measured = train.evaluate(trainer.eval_model, loader.epoch(0), flip=recipe.test_flip)
    return measured.accuracy, seconds


def theirs(recipe: train.Recipe, images: Images, seed: int) -> tuple[float, float]:
    """Do the same in PyTorch."""
    require_torch("accuracy.py")
    import torch_training

    return torch_training.train(recipe, *images, seed)


def in_this_process(side: str, setup: Record, seed: int, data_dir: Path | None) -> Record:
    """Do one run; give its line."""
    recipe = train.Recipe.from_dict(setup["recipe"])
    images = data.open_data(setup["data"], data_dir, images=setup["images"])
    accuracy, seconds = (ours if side == "ours" else theirs)(recipe, images, seed)
    found = dict(accuracy=accuracy, seconds=round(seconds, 1))
    return dict(side=side, seed=seed, **found, setup=setup, versions=versions())


def in_own_process(side: str, seed: int, threads: int | None) -> None:
    """Start this program again for one run."""
    limits = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    env = os.environ | (dict.fromkeys(limits, str(threads)) if threads else {})
    command = [sys.executable, *sys.argv, "--side", side, "--seed", str(seed)]
    if subprocess.run(command, env=env, check=False).returncode:
        raise RuntimeError(f"the run of seed {seed} ({side}) failed; what it said stands above")


# ---- the file of results ----


def read(path: Path) -> list[Record]:
    """Read the lines that runs have left."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def append(path: Path, record: Record) -> None:
    """Add a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(f"{record['side']}, seed {record['seed']}: {record['accuracy']:.2%}", flush=True)


def missing(path: Path, setup: Record, sides: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """List the runs that have no line yet: (side, seed), the sides in turn."""
    done = {(line["side"], line["seed"]) for line in read(path) if line["setup"] == setup}
    wanted = [(side, FIRST_SEED[side] + n) for n in range(seeds) for side in sides]
    return [each for each in wanted if each not in done]


# ---- the table ----


def accuracies(records: Sequence[Record]) -> dict[str, dict[str, list[float]]]:
    """Map each setup, as JSON, to each side's accuracies in %."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: {s: [] for s in FIRST_SEED})
    for record in records:
        setup = json.dumps(record["setup"])
        found[setup][record["side"]].append(100 * record["accuracy"])
    return dict(found)


def compared(a: Sequence[float], b: Sequence[float]) -> tuple[str, str]:
    """Write the difference of two means with its 95 % interval, and p that it is by chance."""
    if min(len(a), len(b)) < 2:
        return "-", "-"
    from scipy import stats

    test = stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(0.95)
    difference = statistics.mean(a) - statistics.mean(b)
    return f"{difference:+.2f} ({low:+.2f} to {high:+.2f})", f"{test.pvalue:.2f}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Write mean, standard deviation and number of some values."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation} (n = {len(values)})"


def summary(records: Sequence[Record]) -> Table:
    """Make the table, a row for each setup."""
    columns = [
        "network", "data", "length", "ours, %", "PyTorch, %", "difference (95 % interval)", "p",
    ]  # fmt: skip
    table = Table("Accuracy by the same recipe, mean ± standard deviation over seeds", columns)
    for text, sides in accuracies(records).items():
        setup = json.loads(text)
        both = [sides["ours"], sides["torch"]]
        table.add(*_what(setup), *map(mean_and_deviation, both), *compared(*both))
        table.notes.append(f"recipe: {json.dumps(setup['recipe'])}")
    return table


def _what(setup: Mapping[str, Any]) -> list[str]:
    recipe, images = setup["recipe"], setup["images"]
    length = f"{recipe['epochs']} epochs" if "epochs" in recipe else f"{recipe['steps']} steps"
    return [recipe["model"], setup["data"] + (f", {images} images" if images else ""), length]


def plot(axes: Any, found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw every run as a point, a column for each side of each setup."""
    columns = [
        ("\n".join([*_what(json.loads(setup)), side]), values)
        for setup, sides in found.items()
        for side, values in sides.items()
    ]
    for x, (_, values) in enumerate(columns):
        axes.plot([x] * len(values), values, "o", alpha=0.6)
    axes.set_xticks(range(len(columns)), [label for label, _ in columns])
    axes.set_ylabel("test accuracy, %")


def main(
    results: Annotated[Path, typer.Option(help="A JSON text per run; made and added to.")],
    recipe: Annotated[str, typer.Option(help="Its name or .toml file.")] = "paper",
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="CIFAR-10's; else shapes.")] = None,
    images: Annotated[int | None, typer.Option(help="Only so many; default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each side.")] = 5,
    side: Annotated[str, typer.Option(help="ours, torch or both.")] = "both",
    seed: Annotated[int | None, typer.Option(hidden=True)] = None,
    report: Annotated[bool, typer.Option("--report", help="Only print the table.")] = False,
    backend: Annotated[str, typer.Option(help="Ours: numba or numpy.")] = "numba",
    threads: Annotated[int | None, typer.Option(help="Of each side; default: all.")] = None,
    out: Out = None,
) -> None:
    if side not in (*FIRST_SEED, "both"):
        raise typer.BadParameter(f"--side is {side!r}; expected ours, torch or both")
    chosen = recipes.load(recipe).override(*map(recipes.parse, settings or []))
    named = "cifar10" if data_dir else "shapes"
    setup: Record = dict(recipe=chosen.to_dict(), data=named, images=images)
    if seed is not None:
        if side == "ours":  # in PyTorch's own process it would change malloc
            tg.set_backend(backend)
        append(results, in_this_process(side, setup, seed, data_dir))
        return
    sides = list(FIRST_SEED) if side == "both" else [side]
    for each, number in [] if report else missing(results, setup, sides, seeds):
        in_own_process(each, number, threads)
    table = summary(read(results))
    table.show()
    table.save(out, "accuracy", lambda axes: plot(axes, accuracies(read(results))))


if __name__ == "__main__":
    run(main)
