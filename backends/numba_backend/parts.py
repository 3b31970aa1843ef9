"""Work is cut into parts that depend on its size alone, never on the number of threads.

Threads share the parts among them. A sum has one partial sum for each part, and these are added in
their order: the result is the same, to the last bit, for any number of threads.
"""

from __future__ import annotations

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


@njit
def inside(first, step, count, size):
    """Give those t of 0 ... count - 1 for which first + t * step lies in [0, size)."""
    return range(max(0, -(first // step)), min(count, -((first - size) // step)))
