"""Follow a recipe for some minutes here, and for more in PyTorch: compare the accuracies.

    python benchmarks/speedrun.py --data-dir DIR --minutes 10                      # quick
    python benchmarks/speedrun.py --data-dir DIR --recipe speedrun --minutes 60 --side torch

Each side measures how long its steps take, and follows the recipe, its schedule stretched or
shrunk, for as many as fit into its time: --minutes here, --stretch times as many in PyTorch. Time
is that of the training steps. A recipe whose schedule counts steps doesn't shrink and is refused.
Each side has a process of its own, so that it may also be run by itself, at another hour; every run
leaves a line in --results.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy
import typer
from accuracy import Images, append, ours, theirs
from harness import BackendName, Table, machine, require_torch

import tinygrad_cnn as tg
from tinygrad_cnn import data, train
from tinygrad_cnn.cli import run
from tinygrad_cnn.train import recipe as recipes

# Each gives the accuracy on the test set and the seconds of training.
SIDES: dict[str, Callable[[train.Recipe, Images, int], tuple[float, float]]] = {
    "ours": ours, "torch": theirs,
}  # fmt: skip
FEW, MORE = 4, 24  # the difference of two short runs' times is that of steps in full swing


def steps_in(seconds: float, side: str, recipe: train.Recipe, images: Images) -> int:
    """Count the steps that fit into so many seconds."""
    train_set, test_set = images
    few_to_test = train_set, test_set.subset(numpy.arange(1))
    _, few, more = (  # the very first steps may compile
        SIDES[side](recipe.override({"steps": n}), few_to_test, 0)[1] for n in (1, FEW, MORE)
    )
    in_full_swing = max(more - few, more / 2)  # noise may let the few take longer than the more
    return max(1, round(seconds * (MORE - FEW) / in_full_swing))


def check_stretches(name: str, recipe: train.Recipe) -> None:
    """Refuse a schedule that counts steps."""
    lengths = {
        "milestones": recipe.schedule.get("milestones", []),
        "every": [recipe.schedule.get("every", 0)],
        "warm-up's steps": [recipe.warm_up.get("steps", 0)],
    }
    for what, given in lengths.items():
        if counted := [n for n in given if n >= 1]:
            raise ValueError(
                f"recipe {name}: its {what} {counted} are steps, which stay where they are in a "
                "run of any length; give parts of the run, such as 0.5"
            )


def measure(
    side: str, name: str, *, minutes: float, data_dir: Path | None, images: int, seed: int
) -> dict[str, Any]:
    """Train one side for its minutes."""
    recipe, sets = recipes.load(name), data.load(data_dir, images=images)
    check_stretches(name, recipe)
    steps = steps_in(60 * minutes, side, recipe, sets)
    accuracy, seconds = SIDES[side](recipe.override({"steps": steps}), sets, seed)
    return {
        "side": side, "recipe": name, "data": sets[0].name, "images": len(sets[0]), "seed": seed,
        "asked for, minutes": minutes, "minutes": round(seconds / 60, 2), "steps": steps,
        "epochs": round(steps * recipe.batch_size / len(sets[0]), 2),
        "accuracy": accuracy, "settings": recipe.to_dict(), "machine": machine(),
    }  # fmt: skip


def show(found: dict[str, Any]) -> None:
    """Print a run."""
    columns = ["side", "recipe", "data", "asked for, minutes", "minutes", "steps", "epochs"]
    table = Table("Accuracy by the clock", [*columns, "accuracy"], notes=found["machine"])
    table.add(*(found[column] for column in columns), f"{found['accuracy']:.2%}")
    table.show()


def in_own_process(side: str) -> None:
    """Start this program again for one side."""
    if subprocess.run([sys.executable, *sys.argv, "--side", side], check=False).returncode:
        raise RuntimeError(f"the run of side {side} failed; what it said stands above")


def main(
    recipe: Annotated[str, typer.Option(help="Its name or .toml file.")] = "quick",
    minutes: Annotated[float, typer.Option(help="Time of our training steps.")] = 10.0,
    stretch: Annotated[float, typer.Option(help="PyTorch has so many times as long.")] = 1.8,
    data_dir: Annotated[Path | None, typer.Option(help="CIFAR-10's; else shapes.")] = None,
    images: Annotated[int, typer.Option(help="Train on the first so many.", min=5)] = 50_000,
    seed: Annotated[int, typer.Option(help="Of both sides.")] = 0,
    side: Annotated[str, typer.Option(help="ours, torch or both.")] = "both",
    backend: BackendName = "numba",
    results: Annotated[Path, typer.Option(help="A JSON text per run; made and added to.")] = Path(
        "speedrun.jsonl"
    ),
) -> None:
    if side not in (*SIDES, "both"):
        raise typer.BadParameter(f"--side is {side!r}; expected ours, torch or both")
    if side != "ours":
        require_torch("speedrun.py")
    if side == "both":
        for each in SIDES:
            in_own_process(each)
        return
    if side == "ours":  # in PyTorch's own process it would change malloc
        tg.set_backend(backend)
    given = minutes if side == "ours" else stretch * minutes
    found = measure(side, recipe, minutes=given, data_dir=data_dir, images=images, seed=seed)
    append(results, found)
    show(found)


if __name__ == "__main__":
    run(main)
