"""ReLU against tanh: figure 1 of AlexNet, on its small network. Krizhevsky et al., NIPS 2012, 3.1.

    python examples/experiments/relu_tanh.py                          # a glance, on shapes
    python examples/experiments/relu_tanh.py --data cifar10 --epochs 60

The paper's network reaches 25 % error on CIFAR-10's training images six times sooner with ReLU. No
regularisation of any kind, and the rate is chosen for each network by itself: here each is tried at
three, and the best of three counts. The same rate goes on to the end.
"""

from collections.abc import Iterator

from experiment import Experiment, Variant, epochs_until, perform

PAPER = {"relu": "1 (the unit)", "tanh": 6}
UNREGULARISED = {
    "optimizer": {"weight_decay": 0.0},
    "augment": {"pad": 0, "flip": False},
    "schedule": {"name": "constant"},
}


def activations() -> Iterator[Variant]:
    for activation, time in PAPER.items():
        settings = {"activation": activation, "lrn": False}
        for lr in (0.005, 0.02, 0.08):
            changes = {"optimizer": {"lr": lr}}
            yield Variant(f"{activation}, lr {lr}", "alexnet_cifar", settings, changes, paper=time)


EXPERIMENT = Experiment(
    "relu_tanh",
    activations,
    changes=UNREGULARISED,
    paper="paper: relative time to 25 %, best rate",
    measures={"epochs to 25 % training error": epochs_until(0.25)},
)

if __name__ == "__main__":
    perform(EXPERIMENT)
