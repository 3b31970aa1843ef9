"""Options that several commands share, and how a shell completes their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tinygrad_cnn as tg

from .. import models
from ..backends.precision import PRECISIONS


def complete_model(incomplete: str) -> list[str]:
    """Give the models whose names begin so."""
    return [name for name in models.names() if name.startswith(incomplete)]


def complete_backend(incomplete: str) -> list[str]:
    """Give the backends whose names begin so."""
    return [name for name in ("auto", *tg.backends.PREFERENCE) if name.startswith(incomplete)]


def complete_precision(incomplete: str) -> list[str]:
    """Give the precisions whose names begin so."""
    return [name for name in PRECISIONS if name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Give the package's recipes whose names begin so, and the TOML files here."""
    from ..train import recipe

    own = [str(path) for path in Path().glob("*.toml")]
    return [name for name in (*recipe.names(), *own) if name.startswith(incomplete)]


def complete_data(incomplete: str) -> list[str]:
    """Give the data sets whose names begin so."""
    known = ("shapes", "cifar10", "cifar100", "folder:")
    return [name for name in known if name.startswith(incomplete)]


DATA_PANEL, MACHINE_PANEL = "Data", "Machine"

BackendOption = Annotated[
    str | None,
    typer.Option(
        help="numpy, numba, cupy or auto; default: TINYGRAD_CNN_BACKEND.",
        rich_help_panel=MACHINE_PANEL,
        autocompletion=complete_backend,
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Folder in which CIFAR's archive or files lie.", rich_help_panel=DATA_PANEL),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        help="CPU threads of BLAS and Numba; default: all.", rich_help_panel=MACHINE_PANEL, min=1
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="Round what convolutions multiply, for a GPU's tensor cores: fp32 (not at all, the "
        "default), tf32, bf16 or fp16. All else stays float32.",
        rich_help_panel=MACHINE_PANEL,
        autocompletion=complete_precision,
    ),
]


def chosen(backend: str | None) -> tg.backends.Backend:
    """Give the backend that the option names, else the one new tensors are made on."""
    return tg.backends.get(backend) if backend else tg.backends.current()
