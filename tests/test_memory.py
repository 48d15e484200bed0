"""What glibc does with freed memory."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = """
import ctypes, re, resource, sys
from pathlib import Path
from petseg import memory
getattr(memory, sys.argv[1])()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def round():
    blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(64 << 20))) for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, 64 << 20)
    heap = re.findall(r"\\[heap\\].*?AnonHugePages: *(\\d+)", Path("/proc/self/smaps").read_text(), re.DOTALL)
    for block in blocks:
        libc.free(block)
    return sum(map(int, heap))
huge = round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, huge)
"""
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGES = 4 * 2 * (64 << 20) // 4096


def of_rounds(way):
    """Pages that four rounds of two blocks of 64 MiB were given anew, and kilobytes in huge pages."""
    return map(int, subprocess.check_output([sys.executable, "-c", ROUNDS, way], text=True).split())


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone")
def test_freed_memory_is_kept_in_huge_pages_or_given_back():
    pages, huge = of_rounds("keep_freed_memory")
    assert pages < PAGES / 100
    assert huge > 100_000 or "[never]" in HUGE.read_text()
    pages, huge = of_rounds("give_back_freed_memory")
    assert (pages > PAGES / 2, huge) == (True, 0)
