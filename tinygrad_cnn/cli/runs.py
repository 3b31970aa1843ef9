"""The command `compare`: several runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .table import print_table

EXAMPLES = """\
Examples:

* `tinygrad-cnn compare runs/resnet20-shapes runs/plain20-shapes`
* `tinygrad-cnn compare runs/* --out compare.png`
"""

RunsArgument = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", show_default=False)
]
PictureOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.png", help="Draw the curves of all into this file."),
]

COLUMNS = ("model", "recipe", "data", "backend", "seed", "epochs", "parameters",
           "best_validation", "test_accuracy", "images_per_second")  # fmt: skip
HEADERS = {
    "best_validation": "best val.", "test_accuracy": "test acc.", "images_per_second": "images/s",
}  # fmt: skip


def compare(runs: RunsArgument, out: PictureOption = None) -> None:
    """Compare runs: how well each did, in what they differ, and their curves.

    A run that is unfinished or damaged is named, and the rest compared all the same.
    """
    from .. import report

    found = [report.read_run(path) for path in runs]
    rows = [report.row(run) for run in found]
    known = [run for run in found if run.config or run.history]
    if known:
        names = report.short_names(runs)
        _print_rows(names, rows)
        _print_differences(
            [name for name, run in zip(names, found, strict=True) if run.config],
            report.differences(found),
        )
    for row in rows:
        if row["problems"]:
            print(f"{row['run']}: {row['problems']}")
    if not known:
        raise ValueError("none of these is a run's folder; see what train wrote to --out")
    if out is not None:
        report.plot_comparison([run for run in found if run.history], out)
        print(f"the curves are in {out}")


def _print_rows(names: list[str], rows: list[dict[str, Any]]) -> None:
    headers = ["run", *(HEADERS.get(key, key) for key in COLUMNS)]
    cells = [[_cell(key, row[key]) for key in COLUMNS] for row in rows]
    print_table(headers, [[n, *c] for n, c in zip(names, cells, strict=True)], words=5)


def _print_differences(names: list[str], differences: dict[str, list[Any]]) -> None:
    """List the settings in which the runs differ."""
    if differences:
        print("\nwhat differs:")
        rows = [[key, *map(_value, values)] for key, values in differences.items()]
        print_table(["setting", *names], rows)
        print()


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in ("best_validation", "test_accuracy"):
        return f"{value:.2%}"
    return f"{value:,.0f}" if key in ("parameters", "images_per_second") else str(value)


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)
