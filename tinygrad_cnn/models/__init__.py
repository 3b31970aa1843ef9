"""Networks by name.

>>> build("resnet20").num_parameters()
269722
"""

from . import (  # noqa: F401  (importing them fills the registry)
    classic,
    preact,
    resnet,
    resnet9,
    resnet_imagenet,
)
from .registry import Classifier, build, names, register

__all__ = ["Classifier", "build", "names", "register"]
