"""Memory that is given back is kept for the next array, instead of being returned to the system.

glibc returns arrays of 32 MB or more (and, at first, of 128 KB) to the system when they are freed.
A training step frees hundreds of megabytes, and getting them back costs a page fault for every 4 KB
that is touched. Three settings of malloc(3) make it keep them. They act on the whole process, so
TINYGRAD_CNN_MALLOPT=0 leaves them alone; other C libraries have no such call.
"""

from __future__ import annotations

import ctypes
import os
import platform

VARIABLE = "TINYGRAD_CNN_MALLOPT"

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # as in malloc.h
MB = 1 << 20


def keep_freed_memory() -> bool:
    """Tell malloc to keep what is freed; False if that is unwanted or can't be done here."""
    if os.environ.get(VARIABLE) == "0" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # larger arrays come from the system and go back to it; older versions take no more than 32 MB
    kept = any(mallopt(M_MMAP_THRESHOLD, limit) for limit in (1024 * MB, 32 * MB))
    return bool(kept and mallopt(M_TRIM_THRESHOLD, 2047 * MB) and mallopt(M_TOP_PAD, 64 * MB))
