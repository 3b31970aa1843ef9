"""Local response normalisation on and off, in AlexNet's small network. Krizhevsky et al. 2012, 3.3.

    python examples/experiments/lrn.py                                # a glance, on shapes
    python examples/experiments/lrn.py --data cifar10 --epochs 20 --seeds 3

The paper has 13 % test error without and 11 % with it, by a network with locally connected layers
and a long training; ours is the simpler one of models/alexnet.py. Weight decay and rate are those
that AlexNet has, the rate falls as in the recipe `paper`.
"""

from collections.abc import Iterator

from experiment import Experiment, Variant, perform

OPTIMIZER = {"optimizer": {"lr": 0.01, "weight_decay": 5e-4}}


def on_and_off() -> Iterator[Variant]:
    yield Variant("without LRN", "alexnet_cifar", {"lrn": False}, paper=13)
    yield Variant("with LRN", "alexnet_cifar", {"lrn": True}, paper=11)


EXPERIMENT = Experiment(
    "lrn", on_and_off, changes=OPTIMIZER, paper="paper, by another network: test error, %"
)

if __name__ == "__main__":
    perform(EXPERIMENT)
