"""How many cores this process may use, which can be fewer than the machine has."""

import math
import os
from pathlib import Path, PurePosixPath

MOST_THREADS = 1024  # that may be asked for: a runtime starts them all, and a million take all memory
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def core_count() -> int:
    """Returns how many cores this process may use: of its affinity and its container (cgroup v2), at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _container_cores())))


def _container_cores() -> float:
    """Returns the cores that `cpu.max` leaves to this process's group and to those above it; inf without a limit."""
    limit = math.inf
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return limit
    own = PurePosixPath(next((line[3:] for line in lines if line.startswith("0::")), "/"))
    for group in (own, *own.parents):
        try:
            quota, period = (CGROUPS / str(group).lstrip("/") / "cpu.max").read_text(encoding="ascii").split()
        except OSError:  # no such group here: inside a container its own is the root
            continue
        if quota != "max":
            limit = min(limit, int(quota) / int(period))
    return limit
