"""Batches that are prepared where they are used: on a GPU, from a data set that lies there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends import Array, Backend
from .augment import RandomCropAndFlip, scale_and_shift
from .dataset import Dataset, channels_last
from .loader import Loader
from .randomness import rng_at


class ResidentLoader(Loader):
    """Keep the data set's bytes on the device of `backend` and make batches there.

    A batch is the Loader's up to rounding, in one launch: only its numbers cross the bus. `serves`
    tells for which backends, and what `augment`.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, *, backend: Backend, augment: Any = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        if not self.serves(backend, augment):
            raise ValueError(
                f"ResidentLoader: {backend.name} can't make batches with augment={augment}; "
                "take data.Loader"
            )
        super().__init__(dataset, batch_size, prefetch=False, **settings)
        self.backend, self.crops = backend, _crops(augment)
        self.images = backend.asarray(channels_last(dataset.images))
        numbers = scale_and_shift(*self.statistics, dataset.images.shape[1:], self.dtype)
        self.scale, self.shift = (backend.asarray(a) for a in numbers)

    @staticmethod
    def serves(backend: Backend, augment: Any) -> bool:
        """Tell whether batches can be made there: with crops and flips at most."""
        return _crops(augment) is not None and hasattr(backend, "gather_crop_and_flip")

    def _batch(
        self, order: NDArray[np.intp], epoch: int, batch: int
    ) -> tuple[Array, NDArray[np.int64]]:
        chosen = order[batch * self.batch_size :][: self.batch_size]
        crops = self.crops.draw(len(chosen), rng_at(self.seed, "augment", epoch, batch))
        x = self.backend.gather_crop_and_flip(  # type: ignore[attr-defined]
            self.images, chosen, *crops, self.scale, self.shift, padding=self.crops.padding
        )
        return x, self.dataset.labels[chosen]


def _crops(augment: Any) -> Any:
    """Give the crops that `augment` consists of, or None if it has more."""
    match augment:
        case None | []:
            return RandomCropAndFlip(padding=0, flip=False)
        case (RandomCropAndFlip() as crops) | [RandomCropAndFlip() as crops]:
            return crops
    return None
