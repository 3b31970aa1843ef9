"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

import tinygrad_cnn as tg

BackendOption = Annotated[
    str | None, typer.Option(help="numpy, numba, cupy or auto; default: TINYGRAD_CNN_BACKEND.")
]


def chosen(backend: str | None) -> tg.backends.Backend:
    """Give the backend that the option names, else the one new tensors are made on."""
    return tg.backends.get(backend) if backend else tg.backends.current()
