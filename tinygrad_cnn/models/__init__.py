"""Networks by name.

>>> build("resnet20").num_parameters()
269722
"""

from . import alexnet, classic, preact, resnet, resnet9  # noqa: F401  (importing them fills the registry)
from .convolutional import to_convolutional
from .registry import Classifier, build, names, register, signature

__all__ = ["Classifier", "build", "names", "register", "signature", "to_convolutional"]
