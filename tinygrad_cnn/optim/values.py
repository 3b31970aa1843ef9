"""What the value of a setting may be: a test, and the words for what passes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

Fits = Callable[[Any], bool]


def number(value: Any) -> bool:
    """Test for a finite number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def from_0(value: Any) -> bool:
    """Test for a number from 0 on."""
    return number(value) and value >= 0


def below_1(value: Any) -> bool:
    """Test for a number from 0 to below 1."""
    return from_0(value) and value < 1


def flag(value: Any) -> bool:
    """Test for True or False."""
    return isinstance(value, bool)


def list_of(fits: Fits, n: int | None = None) -> Fits:
    """Make the test for a list, of n values if n is given, that all fit."""
    return lambda value: (
        isinstance(value, list | tuple) and n in (None, len(value)) and all(map(fits, value))
    )


VALUES: dict[str, tuple[Fits, str]] = {
    **dict.fromkeys(("lr", "weight_decay", "eps"), (from_0, "a number from 0 on")),
    **dict.fromkeys(("momentum", "alpha"), (below_1, "a number from 0 to below 1")),
    "nesterov": (flag, "True or False"),
    "betas": (list_of(below_1, 2), "two numbers from 0 to below 1, such as 0.9 and 0.999"),
}
