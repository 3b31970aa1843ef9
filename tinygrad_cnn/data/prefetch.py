"""The next item is prepared while this one is used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_ahead(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[Result, None, None]:
    """Yield function(item) for each item; a thread works on the next one meanwhile.

    An error of `function` surfaces here. The thread ends with the iterator, also with one that is
    left before its end.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        jobs = (thread.submit(function, item) for item in items)
        job = next(jobs, None)
        while job:
            ready, job = job, next(jobs, None)  # the next one is on its way before this is used
            yield ready.result()
    finally:
        thread.shutdown(cancel_futures=True)
