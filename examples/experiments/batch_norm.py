"""Batch norm on and off: it lets a network learn at rates that would otherwise undo it.

    python examples/experiments/batch_norm.py                         # a glance, on shapes
    python examples/experiments/batch_norm.py --data cifar10 --epochs 5 --seeds 3

Ioffe & Szegedy, arXiv 1502.03167, sections 3.3 and 4.2.1: with batch norm, training needs fewer
steps at the same rate, and far fewer at a higher one, at which the network without it gets nowhere.
Theirs is Inception on ImageNet; here it is three layers of CS231n's ConvNet, at two rates.
"""

from collections.abc import Iterator

from experiment import Experiment, Variant, epochs_until, perform


def on_and_off() -> Iterator[Variant]:
    for lr in (0.01, 0.1):
        for on in (False, True):
            name = f"{'with' if on else 'without'} batch norm, lr {lr}"
            yield Variant(name, "convnet", {"batch_norm": on}, {"optimizer": {"lr": lr}})


EXPERIMENT = Experiment(
    "batch_norm",
    on_and_off,
    paper="",
    measures={"epochs to 50 % training error": epochs_until(0.5)},
)

if __name__ == "__main__":
    perform(EXPERIMENT)
