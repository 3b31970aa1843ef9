"""State that a computation uses besides its inputs: modes, running statistics, generators.

Whoever uses such state says so; who will repeat the computation listens, and can put it back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from .autograd import setting

_listeners: ContextVar[tuple[Callable[[Any], None], ...]] = ContextVar("listeners", default=())


def uses(*things: Any) -> None:
    """Say that these are about to be read, and perhaps changed."""
    for listener in _listeners.get():
        for thing in things:
            listener(thing)


def listening(listener: Callable[[Any], None]) -> Any:
    """Call listener(thing) for all that is used inside a `with` block."""
    return setting(_listeners, (*_listeners.get(), listener))
