"""Table 1 of Identity mappings: whatever is done to the shortcut, the identity is better.

    python examples/experiments/shortcuts.py --depths 20 --only "dropout 0.5, 20 layers"
    python examples/experiments/shortcuts.py --data cifar10 --epochs 10 --depths 20
    python examples/experiments/shortcuts.py --data cifar10 --seeds 5   # 110 layers, 64,000 steps

He et al., arXiv 1603.05027, section 3.1: ResNet-110 with its original units on CIFAR-10, the median
of five runs; "fail" is an error above 20 %. A row's settings stand in models/preact.py.
"""

from collections.abc import Iterator

from experiment import WARM_UP, Experiment, Variant, perform

from tinygrad_cnn.models.preact import TABLE_1

PAPER = {
    "original": 6.61,
    "constant scaling 0, F 1": "fail",
    "constant scaling 0.5, F 1": "fail",
    "constant scaling 0.5, F 0.5": 12.35,
    "exclusive gating, bias 0": "fail",
    "exclusive gating, bias -1": "fail",
    "exclusive gating, bias -2": "fail",
    "exclusive gating, bias -3": "fail",
    "exclusive gating, bias -4": "fail",
    "exclusive gating, bias -5": "fail",
    "exclusive gating, bias -6": 8.70,
    "exclusive gating, bias -7": 9.81,
    "shortcut-only gating, bias 0": 12.86,
    "shortcut-only gating, bias -6": 6.91,
    "1x1 convolution": 12.22,
    "dropout 0.5": "fail",
}


def table_1(depth: int) -> Iterator[Variant]:
    for row, error in PAPER.items():
        name, settings = f"{row}, {depth} layers", {"unit": "original", **TABLE_1[row]}
        paper = error if depth == 110 else ""
        yield Variant(name, f"preact_resnet{depth}", settings, paper=paper)


EXPERIMENT = Experiment("shortcuts", table_1, depths=(110,), changes=WARM_UP)

if __name__ == "__main__":
    perform(EXPERIMENT)
