"""The engine of the experiments: variants x seeds, each a run in a folder, then a table and a plot.

An experiment says what varies; here stands how it is carried out. A run lies in
OUT/<variant>/seed<n>, as `tinygrad-cnn train` leaves it. A finished one is skipped, one that was
stopped or killed goes on from its checkpoint, and after each the table and the plot in OUT are
those of all runs there are.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tinygrad_cnn import atomic, cli, report, train
from tinygrad_cnn.cli.table import print_table
from tinygrad_cnn.suggestion import suggestion
from tinygrad_cnn.train import recipe
from tinygrad_cnn.train.config import read_config

CHECKPOINT_EVERY = 200  # steps
CURVES = ("epoch", "train_loss", "train_accuracy")  # what is averaged over seeds and drawn

WARM_UP = {"warm_up": recipe.load("paper-110").warm_up}  # of deep networks

Measure = Callable[[report.Run], float | None]


@dataclass(frozen=True)
class Variant:
    """One row of the table: a network, its settings, changes to the recipe, the paper's figure."""

    name: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    paper: object = ""

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^\w.-]+", "_", self.name)


@dataclass(frozen=True)
class Experiment:
    """What is compared: `variants()`, or with `depths` the `variants(depth)` of each depth.

    `changes` are made to the recipe of all; `measures` are columns beside the errors, and `paper`
    is the header of the paper's figures, if it has any.
    """

    name: str
    variants: Callable[..., Iterable[Variant]]
    depths: tuple[int, ...] = ()
    recipe: str = "paper"
    changes: Mapping[str, Any] = field(default_factory=dict)
    paper: str = "paper: test error, %"
    measures: Mapping[str, Measure] = field(default_factory=dict)

    def rows(self, depths: Sequence[int] = ()) -> list[Variant]:
        """List the variants, of these depths instead of the experiment's if some are given."""
        if depths and not self.depths:
            raise ValueError(f"{self.name} has no depths to choose from; leave --depths out")
        if not self.depths:
            return list(self.variants())
        return [variant for depth in depths or self.depths for variant in self.variants(depth)]

    def configure(self, variant: Variant, size: Mapping[str, int], **choices: Any) -> train.Config:
        """Make the configuration of a variant's run, of these epochs or steps and batch_size."""
        what = {"model": variant.model, "model_settings": dict(variant.settings)}
        made = recipe.load(self.recipe)
        for change in (self.changes, what, variant.changes, size):
            made = made.override(change)
        return train.Config(made, self.recipe, **choices)


# ---- runs ----


def carry_out(folder: Path, config: train.Config) -> None:
    """Bring the run in a folder to its end, if it isn't there yet."""
    how: dict[str, Any] = dict(checkpoint_every=CHECKPOINT_EVERY)
    lost, begun = folder / "diverged.txt", (folder / "config.json").exists()
    if begun:
        _check_same(folder, config)
    if lost.exists():
        return
    try:
        if begun:
            data_dir = Path(config.data_dir) if config.data_dir else None
            train.resume(folder, data_dir=data_dir, threads=config.threads, **how)
        else:
            train.start(folder, config, **how)
    except train.Diverged as error:
        print(error)
        atomic.write(lost, f"{error}\n")


def _check_same(folder: Path, config: train.Config) -> None:
    """Refuse a folder whose run was begun with other settings; where it computes may change."""
    was = read_config(folder)
    now = replace(config, data_dir=was.data_dir, threads=was.threads, backend=was.backend)
    if was != now:
        raise ValueError(
            f"{folder} has a run of other settings (its length, batch size, images or recipe); "
            "give the ones it began with, or another --out"
        )


def runs_of(variant: Variant, out: Path) -> list[report.Run]:
    """Read a variant's runs."""
    return [report.read_run(path) for path in sorted((out / variant.folder).glob("seed*"))]


# ---- what was found ----


def train_error(run: report.Run) -> float | None:
    """Give the error on the training images in the last epoch, in %, as augmented."""
    return 100 * (1 - run.history[-1]["train_accuracy"]) if run.history else None


def test_error(run: report.Run) -> float | None:
    """Give the error on the test images after the last step, in %."""
    return 100 * (1 - run.result["test_accuracy"]) if run.result else None


def epochs_until(error: float) -> Measure:
    """Make the measure of how many epochs it takes to an error on the training images.

    Between two epochs on a straight line; None where that is never reached.
    """

    def measure(run: report.Run) -> float | None:
        before = 1.0
        for epoch, record in enumerate(run.history):
            now = 1 - record["train_accuracy"]
            if now <= error:
                return epoch + (before - error) / (before - now)
            before = now
        return None

    return measure


def table(
    experiment: Experiment, rows: Sequence[Variant], out: Path, length: str = ""
) -> list[list[str]]:
    """Sum up the runs there are, a line for each variant that has some, under a line of headers.

    Runs that aren't of this length, as `told` says it, have theirs beside the variant's name.
    """
    headers = ["variant", "parameters", "runs", "training error, %", "test error, %"]
    lines = [[*headers, *experiment.measures, experiment.paper]]
    measures = [train_error, test_error, *experiment.measures.values()]
    for variant in rows:
        if runs := runs_of(variant, out):
            done = [run for run in runs if run.result]
            cells = [summed_up([m(run) for run in done]) for m in measures]
            lost = sum((run.path / "diverged.txt").exists() for run in runs)
            count = f"{len(done)} + {lost} diverged" if lost else str(len(done))
            name = variant.name + _other_length(runs, length)
            lines.append([name, _parameters(done), count, *cells, str(variant.paper)])
    return lines if experiment.paper else [line[:-1] for line in lines]


def _parameters(runs: Sequence[report.Run]) -> str:
    return f"{runs[0].result['parameters']:,}" if runs else "-"


def _other_length(runs: Sequence[report.Run], length: str) -> str:
    found = {told(train.Config.from_dict(run.config)) for run in runs if run.config}
    return "".join(f" ({other})" for other in sorted(found - {length}))


def summed_up(values: Sequence[float | None]) -> str:
    """Write the median and, of several, mean and standard deviation; and if some are None.

    >>> summed_up([1.0]), summed_up([3.0, 1.0, 8.0]), summed_up([1.0, None])
    ('1.00', '3.00 (4.00 ± 3.61)', '1.00, of 1 of 2 runs')
    """
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    text = f"{statistics.median(known):.2f}"
    if len(known) > 1:
        text += f" ({statistics.mean(known):.2f} ± {statistics.stdev(known):.2f})"
    return text if len(known) == len(values) else f"{text}, of {len(known)} of {len(values)} runs"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Write a table, its headers first, as Markdown."""
    headers, *rows = lines
    return "".join(f"| {' | '.join(row)} |\n" for row in (headers, ["---"] * len(headers), *rows))


def mean_run(variant: Variant, runs: Sequence[report.Run]) -> report.Run:
    """Average the histories of the finished runs, or while there are none of all, over seeds."""
    histories = [run.history for run in runs if run.result] or [run.history for run in runs]
    epochs = zip(*histories, strict=False)  # as far as all of them have come
    means = [{name: statistics.mean(r[name] for r in epoch) for name in CURVES} for epoch in epochs]
    return report.Run(Path(variant.name), history=means)


def write(experiment: Experiment, rows: Sequence[Variant], out: Path, length: str) -> None:
    """Write OUT/table.md, and OUT/curves.png, the mean of each variant's runs."""
    title = f"# {experiment.name}: {length}; median (mean ± standard deviation over seeds)\n\n"
    atomic.write(out / "table.md", title + markdown(table(experiment, rows, out, length)))
    means = [mean_run(variant, runs) for variant in rows if (runs := runs_of(variant, out))]
    if known := [run for run in means if run.history]:
        report.plot_comparison(known, out / "curves.png")


# ---- the command line ----


def numbers(text: str) -> list[int]:
    """Read whole numbers separated by commas.

    >>> numbers("20,56"), numbers("")
    ([20, 56], [])
    """
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise ValueError(f"{text!r} is no list of numbers; expected such as 20,56") from None


def chosen(rows: Sequence[Variant], only: Sequence[str]) -> Iterator[Variant]:
    """Pick the variants of these names, all of them if none is given."""
    names = [variant.name for variant in rows]
    for name in only:
        if name not in names:
            raise ValueError(f"no variant {name!r}{suggestion(name, names)}")
    yield from (variant for variant in rows if variant.name in (only or names))


def perform(experiment: Experiment) -> None:
    """Make a command of an experiment and run it."""

    def main(
        data: Annotated[str, typer.Option(help="shapes, cifar10, cifar100, folder:PATH.")] = "",
        data_dir: Annotated[Path | None, typer.Option(help="Folder with CIFAR.")] = None,
        images: Annotated[int | None, typer.Option(help="Default: all, of shapes 2000.")] = None,
        epochs: Annotated[int | None, typer.Option(help="Length of each run.")] = None,
        steps: Annotated[int | None, typer.Option(help="The same in steps.")] = None,
        batch_size: Annotated[int | None, typer.Option(help="Default: the recipe's.")] = None,
        seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 1,
        depths: Annotated[str, typer.Option(help="Such as 20,56, not the experiment's.")] = "",
        only: Annotated[list[str] | None, typer.Option(help="Only this variant; repeat.")] = None,
        out: Annotated[Path | None, typer.Option(help="Default: runs/<experiment>.")] = None,
        backend: Annotated[
            str | None, typer.Option(help="Default: TINYGRAD_CNN_BACKEND, or the fastest.")
        ] = None,
        threads: Annotated[int | None, typer.Option(help="CPU threads; default: all.")] = None,
    ) -> None:
        data = data or ("cifar10" if data_dir else "shapes")
        glance = data == "shapes"
        if glance and epochs is None and steps is None:
            epochs = 3
        given = dict(epochs=epochs, steps=steps, batch_size=batch_size)
        choices: dict[str, Any] = dict(
            size={name: n for name, n in given.items() if n is not None}, data=data,
            data_dir=str(data_dir.resolve()) if data_dir else None,
            images=images or (2000 if glance else None), backend=backend, threads=threads,
        )  # fmt: skip
        investigate(experiment, choices, seeds, numbers(depths), only or [], out)

    cli.run(main)


def investigate(
    experiment: Experiment, choices: dict[str, Any], seeds: int, depths: Sequence[int],
    only: Sequence[str], out: Path | None,
) -> None:  # fmt: skip
    """Carry out every run, seed by seed; show the table."""
    out = out or Path("runs") / experiment.name
    rows = experiment.rows(depths)
    for seed in range(seeds):
        for variant in chosen(rows, only):
            print(f"\n{experiment.name}: {variant.name}, seed {seed}")
            config = experiment.configure(variant, seed=seed, **choices)
            carry_out(out / variant.folder / f"seed{seed}", config)
            write(experiment, rows, out, told(config))
    headers, *lines = table(experiment, rows, out, told(config))
    print()
    print_table(headers, lines)
    print(f"\nthe table is in {out / 'table.md'}, the curves in {out / 'curves.png'}")


def told(config: train.Config) -> str:
    """Say in words what a run sees, how much at once, and for how long."""
    read = config.recipe
    length = f"{read.epochs} epochs" if read.epochs else f"{read.steps:,} steps"
    images = "all images" if config.images is None else f"{config.images:,} images"
    return f"{length}, batches of {read.batch_size}, on {images} of {config.data}"
