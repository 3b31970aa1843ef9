"""Ctrl-C and SIGTERM, heeded between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .trainer import Trainer

HEEDED = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def heeded(trainer: Trainer) -> Iterator[None]:
    """Let a signal set trainer.interrupt; when it comes again, it does what it did before."""
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = {number: signal.getsignal(number) for number in HEEDED}

    def ask(number: int, frame: FrameType | None) -> None:
        trainer.interrupt = signal.Signals(number)
        signal.signal(number, before[trainer.interrupt])

    for number in HEEDED:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
