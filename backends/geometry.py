"""Sizes, padding and shape checks of convolution and pooling, shared by every backend.

Every check raises one sentence that begins with the name of the op: what came, what was wanted and,
where one exists, the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

Setting = int | Sequence[int]  # one number for both axes, or (height, width)
Pair = tuple[int, int]
Padding = tuple[Pair, Pair]  # ((top, bottom), (left, right))
Shape = tuple[int, ...]


def pair(value: Setting, *, op: str, name: str, least: int = 1) -> Pair:
    """Read a setting given as one number for both axes or as (height, width)."""
    try:
        h, w = map(index, value if isinstance(value, Sequence) else (value, value))
    except (TypeError, ValueError):
        raise TypeError(f"{op}: {name} is {value!r}; expected an integer or a pair") from None
    if min(h, w) < least:
        raise ValueError(f"{op}: {name} is {value!r}; expected at least {least}")
    return h, w


def conv2d_settings(
    x: Shape, w: Any, *, stride: Setting, padding: Setting | str, dilation: Setting, groups: int
) -> dict[str, Any]:
    """Check a convolution of x (N, C, H, W) with w (O, C/groups, kh, kw), resolve settings."""
    check_conv2d(x, w, groups=groups)
    named = dict(stride=stride, dilation=dilation).items()
    steps = {name: pair(value, op="conv2d", name=name) for name, value in named}
    pads = conv_padding(padding, kernel=w[2:], **steps)
    check_fits(x, op="conv2d", kernel=w[2:], padding=pads, dilation=steps["dilation"])
    return dict(**steps, padding=pads, groups=groups)


def pool2d_settings(
    x: Shape, kernel_size: Setting, stride: Setting | None, padding: Setting, *, op: str
) -> dict[str, Any]:
    """Check a pooling of x (N, C, H, W), resolve settings; stride None is the kernel's size."""
    check_images(x, op=op)
    kernel = pair(kernel_size, op=op, name="kernel_size")
    step = kernel if stride is None else pair(stride, op=op, name="stride")
    h, w = pair(padding, op=op, name="padding", least=0)
    if h > kernel[0] // 2 or w > kernel[1] // 2:  # or a window might lie all outside
        raise ValueError(f"{op}: padding {(h, w)} is more than half of the kernel {kernel}")
    check_fits(x, op=op, kernel=kernel, padding=((h, h), (w, w)))
    return dict(kernel_size=kernel, stride=step, padding=((h, h), (w, w)))


def conv_padding(padding: Setting | str, *, kernel: Pair, stride: Pair, dilation: Pair) -> Padding:
    """Resolve an integer, a pair, "valid" or "same" to ((top, bottom), (left, right)).

    "same" keeps the image's size, so it needs stride 1; where the total is odd, the extra zero goes
    to the bottom and right, as in PyTorch.
    """
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f"conv2d: padding 'same' needs stride 1, got {stride}; use a number")
        total_h, total_w = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (total_h // 2, total_h - total_h // 2), (total_w // 2, total_w - total_w // 2)
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"conv2d: padding is {padding!r}; expected a number, 'same' or 'valid'")
    amount: Any = 0 if padding == "valid" else padding
    h, w = pair(amount, op="conv2d", name="padding", least=0)
    return (h, h), (w, w)


def output_size(
    size: Pair, *, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair = (1, 1)
) -> Pair:
    """Count the positions of a kernel on each axis: floor((n + pads - d(k-1) - 1) / s) + 1.

    CS231n's (W - F + 2P)/S + 1 is the same with d = 1:

    >>> output_size((227, 227), kernel=(11, 11), stride=(4, 4), padding=((0, 0), (0, 0)))
    (55, 55)
    """
    h, w = (
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return h, w


def check_images(x: Shape, *, op: str) -> None:
    """Demand a batch of images: (N, C, H, W)."""
    if len(x) == 4:
        return
    hint = ""
    if len(x) == 3:
        n, h, w = x
        hint = f". One grey channel? x.reshape({n}, 1, {h}, {w})"
        hint += f". One image? x.reshape(1, {n}, {h}, {w})"
    raise ValueError(f"{op}: x is {x}; expected (N, C, H, W){hint}")


def check_conv2d(x: Shape, w: Shape, *, groups: int) -> None:
    """Demand shapes that fit: x (N, C, H, W), w (O, C/groups, kh, kw)."""
    check_images(x, op="conv2d")
    if len(w) != 4 or 0 in w:
        raise ValueError(f"conv2d: w is {w}; expected (O, C/groups, kh, kw), none of them 0")
    if groups < 1 or x[1] % groups or w[0] % groups:
        raise ValueError(
            f"conv2d: groups={groups} must divide the {x[1]} channels of x {x} "
            f"and the {w[0]} filters of w {w}"
        )
    if x[1] != w[1] * groups:
        raise ValueError(
            f"conv2d: x {x} has {x[1]} channels, but w {w} with groups={groups} "
            f"wants {w[1] * groups}"
        )


def check_fits(
    x: Shape, *, op: str, kernel: Pair, padding: Padding, dilation: Pair = (1, 1)
) -> None:
    """Demand that the dilated kernel is no larger than the padded image."""
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    padded = tuple(n + sum(p) for n, p in zip(x[2:], padding, strict=True))
    if reach[0] > padded[0] or reach[1] > padded[1]:
        raise ValueError(
            f"{op}: the kernel covers {reach[0]}x{reach[1]} pixels, but x {x} with its padding has "
            f"only {padded[0]}x{padded[1]}; use a smaller kernel, more padding or larger images"
        )
