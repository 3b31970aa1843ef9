"""CUDA graphs: what a function asks of the device, recorded once, then launched as a whole.

The device is done with a small kernel before Python has asked for the next; of a graph it knows all
kernels at once. CUDA C++ Programming Guide, "CUDA Graphs".
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class NotRecordable(RuntimeError):
    """What a graph can't hold: something between host and device in the midst of it."""


class Recording:
    """Work that the device does by itself, when called."""

    def __init__(self, graph: Any, memory: OwnMemory) -> None:
        self.graph, self.memory = graph, memory

    def __call__(self) -> None:
        """Ask for it on the current stream, so after what was asked for before."""
        self.graph.launch()


def record(cupy: Any, work: Callable[[], None]) -> Recording:
    """Record what `work` asks of the device, doing none of it.

    Later it is done with the values that arrays have then, but with numbers as they are now. What
    `work` launches must have run before, for a kernel can't be compiled in the meantime. It can't
    read from the device, copy arrays to it, or use cuBLAS. An array that it allocates shares its
    memory with others, and has values only from where the work writes them to where it ends.
    """
    gc.collect()  # an older graph's memory is free now, and nothing is freed in the meantime
    cupy.get_default_memory_pool().free_all_blocks()  # the graph's come on top of what is held
    memory, stream = OwnMemory(cupy), cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(memory.allocate), stream:
        stream.begin_capture()
        try:
            work()
        except BaseException:
            with suppress(Exception):  # it may complain, but must end, or the next can't begin
                stream.end_capture()
            raise
        return Recording(stream.end_capture(), memory)


class OwnMemory:
    """The memory of a graph, which knows its arrays by their addresses.

    It stays where it is as long as the graph does, or an array in it. CuPy's pool won't do: it
    gives blocks back to the device when memory is short, and keeps them for ever if it dies first.
    """

    def __init__(self, cupy: Any) -> None:
        self.cuda, self.device = cupy.cuda, cupy.cuda.Device().id
        self.free: list[Any] = []  # what no array needs any more; the next may have it

    def allocate(self, size: int) -> Any:
        """Give memory of so many bytes, as CuPy asks for it."""
        fitting = (memory for memory in self.free if size <= memory.size <= 2 * size)
        memory = min(fitting, key=lambda m: m.size, default=None)
        if memory is None:
            memory = self.cuda.Memory(size)
        else:
            self.free.remove(memory)
        lent = _Lent(memory, self)
        return self.cuda.MemoryPointer(
            self.cuda.UnownedMemory(memory.ptr, size, lent, self.device), 0
        )


class _Lent:
    """Memory that an array has. When the array goes, another may have it, if there is a graph."""

    def __init__(self, memory: Any, lender: OwnMemory) -> None:
        self.memory, self.lender = memory, weakref.ref(lender)

    def __del__(self) -> None:
        lender = self.lender()
        if lender is not None:
            lender.free.append(self.memory)
