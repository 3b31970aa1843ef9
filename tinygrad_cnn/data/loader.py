"""Batches of a data set, as a function of position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .augment import Statistics, normalize
from .dataset import Dataset
from .randomness import rng_at

Batch = tuple[NDArray[Any], NDArray[np.int64]]
Augment = Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]


class Loader:
    """Cut a data set into batches (x, y): normalised images (N, C, H, W) and labels (N,).

    `normalize` is (mean, std), from channel_statistics of the training set; `augment`, such as
    random_crop_and_flip, is given the normalised images and a generator. A batch depends on seed,
    epoch and batch number only and nothing is remembered: a loader's state is (epoch, batch).
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        normalize: Statistics,
        augment: Augment | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        dtype: DTypeLike = np.float32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"Loader: batch_size is {batch_size}; expected at least 1")
        rng_at(seed, "shuffle")  # a bad seed is refused here, not in mid-training
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.statistics, self.augment, self.shuffle = normalize, augment, shuffle
        self.drop_last, self.dtype = drop_last, dtype
        if not len(self):
            raise ValueError(
                f"Loader: {len(dataset)} images make no batch of {batch_size}; "
                f"lower batch_size or leave drop_last out"
            )

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Go through the batches of one epoch, from batch `start` on."""
        if epoch < 0 or not 0 <= start <= len(self):
            raise ValueError(
                f"Loader: epoch {epoch} from batch {start}; "
                f"expected an epoch from 0 on and a batch from 0 to {len(self)}"
            )
        order = np.arange(len(self.dataset))
        if self.shuffle:
            rng_at(self.seed, "shuffle", epoch).shuffle(order)
        return (self._batch(order, epoch, batch) for batch in range(start, len(self)))

    def _batch(self, order: NDArray[np.intp], epoch: int, batch: int) -> Batch:
        chosen = self.dataset.subset(order[batch * self.batch_size :][: self.batch_size])
        x = normalize(chosen.images, *self.statistics, dtype=self.dtype)
        if self.augment:
            x = self.augment(x, rng_at(self.seed, "augment", epoch, batch))
        return x, chosen.labels
