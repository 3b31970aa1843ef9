"""Schedules of the learning rate: each function here returns a function step -> lr.

Use it so: `optimizer.lr = schedule(step)`. Steps count from 0, and are whatever the caller counts,
batches or epochs. Nothing is remembered, so a resumed run needs no state.

>>> schedule = warm_up(multistep(0.1, [32_000, 48_000]), 400, start=0.01, shape="constant")
>>> [round(schedule(step), 6) for step in (0, 399, 400, 32_000, 48_000)]
[0.01, 0.01, 0.1, 0.01, 0.001]
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Literal

Schedule = Callable[[float], float]
Blend = Callable[[float, float, float], float]  # (a, b, t) -> from a at t = 0 to b at t = 1


def constant(lr: float) -> Schedule:
    """Stay at `lr`."""
    return lambda step: lr


def step(lr: float, every: int, gamma: float = 0.1) -> Schedule:
    """Multiply by `gamma` after `every` so many steps."""
    _at_least_one("step", every=every)
    return lambda step: lr * gamma ** (step // every)


def multistep(lr: float, milestones: Iterable[float], gamma: float = 0.1) -> Schedule:
    """Multiply by `gamma` at each milestone.

    He et al., arXiv 1512.03385, section 4.2: ResNets on CIFAR-10 train 64,000 steps with milestones
    at 32,000 and 48,000.
    """
    ordered = sorted(milestones)
    return lambda step: lr * gamma ** bisect_right(ordered, step)


def cosine(lr: float, steps: int, floor: float = 0.0) -> Schedule:
    """Fall from `lr` to `floor` along half a cosine, and stay there after `steps`.

    Loshchilov & Hutter, SGDR, arXiv 1608.03983, equation 5, without restarts.
    """
    _at_least_one("cosine", steps=steps)
    return lambda step: _half_cosine(lr, floor, min(step / steps, 1))


def one_cycle(
    lr: float, steps: int, *, pct_start: float = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos", div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:  # fmt: skip
    """Rise from lr / div_factor to `lr` in a part `pct_start` of the steps, then fall to nearly 0.

    The end is lr / div_factor / final_div_factor. As PyTorch's OneCycleLR, but for its cycle of the
    momentum. Smith & Topin, super-convergence, arXiv 1708.07120.
    """
    _at_least_one("one_cycle", steps=steps)
    if not 0 <= pct_start < 1:
        raise ValueError(f"one_cycle: pct_start is {pct_start}; expected 0 to below 1, such as 0.3")
    blend = _one_of("one_cycle", "anneal_strategy", anneal_strategy, cos=_half_cosine, linear=_line)
    low, end = lr / div_factor, lr / div_factor / final_div_factor
    top, last = pct_start * steps - 1, steps - 1

    def at(step: float) -> float:
        if step < top:
            return blend(low, lr, step / top)
        return blend(lr, end, (min(step, last) - top) / (last - top))

    return at


def warm_up(
    schedule: Schedule, steps: int, start: float = 0.0, *,
    shape: Literal["linear", "constant"] = "linear",
) -> Schedule:  # fmt: skip
    """Begin at `start` instead, and take `steps` to reach the schedule's value; its clock runs on.

    "linear" is a ramp: Goyal et al., arXiv 1706.02677, section 2.2; from a start of 0 the first
    step moves nothing. "constant" stays at `start`, then jumps: ResNet-110 takes 0.01 for 400 steps
    (arXiv 1512.03385, section 4.2).
    """
    _at_least_one("warm_up", steps=steps)
    blend = _one_of("warm_up", "shape", shape, linear=_line, constant=lambda a, b, t: a)
    aim = schedule(steps)
    return lambda step: blend(start, aim, step / steps) if step < steps else schedule(step)


def _line(a: float, b: float, t: float) -> float:
    return a + (b - a) * t


def _half_cosine(a: float, b: float, t: float) -> float:
    return b + (a - b) * (1 + math.cos(math.pi * t)) / 2


def _at_least_one(schedule: str, **setting: float) -> None:
    ((name, value),) = setting.items()
    if not value >= 1:
        raise ValueError(f"{schedule}: {name} is {value}; expected a number of steps, at least 1")


def _one_of(schedule: str, setting: str, value: str, **choices: Blend) -> Blend:
    if value not in choices:
        names = " or ".join(map(repr, choices))
        raise ValueError(f"{schedule}: {setting} is {value!r}; expected {names}")
    return choices[value]
