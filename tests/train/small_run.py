"""A model with all that a checkpoint must hold and a loop must care for, in milliseconds a step."""

from __future__ import annotations

import numpy as np

from tinygrad_cnn import data, models, nn


class Small(models.Classifier):
    """Convolution, batch norm, dropout and a classifier."""

    def __init__(self, classes=10, *, rng=None):
        self.conv, self.bn = nn.Conv2d(3, 8, 5, stride=4, rng=rng), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(0.25), nn.Linear(8, classes, rng=rng)

    def forward(self, x):
        return self.fc(self.drop(self.bn(self.conv(x), relu=True)).mean((2, 3)))


def small(seed=0):
    return Small(rng=np.random.default_rng(seed))


def make_loader(n=60, batch_size=20, *, seed=0, dataset=None, **settings):
    dataset = dataset or data.shapes(n)
    statistics = data.channel_statistics(dataset.images)
    return data.Loader(dataset, batch_size, seed=seed, normalize=statistics, **settings)
