"""Run a network over images larger than its own: its fully connected layers become convolutions.

The first of them sees a whole map (C, H, W), as a convolution with an HxW kernel does; those after
it are 1x1 convolutions. On a larger map they slide. CS231n, "Converting FC layers to CONV layers".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from .. import nn
from ..autograd import no_grad
from .registry import Classifier, alike

POINTWISE = (nn.ReLU, nn.Tanh, nn.Dropout)  # they do on a map what they do on a vector


def to_convolutional(model: Classifier) -> nn.Sequential:
    """Return a copy that maps larger images (N, C, H, W) to maps of scores (N, classes, H', W').

    The score at (i, j) belongs to the crop that begins at pixel (i * S, j * S), S being the product
    of all strides. What crops share is computed once. Without padding the scores are the crops',
    to rounding; with it they differ, since a crop has zeros where the image goes on: on noise by
    10 % (of the scores' norm) in a fresh AlexNet, whose last map is 6x6, and by 35 % in a fresh
    alexnet_cifar, whose map of 3x3 is nearly all edge.

    The model must be its `features`, a flattening and its other layers, in their order.
    """
    copied, kind = copy.deepcopy(model), type(model).__name__
    copied.eval()
    features = getattr(copied, "features", None)
    if not isinstance(features, nn.Module):
        raise TypeError(
            f"to_convolutional: {kind} has no layers called `features`; expected them, then fully "
            "connected layers. A network with a global pool takes larger images as it is"
        )
    with no_grad():
        image = copied.noise()
        converted = nn.Sequential(features, *_converted_head(copied, features(image).shape))
        _compare(copied(image).numpy(), converted(image).numpy(), kind)
    converted.train(model.training)
    return converted


def _converted_head(model: Classifier, map_shape: tuple[int, ...]) -> Iterator[nn.Module]:
    """Yield what follows `features`, each fully connected layer as a convolution."""
    kernel = map_shape[2:]
    for layer in _head(model):
        if isinstance(layer, nn.Linear):
            yield _convolution(layer, kernel)
            kernel = (1, 1)
        elif isinstance(layer, POINTWISE):
            yield layer
        elif not isinstance(layer, nn.Flatten):
            kind = type(layer).__name__
            raise TypeError(
                f"to_convolutional: {kind} follows the features; expected Linear and, between "
                f"them, {', '.join(known.__name__ for known in POINTWISE)}"
            )


def _head(model: Classifier) -> Iterator[nn.Module]:
    """Yield the layers after `features`, which may be in a Sequential."""
    for name, child in model.named_children():
        if name != "features":
            yield from child if isinstance(child, nn.Sequential) else (child,)


def _convolution(linear: nn.Linear, kernel: tuple[int, ...]) -> nn.Conv2d:
    """Give a fully connected layer's weights (O, C*H*W) the shape (O, C, H, W)."""
    w = linear.weight
    O, features = w.shape
    C = features // math.prod(kernel)
    conv = nn.Conv2d(C, O, kernel, weight_init=lambda shape, rng: w.numpy().reshape(shape))
    conv.to(w.backend)
    conv.weight.requires_grad, conv.bias = w.requires_grad, linear.bias
    return conv


def _compare(scores: Any, converted: Any, kind: str) -> None:
    """Refuse a model whose forward does more than its layers, which only its scores tell."""
    if not alike(scores, converted[:, :, 0, 0]):
        error = abs(scores - converted[:, :, 0, 0]).max()
        raise ValueError(
            f"to_convolutional: {kind}'s scores differ by {error:.2g} from those of its layers, "
            "`features` first and the others in their order; its forward must be just that"
        )
