"""CUDA graphs: what a function asks of the device, recorded once, then launched as a whole.

The device is done with a small kernel before Python has asked for the next; of a graph it knows all
kernels at once. CUDA C++ Programming Guide, "CUDA Graphs".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class NotRecordable(RuntimeError):
    """What a graph can't hold: something between host and device in the midst of it."""


class Recording:
    """Work that the device does by itself, when called."""

    def __init__(self, graph: Any, allocate: Callable[[int], Any]) -> None:
        self.graph, self.allocate = graph, allocate

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
    cupy.get_default_memory_pool().free_all_blocks()  # the graph's come on top of what is held
    allocate, stream = own_memory(cupy), cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(allocate), no_uploads(cupy), stream:
        stream.begin_capture()
        try:
            work()
        except BaseException:
            with suppress(Exception):  # it may complain, but must end, or the next can't begin
                stream.end_capture()
            raise
        return Recording(stream.end_capture(), allocate)


def own_memory(cupy: Any) -> Callable[[int], Any]:
    """Make an allocator for a graph, which knows its arrays by their addresses.

    CuPy's pool gives blocks back to the device when memory is short, and all when it is no longer
    needed itself, though there be arrays in them. These stay where they are as long as the graph
    does, or an array.
    """
    blocks, device = list[Any](), cupy.cuda.Device().id

    def block(size: int) -> Any:
        blocks.append(cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0))
        return blocks[-1]

    pool = cupy.cuda.MemoryPool(block)

    def allocate(size: int) -> Any:
        memory = pool.malloc(size)  # the pool may give it to others when its owner is gone
        owner = memory, pool, blocks
        return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(memory.ptr, size, owner, device), 0)

    return allocate


@contextmanager
def no_uploads(cupy: Any) -> Iterator[None]:
    """Refuse copies of the host's arrays: CuPy makes them from memory that others get then."""

    def refuse(size: int) -> Any:
        raise NotRecordable(
            f"an array of the host ({size} bytes) came into it, and each replay would see the "
            "values that it has now; put it on the device before"
        )

    cupy.cuda.set_pinned_memory_allocator(refuse)
    try:
        yield
    finally:
        cupy.cuda.set_pinned_memory_allocator(cupy.get_default_pinned_memory_pool().malloc)
