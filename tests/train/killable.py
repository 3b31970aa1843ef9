"""A small run in a process of its own: python killable.py DIR [STEPS OF A CHECKPOINT]."""

from __future__ import annotations

import sys
from pathlib import Path

from small_run import Small

from tinygrad_cnn import data, models
from tinygrad_cnn.train import Config, run
from tinygrad_cnn.train.recipe import Recipe

RECIPE = {
    "model": "small", "epochs": 12, "batch_size": 16, "ema": 0.99, "label_smoothing": 0.1,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
    "schedule": {"name": "cosine"}, "test_flip": True,
    "augment": {"pad": 4, "flip": True, "colour_jitter": 0.1, "cutout": 8},
}  # fmt: skip


def main(folder: Path, every: int) -> None:
    """Start the run, or go on with it."""
    models.register("small", Small)
    run.report.plot_curves = lambda history, path: None  # half a second in each of the lives
    run.open_data = lambda config: (data.shapes(250), data.shapes(50, train=False))
    if (folder / "config.json").exists():
        run.resume(folder, checkpoint_every=every)
    else:
        config = Config(Recipe.from_dict(RECIPE), validation=50, backend="numpy")
        run.start(folder, config, checkpoint_every=every)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
