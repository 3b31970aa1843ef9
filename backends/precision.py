"""In which precision convolutions and small matrix products multiply.

Whatever is chosen, arrays hold float32: weights, activations, gradients, statistics, logits. Below
fp32 a convolution, its gradients and a small matrix product round the two numbers that they are
about to multiply, in the kernel (cupy_backend/tensor_cores.cuh says how), and add up in float32.
All else is not rounded: large products, which go to cuBLAS, pools, norms, the loss, the optimiser,
float64 arrays, and what a backend leaves to the reference (`Backend.choose` tells). In fp16 a
gradient is scaled to be representable, and is infinite from 64 on; no product is rounded to it, as
none knows which of its operands is a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import current
from .base import Backend
from .cupy_backend import CupyBackend
from .cupy_backend.launch import CAPABILITY

PRECISIONS = tuple(CAPABILITY)


class PrecisionUnavailable(RuntimeError):
    """A precision that a backend, or the GPU, does not have; says which to take."""


def check_precision(name: str, backend: Backend) -> None:
    """Raise ValueError for an unknown precision, PrecisionUnavailable for one that is not here."""
    if name not in PRECISIONS:
        raise ValueError(f"no precision {name!r}; there are: {', '.join(PRECISIONS)}")
    if name == "fp32":
        return
    if not isinstance(backend, CupyBackend):
        raise PrecisionUnavailable(
            f"precision {name!r} needs the tensor cores of a GPU, and backend {backend.name!r} "
            "has none; take fp32, or the backend cupy"
        )
    here, least = backend.compute_capability(), CAPABILITY[name]
    if here < least:
        raise PrecisionUnavailable(
            f"precision {name!r} needs a GPU of compute capability {_version(least)}, and this one "
            f"has {_version(here)}; take {' or '.join(_within(here))}"
        )


def _version(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


def _within(capability: int) -> list[str]:
    return [name for name, least in CAPABILITY.items() if least <= capability]


def precision(backend: Backend) -> str:
    """Tell in which precision a backend multiplies float32."""
    return backend.precision if isinstance(backend, CupyBackend) else "fp32"


def set_precision(name: str, backend: Backend | None = None) -> None:
    """Let a backend (the one for new tensors) multiply in fp32, tf32, bf16 or fp16 from now on.

    Raises ValueError or PrecisionUnavailable, as check_precision does.
    """
    backend = backend or current()
    check_precision(name, backend)
    if isinstance(backend, CupyBackend):
        backend.precision = name


@contextmanager
def use_precision(name: str, backend: Backend | None = None) -> Iterator[None]:
    """Let a backend multiply in another precision inside a `with` block."""
    backend = backend or current()
    before = precision(backend)
    set_precision(name, backend)
    try:
        yield
    finally:
        set_precision(before, backend)
