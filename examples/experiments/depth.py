"""Residual networks from 20 to 110 layers: depth pays. He et al., arXiv 1512.03385, table 6.

    python examples/experiments/depth.py --depths 8,20                # a glance, on shapes
    python examples/experiments/depth.py --data cifar10 --epochs 10
    python examples/experiments/depth.py --data cifar10 --seeds 5     # the paper's 64,000 steps

The 110 layers begin at a rate of 0.01, as in the paper, which gives their best of five runs; mean
and deviation there are 6.61 +- 0.16.
"""

from collections.abc import Iterator

from experiment import WARM_UP, Experiment, Variant, perform

PAPER = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43}


def resnet(depth: int) -> Iterator[Variant]:
    changes = WARM_UP if depth == 110 else {}
    yield Variant(f"ResNet-{depth}", f"resnet{depth}", changes=changes, paper=PAPER.get(depth, ""))


EXPERIMENT = Experiment("depth", resnet, depths=tuple(PAPER))

if __name__ == "__main__":
    perform(EXPERIMENT)
