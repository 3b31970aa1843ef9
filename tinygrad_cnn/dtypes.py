"""What a Tensor may hold: float32 and float64, and as constants integers and booleans."""

from __future__ import annotations

from typing import Any

import numpy


def read(data: Any, dtype: Any) -> Any:
    """Read a number or nested lists of numbers."""
    try:
        if data is None:
            raise TypeError("NumPy would make it NaN")
        return numpy.asarray(data, dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Tensor: can't read {type(data).__name__} as numbers ({error}); "
            "expected an array, a number or nested lists of equal lengths"
        ) from None


def check_dtype(dtype: Any, requires_grad: bool) -> None:
    """Refuse a dtype that a Tensor can't hold, or can't have a gradient in."""
    if dtype.kind not in "iub" and dtype.char not in "fd":  # .name would take NumPy 4 us
        raise TypeError(
            f"Tensor: {dtype} is not supported; expected float32 or float64 "
            "(integers and booleans only as constants)"
        )
    if requires_grad and dtype.kind != "f":
        raise TypeError(
            f"Tensor: {dtype} can't require a gradient; use float32 or float64, "
            "for example x.astype(np.float32)"
        )


def python_number(value: Any) -> Any:
    """Turn a NumPy scalar into a Python number: NumPy's would make float64 of float32."""
    return value.item() if isinstance(value, numpy.generic) else value
