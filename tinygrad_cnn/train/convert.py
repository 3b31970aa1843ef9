"""Turn weights that others trained into a file that evaluate and predict take, like a run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from .. import models, nn
from ..data.archives import ARCHIVES
from ..models import WeightsError
from ..models.pretrained import blaming
from . import checkpoint
from .config import Config
from .recipe import Recipe

# What torchvision's weights want pixels normalised with, and akamaster's for CIFAR-10 too.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BORDER = (256 - 224) / 2 / 256  # torchvision scales a picture to 256 pixels and cuts 224 out


def convert(
    source: Path,
    dest: Path,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> str:
    """Write the weights in `source` (see models.read_weights) to `dest`; gives the network's name.

    The network is recognised unless `model` names it; `settings` are its own. `classes` default to
    CIFAR's for a network of its images with as many outputs, else to numbers. `mean` and `std` are
    per channel, of pixels from 0 to 1.
    """
    if dest.suffix != ".safetensors":
        raise WeightsError(f"{dest}: the result's name must end in .safetensors")
    state = models.read_weights(source)
    name = model or models.recognize(state)
    recipe = Recipe.from_dict(dict(model=name, model_settings=settings or {}, steps=1))
    net = _filled(recipe, state, source)
    (outputs, *_), (channels, side, _) = net.parameters()[-1].shape, net.image_shape
    guess = f"cifar{outputs}" if net.image_shape == (3, 32, 32) else ""
    data = guess if guess in ARCHIVES else "unknown"
    labels = classes or (ARCHIVES[data].classes if data in ARCHIVES else range(outputs))
    _check_lengths(
        name, ("class names", labels, outputs), ("means", mean, channels),
        ("deviations", std, channels),
    )  # fmt: skip
    _check_statistics(mean, std)
    arrays = {f"model.{n}": a for n, a in net.state_dict().items()}
    for what, values in {"mean": mean, "std": std}.items():
        arrays[f"normalization.{what}"] = numpy.reshape(values, (-1, 1, 1)).astype(numpy.float64)
    config = Config(recipe, f"converted from {source.name}", data=data)
    border = BORDER if side >= 224 else 0.0
    facts = {"config": config.to_dict(), "classes": list(map(str, labels)), "border": border}
    checkpoint.save(dest, arrays, facts)
    return name


def _check_lengths(name: str, *given: tuple[str, Sequence[Any], int]) -> None:
    for what, values, n in given:
        if len(values) != n:
            raise WeightsError(f"got {len(values)} {what}; {name} with these weights has {n}")


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if not (all(0 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std)):
        raise WeightsError(
            f"got means {tuple(mean)} and deviations {tuple(std)}; expected those of pixels from "
            "0 to 1, no deviation 0. Of 0 to 255? Divide them by 255"
        )


def _filled(recipe: Recipe, state: Mapping[str, Any], source: Path) -> models.Classifier:
    name, settings = recipe.model, recipe.model_settings
    with nn.init.skipped():
        net = models.build(name, **settings)
        last = state.get(f"{models.head_of(net)}.weight", ())
        net = models.build(name, classes=len(last) or 10, **settings)
    with blaming(source, name):
        net.load_state_dict(state)
    return net
