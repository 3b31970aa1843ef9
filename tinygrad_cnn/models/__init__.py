"""Networks by name.

>>> build("resnet20").num_parameters()
269722
"""

from . import (  # noqa: F401  (importing them fills the registry)
    alexnet,
    classic,
    preact,
    resnet,
    resnet9,
    resnet_imagenet,
)
from .convolutional import to_convolutional
from .pretrained import WeightsError, head_of, load_pretrained, read_weights, recognize
from .registry import Classifier, build, names, register, signature

__all__ = [
    "Classifier", "WeightsError", "build", "head_of", "load_pretrained", "names", "read_weights",
    "recognize", "register", "signature", "to_convolutional",
]  # fmt: skip
