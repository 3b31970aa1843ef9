"""Random numbers as a function of position.

A prefetching loader, a resumed run and a recomputed activation all see the same numbers, because a
generator is made for each place where numbers are needed and never carried from one to the next.
"""

from __future__ import annotations

import numpy as np

# A purpose's place is part of every stored run: append, never reorder.
PURPOSES = ("shuffle", "augment", "dropout", "split", "shapes")


def rng_at(seed: int, purpose: str, epoch: int = 0, batch: int = 0) -> np.random.Generator:
    """Make the generator that belongs to one purpose, epoch and batch of a run."""
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed is {seed!r}; expected an integer, 0 or more")
    if purpose not in PURPOSES:
        raise ValueError(f"purpose is {purpose!r}; expected one of {', '.join(PURPOSES)}")
    return np.random.default_rng([seed, PURPOSES.index(purpose), epoch, batch])
