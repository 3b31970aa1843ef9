"""Table 2 of Identity mappings: where batch norm and ReLU act in a residual unit.

    python examples/experiments/preactivation.py --depths 20          # a glance, on shapes
    python examples/experiments/preactivation.py --data cifar10 --epochs 10 --depths 56
    python examples/experiments/preactivation.py --data cifar10 --seeds 5     # 64,000 steps

He et al., arXiv 1603.05027, section 4.1, figure 4: ResNet-110, and 164 layers of bottlenecks, on
CIFAR-10, the median of five runs.
"""

from collections.abc import Iterator

from experiment import WARM_UP, Experiment, Variant, perform

PAPER = {
    "original": {110: 6.61, 164: 5.93},
    "BN after addition": {110: 8.17, 164: 6.50},
    "ReLU before addition": {110: 7.84, 164: 6.14},
    "ReLU-only pre-activation": {110: 6.71, 164: 5.91},
    "full pre-activation": {110: 6.37, 164: 5.46},
}


def table_2(depth: int) -> Iterator[Variant]:
    for unit, errors in PAPER.items():
        name, model = f"{unit}, {depth} layers", f"preact_resnet{depth}"
        yield Variant(name, model, {"unit": unit}, paper=errors.get(depth, ""))


EXPERIMENT = Experiment("preactivation", table_2, depths=(110, 164), changes=WARM_UP)

if __name__ == "__main__":
    perform(EXPERIMENT)
