"""Work is cut into parts that depend on its size alone, never on the number of threads.

Threads share the parts among them. A sum has one partial sum for each part, and these are added in
their order: the result is the same, to the last bit, for any number of threads.
"""

from __future__ import annotations

from functools import cache

from numba import njit

MOST = 32  # parts, and so threads that find work
LEAST_VALUES = 8192  # in a part: less isn't worth waking a thread for


def number_of_parts(values: int, rows: int) -> int:
    """Choose into how many parts `rows` rows, of so many values altogether, are cut."""
    return max(1, min(MOST, rows, values // LEAST_VALUES))


@njit
def bounds(rows, parts, part):
    """Give the first row of a part and the first after it; the sizes differ by one at most."""
    return rows * part // parts, rows * (part + 1) // parts


@cache
def pixels_per_row(pixels: int, channels: int, values: int = 256) -> int:
    """Choose how many pixels are looked at as one row: short inner loops are slow.

    They divide the pixels evenly and have about as many values as asked for.

    >>> pixels_per_row(32 * 32, 16), pixels_per_row(3 * 5, 16), pixels_per_row(11, 512)
    (16, 15, 1)
    """
    most = max(1, min(pixels, values // channels))
    return next(k for k in range(most, 0, -1) if pixels % k == 0)
