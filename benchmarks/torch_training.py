"""The peers in training: a recipe followed in PyTorch, by the same data in the same order.

Our loader feeds the network, augmentation and all; our schedule gives the learning rates, our model
the initial weights. What PyTorch does is the network, its gradients and the updates, as a user
would have them: float32, channels-last, its own number of threads.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator
from contextlib import closing
from typing import Any

import torch
import torch_models
from harness import progress
from torch import nn
from torch.nn import functional as F

import tinygrad_cnn as tg
from tinygrad_cnn import data
from tinygrad_cnn.train import Config, Recipe, Trainer, run

OPTIMIZERS: dict[str, Any] = {  # their settings have the names of ours
    "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam, "adamw": torch.optim.AdamW,
}  # fmt: skip


def train(
    recipe: Recipe, train_set: data.Dataset, test_set: data.Dataset, seed: int
) -> tuple[float, float]:
    """Follow a recipe in PyTorch; give the accuracy on the test set and the seconds of training."""
    with tg.use_backend("numpy"):  # ours for its weights; it computes nothing
        ours = run.build(Config(recipe, seed=seed, backend="numpy"), train_set)
    model = peer(recipe, ours)
    started = time.perf_counter()
    trained = fit(recipe, ours, model)
    seconds = time.perf_counter() - started
    return accuracy(recipe, ours, trained, test_set), seconds


def peer(recipe: Recipe, ours: Trainer) -> nn.Module:
    """Build a network that begins where ours does."""
    if recipe.accumulate > 1:
        raise ValueError(f"accumulate is {recipe.accumulate}; the peer takes whole batches only: 1")
    classes = len(ours.loader.dataset.classes)
    weights = [p.numpy() for p in ours.model.parameters()]
    model = torch_models.with_weights(
        recipe.model, weights, classes=classes, **recipe.model_settings
    )
    dtype: torch.dtype = getattr(torch, recipe.dtype)
    return model.to(dtype=dtype, memory_format=torch.channels_last)


def fit(recipe: Recipe, ours: Trainer, model: nn.Module) -> nn.Module:
    """Do all steps; give the network that is to be tested, which may be the average."""
    settings = dict(recipe.optimizer)
    optimizer = OPTIMIZERS[settings.pop("name")](model.parameters(), **settings)
    schedule = recipe.build_schedule(ours.steps)
    average = copy.deepcopy(model) if recipe.ema else None
    model.train()
    with closing(for_ever(ours.loader)) as batches:
        for step in progress(range(ours.steps), "steps in PyTorch"):
            x, targets = next(batches)
            optimizer.param_groups[0]["lr"] = schedule(step)
            optimizer.zero_grad()
            smoothing, labels = recipe.label_smoothing, torch.from_numpy(targets)
            F.cross_entropy(model(images(x)), labels, label_smoothing=smoothing).backward()
            optimizer.step()
            if average is not None:
                update(average, model, step + 1, recipe.ema)
    return model if average is None else average


def for_ever(loader: data.Loader) -> Generator[Any, None, None]:
    """Go through epoch after epoch."""
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def images(x: Any) -> torch.Tensor:
    """Take a batch over as it lies, channels-last."""
    return torch.from_numpy(x).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Take in the model after its update number `step`, as train.WeightAverage does."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
    for old, new in pairs:
        if old.is_floating_point():  # not batch norm's count of batches
            old.lerp_(new, share)


@torch.inference_mode()
def accuracy(recipe: Recipe, ours: Trainer, model: nn.Module, test_set: data.Dataset) -> float:
    """Measure on the test set; with test_flip each image is judged with its mirror image."""
    loader = data.Loader(
        test_set, 200, seed=0, normalize=ours.loader.statistics, shuffle=False, dtype=recipe.dtype
    )
    model.eval()
    correct = 0
    for x, targets in loader.epoch(0):
        scores = model(images(x))
        if recipe.test_flip:
            scores = scores + model(images(x[..., ::-1].copy()))
        correct += int((scores.argmax(1).numpy() == targets).sum())
    return correct / len(test_set)
