"""Deeper plain networks get worse, deeper residual ones don't. He et al., arXiv 1512.03385, 4.2.

    python examples/experiments/degradation.py --depths 20,56        # a glance, on shapes
    python examples/experiments/degradation.py --data cifar10 --epochs 2 --depths 20,56
    python examples/experiments/degradation.py --data cifar10 --seeds 5  # the paper's 64,000 steps

Look at the training error first: a deep plain network is no victim of overfitting, it is harder to
optimise. Both kinds have the same parameters, for option A's shortcuts have none. The paper's
figures are those of table 6; for plain networks it has only figure 6, so theirs are of a
re-implementation.
"""

from collections.abc import Iterator

from depth import PAPER as RESIDUAL
from experiment import WARM_UP, Experiment, Variant, perform

PLAIN = {20: 10.08, 32: 11.15, 44: 14.12, 56: 15.39}


def twins(depth: int) -> Iterator[Variant]:
    for kind, model, paper in ("plain", "plain", PLAIN), ("ResNet", "resnet", RESIDUAL):
        name, changes = f"{kind}-{depth}", WARM_UP if depth == 110 else {}
        yield Variant(name, f"{model}{depth}", changes=changes, paper=paper.get(depth, ""))


EXPERIMENT = Experiment("degradation", twins, depths=(20, 32, 44, 56))

if __name__ == "__main__":
    perform(EXPERIMENT)
