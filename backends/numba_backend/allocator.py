"""Memory that is given back is kept for the next array, and lies in large pages.

glibc returns arrays of 32 MB or more (and, at first, of 128 KB) to the system when they are freed.
A training step frees hundreds of megabytes, and getting them back costs a page fault for every 4 KB
that is touched. Three settings of malloc(3) make it keep them.

In pages of 4 KB a kernel that goes through 36 planes at once, as Winograd's do, waits for the table
of pages more than for memory. So Linux is asked for pages of 2 MB in the memory that malloc gets.

Both act on the whole process, so TINYGRAD_CNN_MALLOPT=0 leaves them alone; other C libraries and
systems have no such calls.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from typing import Any

VARIABLE = "TINYGRAD_CNN_MALLOPT"

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # as in malloc.h
MB = 1 << 20


def keep_freed_memory() -> bool:
    """Tell malloc to keep what is freed; False if that is unwanted or can't be done here."""
    if os.environ.get(VARIABLE) == "0" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # larger arrays come from the system and go back to it; older versions take no more than 32 MB
    kept = any(libc.mallopt(M_MMAP_THRESHOLD, limit) for limit in (1024 * MB, 32 * MB))
    kept = kept and libc.mallopt(M_TRIM_THRESHOLD, 2047 * MB) and libc.mallopt(M_TOP_PAD, 64 * MB)
    if kept:
        _ask_for_large_pages(libc, 512 * MB)
    return bool(kept)


def _ask_for_large_pages(libc: Any, size: int) -> None:
    """Let malloc reserve `size` bytes, unused until touched, and ask for large pages there."""
    libc.malloc.restype = ctypes.c_void_p
    start = libc.malloc(ctypes.c_size_t(size))
    if start:  # None: the system grants no such reserve
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = size - mmap.PAGESIZE  # whole pages of this reserve and of nobody else's
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
        libc.free(ctypes.c_void_p(start))
