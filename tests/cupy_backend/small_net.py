"""A net small enough for an emulated GPU."""

import numpy as np

import tinygrad_cnn as tg
from tinygrad_cnn import models, nn


class SmallNet(models.Classifier):
    """A residual net in which every kernel of one runs, and dropout if wanted."""

    def __init__(self, seed=0, *, dropout=0.0):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False, rng=rng)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, rng=rng)
        self.bn2 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(8, 4, rng=rng)

    def forward(self, x):
        x = self.bn1(self.conv1(x), relu=True)
        x = self.bn2(self.conv2(x), residual=x, relu=True)
        x = tg.functional.max_pool2d(x, 3, 2, padding=1)
        return self.fc(self.drop(tg.functional.global_avg_pool2d(x)))
