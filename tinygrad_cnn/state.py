"""What a computation uses besides its inputs: modes, running statistics, generators, the host.

Whoever uses such state says so; who will repeat the computation listens, and can put it back.
Whoever makes an array on the host says how; who repeats the rest alone has it made again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from .autograd import setting
from .backends import Array, Backend

Feeder = Callable[[Backend, Callable[[], Array]], Array]

_listeners: ContextVar[tuple[Callable[[Any], None], ...]] = ContextVar("listeners", default=())
_feeder: ContextVar[Feeder] = ContextVar("feeder", default=lambda on, make: on.asarray(make()))


def uses(*things: Any) -> None:
    """Say that these are about to be read, and perhaps changed."""
    for listener in _listeners.get():
        for thing in things:
            listener(thing)


def listening(listener: Callable[[Any], None]) -> Any:
    """Call listener(thing) for all that is used inside a `with` block."""
    return setting(_listeners, (*_listeners.get(), listener))


def fed(backend: Backend, make: Callable[[], Array]) -> Array:
    """Give make(), which the host computes, as an array of the backend.

    A recorded step, which is repeated without what Python does in it, keeps `make` and calls it for
    each replay; so it should hold no arrays of the device.
    """
    return _feeder.get()(backend, make)


def feeding(feeder: Feeder) -> Any:
    """Let feeder(backend, make) answer all that is fed inside a `with` block."""
    return setting(_feeder, feeder)
