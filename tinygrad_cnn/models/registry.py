"""The registry: a name stands for a function that builds a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy

from .. import functional as F
from .. import nn
from ..suggestion import suggestion
from ..tensor import Tensor


class Classifier(nn.Module):
    """A model that maps images (N, *image_shape) to scores (N, classes), and its loss."""

    image_shape: tuple[int, int, int] = (3, 32, 32)  # (C, H, W)
    loss: Callable[..., Tensor] = staticmethod(F.cross_entropy)

    def __call__(self, x: Any, *args: Any, **settings: Any) -> Any:
        """Score images, a Tensor (N, *image_shape)."""
        if not isinstance(x, Tensor):
            kind = f"{type(self).__name__}: got {type(x).__name__}"
            raise TypeError(f"{kind}; expected a Tensor of images (N, C, H, W): tg.tensor(...)")
        return super().__call__(x, *args, **settings)

    def noise(self) -> Tensor:
        """Make an image of the same noise each time, where the weights are and of their dtype.

        What shall be the same network in another form must score it the same.
        """
        weight = self.parameters()[0]
        pixels = numpy.random.default_rng(0).standard_normal((1, *self.image_shape))
        return weight.constant(weight.backend.asarray(pixels.astype(weight.dtype)))


SAME = 1e-3  # of the largest score: far above float32's rounding, far below another forward


def alike(scores: Any, others: Any) -> bool:
    """Say if two models score an image the same, up to rounding; NaNs are like nothing."""
    return bool(abs(scores - others).max() <= SAME * abs(scores).max())


_builders: dict[str, Callable[..., Classifier]] = {}


def register(name: str, builder: Callable[..., Classifier]) -> None:
    """Add a model: `builder(classes=..., rng=..., **settings)` makes it."""
    _builders[name] = builder


def names() -> list[str]:
    """List all names, in the order in which the course meets them."""
    return list(_builders)


def signature(name: str) -> inspect.Signature:
    """Give the parameters that `build` takes for a model, those left out that its name has set.

    >>> list(signature("preact_resnet110").parameters)[:3]  # no depth
    ['classes', 'bottleneck', 'unit']
    """
    made, named = inspect.signature(_builders[name]), getattr(_builders[name], "keywords", {})
    return made.replace(parameters=[p for p in made.parameters.values() if p.name not in named])


def build(name: str, classes: int = 10, **settings: Any) -> Classifier:
    """Build a model with fresh weights; rng=None draws them from the default generator."""
    if name not in _builders:
        raise ValueError(f"no model {name!r}{suggestion(name, _builders)}")
    if classes < 1:
        raise ValueError(f"build: classes is {classes}; expected at least 1")
    return _builders[name](classes=classes, **settings)
