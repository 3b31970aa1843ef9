"""Follow a recipe for some minutes here, and for more in PyTorch: compare the accuracies.

    python benchmarks/speedrun.py --data-dir DIR --minutes 10                      # quick
    python benchmarks/speedrun.py --data-dir DIR --recipe speedrun --minutes 60 --side pytorch

Each side measures how long its steps take, and follows the recipe, its schedule stretched or
shrunk, for as many as fit into its time: --minutes here, --stretch times as many in PyTorch. Time
is that of the training steps. Each side has a process of its own, so that it may also be run by
itself, at another hour; every result is a line added to --results.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy
import typer
from harness import BackendName, Table, machine, replace, require_torch

import tinygrad_cnn as tg
from tinygrad_cnn import data, train
from tinygrad_cnn.cli import run as run_command
from tinygrad_cnn.train import recipe as recipes
from tinygrad_cnn.train import run

SIDES = ("ours", "pytorch")
FEW, MORE = 4, 24  # the difference of two short runs' times is that of steps in full swing

Train = Callable[..., tuple[float, float]]
Result = dict[str, Any]


def ours(
    recipe: train.Recipe, train_set: data.Dataset, test_set: data.Dataset, seed: int,
    *, steps: int | None = None,
) -> tuple[float, float]:  # fmt: skip
    """Follow a recipe; give the accuracy on the test set and the seconds of training.

    As torch_training.train does, on the backend of new tensors.
    """
    recipe = recipe.override({"steps": steps}) if steps else recipe
    trainer = run.build(train.Config(recipe, seed=seed), train_set)
    trainer.callbacks = [train.StopAtNaN(), train.Progress()]
    trainer.run()
    seconds = sum(timing["seconds"] for timing in trainer.timings)
    loader = data.Loader(
        test_set, 200, seed=seed, normalize=trainer.loader.statistics, shuffle=False,
        dtype=recipe.dtype,
    )  # fmt: skip
    found = train.evaluate(trainer.eval_model, loader.epoch(0), flip=recipe.test_flip)
    return found.accuracy, seconds


def side_of(name: str) -> Train:
    """Give the function that trains on a side."""
    if name == "ours":
        return ours
    import torch_training

    return torch_training.train


def steps_in(seconds: float, follow: Train, recipe: train.Recipe, train_set: data.Dataset) -> int:
    """Count the steps that fit into so many seconds."""
    one = train_set.subset(numpy.arange(1))  # testing isn't training
    # the very first steps compile
    _, few, more = (follow(recipe, train_set, one, 0, steps=n)[1] for n in (1, FEW, MORE))
    return max(1, round(seconds * (MORE - FEW) / max(more - few, 1e-6)))


def measure(
    side: str, name: str, *, minutes: float, data_dir: Path | None, images: int, seed: int,
) -> Result:  # fmt: skip
    """Train one side for its minutes."""
    train_set, test_set = data.load(data_dir, images=images)
    recipe, follow = recipes.load(name), side_of(side)
    steps = steps_in(60 * minutes, follow, recipe, train_set)
    accuracy, seconds = follow(recipe, train_set, test_set, seed, steps=steps)
    return {
        "side": side, "recipe": name, "model": recipe.model, "data": train_set.name, "seed": seed,
        "images": len(train_set), "steps": steps,
        "epochs": round(steps * recipe.batch_size / len(train_set), 2),
        "minutes": round(seconds / 60, 2), "minutes_given": minutes, "test_accuracy": accuracy,
        "machine": machine(),
    }  # fmt: skip


def keep(result: Result, path: Path) -> None:
    """Add a line to a file of results."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    text = f"{before}{json.dumps(result)}\n"
    replace(path, lambda part: part.write_text(text, encoding="utf-8"))


def in_own_process(side: str) -> None:
    """Run this program again for one side."""
    done = subprocess.run([sys.executable, *sys.argv, "--side", side], check=False)
    if done.returncode:
        raise RuntimeError(f"the process of side {side} failed; its message is above")


def main(
    recipe: Annotated[str, typer.Option(help="A recipe's name or .toml file.")] = "quick",
    minutes: Annotated[float, typer.Option(help="Time of our training steps.")] = 10.0,
    stretch: Annotated[float, typer.Option(help="PyTorch has so many times as long.")] = 1.8,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    images: Annotated[int, typer.Option(help="Train on the first so many.", min=5)] = 50_000,
    seed: int = 0,
    side: Annotated[str, typer.Option(help="ours, pytorch or both.")] = "both",
    backend: BackendName = "numba",
    results: Annotated[Path, typer.Option(help="File to which a line is added.")] = Path(
        "speedrun.jsonl"
    ),
) -> None:
    if side != "ours":
        require_torch("speedrun.py")
    if side == "both":
        for each in SIDES:
            in_own_process(each)
        return
    if side not in SIDES:
        raise typer.BadParameter(f"--side is {side!r}; expected ours, pytorch or both")
    if side == "ours":
        tg.set_backend(backend)  # in PyTorch's process it would change malloc
    given = minutes if side == "ours" else stretch * minutes
    found = measure(side, recipe, minutes=given, data_dir=data_dir, images=images, seed=seed)
    keep(found, results)
    show(found)


def show(result: Result) -> None:
    """Print a result."""
    columns = ["side", "recipe", "data", "minutes", "steps", "epochs"]
    table = Table("Accuracy in some minutes", [*columns, "accuracy"], notes=result["machine"])
    table.add(*(result[column] for column in columns), f"{result['test_accuracy']:.2%}")
    table.show()


if __name__ == "__main__":
    run_command(main)
