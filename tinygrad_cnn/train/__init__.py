"""Training: the step, the trainer, recipes, checkpoints and runs that can be resumed."""

from .averaging import WeightAverage
from .callbacks import Checkpoints, Diverged, Plot, StopAtNaN
from .checkpoint import CheckpointError
from .config import Config
from .convert import convert
from .loop import Metrics, compute_gradients, evaluate, train_step
from .progress import Progress
from .recipe import Recipe, RecipeError
from .recorded import RecordedStep
from .run import Stopped, resume, start
from .trained import Trained
from .trainer import Callback, Interrupted, Trainer, fit

__all__ = [
    "Callback",
    "CheckpointError",
    "Checkpoints",
    "Config",
    "Diverged",
    "Interrupted",
    "Metrics",
    "Plot",
    "Progress",
    "Recipe",
    "RecipeError",
    "RecordedStep",
    "StopAtNaN",
    "Stopped",
    "Trained",
    "Trainer",
    "WeightAverage",
    "compute_gradients",
    "convert",
    "evaluate",
    "fit",
    "resume",
    "start",
    "train_step",
]  # fmt: skip
