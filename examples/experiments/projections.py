"""Do projection shortcuts help? Options A, B, C of ResNet: He et al., arXiv 1512.03385, 4.1.

    python examples/experiments/projections.py                        # a glance, on shapes
    python examples/experiments/projections.py --data cifar10 --epochs 10 --seeds 3
    python examples/experiments/projections.py --data cifar10 --seeds 5    # as long as in 4.2

Where the shape changes, A pads the identity with zeros and B projects by a 1x1 convolution; C
projects in every block. The paper compares them on ImageNet, with 34 layers (table 3, top-1 error):
B is slightly better than A and C than B, too little to matter. For CIFAR-10 it uses A alone.
"""

from collections.abc import Iterator

from experiment import Experiment, Variant, perform

IMAGENET = {"A": 25.03, "B": 24.52, "C": 24.19}


def options(depth: int) -> Iterator[Variant]:
    for option, error in IMAGENET.items():
        name, settings = f"option {option}, {depth} layers", {"shortcut": option}
        yield Variant(name, f"resnet{depth}", settings, paper=error)


EXPERIMENT = Experiment(
    "projections", options, depths=(20,), paper="paper: ImageNet, 34 layers, top-1 error, %"
)

if __name__ == "__main__":
    perform(EXPERIMENT)
