"""What glibc does with memory that a process frees; with another C library both functions do nothing.

Both change the whole process, so that commands call them, not the Python API.
"""

import ctypes
import sys

# of malloc.h: places that threads allocate from, and bytes from which a block is the system's as soon as it is freed
ARENA_MAX, MMAP_THRESHOLD = (-8, 1), (-3, 1 << 20)
# of malloc.h: no block is the system's as soon as it is freed, nor is the heap's end, and the heap grows by 64 MB
MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = (-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)
# bytes of the heap to hold in huge pages, of one of those, and their sign in sys/mman.h
HEAP, HUGE_PAGE, MADV_HUGEPAGE = 1500 << 20, 2 << 20, 14


def give_back_freed_memory() -> None:
    """Makes this process give large blocks back as soon as they are freed.

    With a runtime for `one_photo`, a cold start takes a third less memory: results/benchmarks/cold.json.
    """
    _set(ARENA_MAX, MMAP_THRESHOLD)


def keep_freed_memory() -> None:
    """Makes this process keep what it frees for its next blocks, the first 1.5 GB in huge pages where the system can.

    A step of training frees and takes the same large blocks again. Otherwise each goes back to the system, which fills
    it with zeros anew, 4 KiB at a time: docs/log.md, 2026-11-29.
    """
    if not _set(MMAP_MAX, TRIM_THRESHOLD, TOP_PAD):
        return
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    block = library.malloc(ctypes.c_size_t(HEAP))  # asked for, not written to: it takes no memory yet
    if block:
        start = -(-block // HUGE_PAGE) * HUGE_PAGE
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(block + HEAP - start), MADV_HUGEPAGE)
        library.free(ctypes.c_void_p(block))


def _set(*settings: tuple[int, int]) -> bool:
    """Returns whether the C library took all settings."""
    if sys.platform != "linux":
        return False
    try:
        return all(ctypes.CDLL(None).mallopt(*setting) for setting in settings)
    except AttributeError:  # another C library
        return False
