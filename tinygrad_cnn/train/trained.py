"""A trained network as its checkpoint describes it, ready to judge images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy

from .. import backends, data, models, nn
from ..autograd import no_grad
from ..backends.precision import use_precision
from ..models import Classifier
from ..models.registry import alike
from . import checkpoint
from .folder import RunFolder
from .loop import Metrics, evaluate, judge
from .trainer import under

Array = numpy.ndarray[Any, Any]


class Trained:
    """Hold a model, averaged if it was and folded for inference, and what it was trained with.

    `facts` are the checkpoint's; `classes` names the outputs. Images are uint8 (N, C, H, W) and
    normalised here, as they were in training, and with the recipe's test_flip seen twice.
    """

    def __init__(self, arrays: checkpoint.Arrays, facts: checkpoint.Facts) -> None:
        self.facts, self.classes = facts, facts["classes"]
        self.statistics = arrays["normalization.mean"], arrays["normalization.std"]
        recipe = facts["config"]["recipe"]
        self.dtype, self.test_flip = recipe["dtype"], recipe.get("test_flip", False)
        self.border = facts.get("border", 0.0)  # of read_image, where the weights are converted
        self.model = for_inference(rebuild(arrays, facts))

    @classmethod
    def load(cls, path: Path) -> Trained:
        """Read a checkpoint; a run's folder stands for its best one, or else its last."""
        path = RunFolder(path).chosen if path.is_dir() else path
        try:
            return cls(*checkpoint.load(path))
        except KeyError as error:
            raise checkpoint.CheckpointError(
                f"{path} lacks {error}; was it saved by a run?"
            ) from None

    def evaluate(self, dataset: data.Dataset, *, batch_size: int = 200) -> tuple[Metrics, Array]:
        """Measure loss and accuracy on a data set; gives also the probabilities (n, classes)."""
        if len(dataset.classes) != len(self.classes):
            raise ValueError(
                f"evaluate: {dataset.name} has {len(dataset.classes)} classes, but the model was "
                f"trained on {len(self.classes)}; take the data it was trained for"
            )
        scores: list[Array] = []
        loader = data.Loader(
            dataset, batch_size, seed=0, normalize=self.statistics, shuffle=False, dtype=self.dtype
        )
        metrics = evaluate(self.model, loader.epoch(0), flip=self.test_flip, watch=scores.append)
        return metrics, _softmax(numpy.concatenate(scores))

    def read_image(self, path: Path) -> Array:
        """Read a picture as the model takes it: uint8 (C, H, W)."""
        return data.read_image(path, self.model.image_shape, border=self.border)

    def probabilities(self, images: Array) -> Array:
        """Judge images uint8 (N, C, H, W): their probabilities (N, classes)."""
        with no_grad():
            x = data.normalize(images, *self.statistics, dtype=self.dtype)
            return _softmax(judge(self.model, x, flip=self.test_flip).numpy())


def rebuild(arrays: checkpoint.Arrays, facts: checkpoint.Facts) -> Classifier:
    """Build a checkpoint's model as it was trained, with its average's weights if it has one."""
    recipe = facts["config"]["recipe"]
    settings = recipe.get("model_settings", {})
    with nn.init.skipped():
        model = models.build(recipe["model"], classes=len(facts["classes"]), **settings)
    model.astype(recipe["dtype"]).to(backends.current())
    model.load_state_dict(under("average.", arrays) or under("model.", arrays))
    return model


def for_inference(model: Classifier) -> Classifier:
    """Fold the batch norms, unless that changes what the model scores.

    A network of one's own may use its layers in another order than it lists them, which only its
    scores tell, or that it can't run without them.
    """
    folded: Any = nn.fold_batch_norm(model.eval())
    noise = model.noise()
    with no_grad(), use_precision("fp32", noise.backend):  # bf16's rounding is no small difference
        scores = model(noise).numpy()
        try:
            return folded if alike(scores, folded(noise).numpy()) else model
        except (AttributeError, TypeError, ValueError):
            return model  # it uses the convolution in a way of its own


def _softmax(scores: Array) -> Array:
    e = numpy.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
