"""Is it going to learn? The checks of CS231n, "Learning and Evaluation", and of two papers.

Every check leaves the model as it was. Each gives figures and, as `verdict`, a sentence on them.
"""

from .activations import DeadReLU, Response, dead_relus, layer_responses
from .lr_range import LrRange, lr_range
from .start import InitialLoss, Overfit, initial_loss, overfit
from .updates import UpdateRatios, update_ratios, verdict

__all__ = [
    "DeadReLU", "InitialLoss", "LrRange", "Overfit", "Response", "UpdateRatios", "dead_relus",
    "initial_loss", "layer_responses", "lr_range", "overfit", "update_ratios", "verdict",
]  # fmt: skip
