"""Batches of a data set, as a function of position."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .augment import Augment, RandomCropAndFlip, Statistics, normalize, normalized_crop_and_flip
from .dataset import Dataset
from .prefetch import one_ahead
from .randomness import rng_at

Batch = tuple[NDArray[Any], NDArray[np.int64]]


class Loader:
    """Cut a data set into batches (x, y): normalised images (N, C, H, W) and labels (N,).

    `normalize` is (mean, std), from channel_statistics of the training set; `augment`, such as
    random_crop_and_flip, is given the normalised images and a generator; of several, each is given
    what the one before made. A batch depends on seed,
    epoch and batch number only and nothing is remembered: a loader's state is (epoch, batch).

    The next batch is prepared by a thread while this one is used, so `augment` may call NumPy, but
    no backend's kernels; prefetch=False does without the thread. `waited` counts the seconds that
    whoever goes through the batches has had to wait for them.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        normalize: Statistics,
        augment: Augment | Sequence[Augment] | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        dtype: DTypeLike = np.float32,
        prefetch: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"Loader: batch_size is {batch_size}; expected at least 1")
        rng_at(seed, "shuffle")  # a bad seed is refused here, not in mid-training
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.statistics, self.shuffle = normalize, shuffle
        self.augment = [augment] if callable(augment) else [*(augment or ())]
        self.drop_last, self.dtype, self.prefetch = drop_last, dtype, prefetch
        self.waited = 0.0
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
        prepare, numbers = partial(self._batch, order, epoch), range(start, len(self))
        return self._timed(
            one_ahead(prepare, numbers) if self.prefetch else (prepare(n) for n in numbers)
        )

    def _timed(self, batches: Generator[Batch, None, None]) -> Iterator[Batch]:
        with closing(batches):
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                self.waited += time.perf_counter() - started
                if batch is None:
                    return
                yield batch

    def _batch(self, order: NDArray[np.intp], epoch: int, batch: int) -> Batch:
        chosen = self.dataset.subset(order[batch * self.batch_size :][: self.batch_size])
        rng = rng_at(self.seed, "augment", epoch, batch)
        return self._prepared(chosen.images, rng), chosen.labels

    def _prepared(self, images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[Any]:
        match self.augment:
            case [RandomCropAndFlip() as first, *rest]:  # the same numbers in one pass
                crops, padding = first.draw(len(images), rng), first.padding
                x = normalized_crop_and_flip(
                    images, *crops, *self.statistics, padding=padding, dtype=self.dtype
                )
            case rest:
                x = normalize(images, *self.statistics, dtype=self.dtype)
        for augment in rest:
            x = augment(x, rng)
        return x
