"""Data sets as NumPy arrays: what to train on, and in which batches."""

from .augment import (
    ColourJitter,
    Cutout,
    RandomCropAndFlip,
    channel_statistics,
    colour_covariance,
    crop_and_flip,
    normalize,
    random_crop_and_flip,
)
from .cifar import cifar10, cifar100, data_folder
from .dataset import DataError, Dataset, split
from .folder import image_folder
from .image import read_image
from .load import load, open_data
from .loader import Loader
from .randomness import rng_at
from .resident import ResidentLoader
from .shapes import shapes

__all__ = [
    "ColourJitter",
    "Cutout",
    "DataError",
    "Dataset",
    "Loader",
    "RandomCropAndFlip",
    "ResidentLoader",
    "channel_statistics",
    "cifar10",
    "cifar100",
    "colour_covariance",
    "crop_and_flip",
    "data_folder",
    "image_folder",
    "load",
    "normalize",
    "open_data",
    "random_crop_and_flip",
    "read_image",
    "rng_at",
    "shapes",
    "split",
]
