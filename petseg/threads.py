"""How many threads compute: as many as were asked for, else as many as there are free cores.

Two threads on two cores, one of them busy, are far slower than one: both wait at each of a step's thousand barriers.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from petseg.cores import MOST_THREADS, core_count
from petseg.errors import PetsegError

VARIABLE = "PETSEG_THREADS"
# what makes OpenMP's threads (GNU's, Intel's and LLVM's) sleep at a barrier after a moment instead of spinning. Without
# that moment, tried with GNU's, two threads lost 19 % (U-Net) and 28 % (SegNet) of their speed; one ten times as long
# gains no more (docs/log.md)
PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0"}


def wait_without_spinning() -> None:
    """Makes the threads of a torch that is loaded later sleep when they wait long, unless the user set a variable."""
    if not PATIENCE.keys() & os.environ.keys():
        os.environ.update(PATIENCE)


def thread_count(given: int | None = None) -> int | None:
    """Returns how many threads were asked for: `given`, else PETSEG_THREADS, else None."""
    named = os.environ.get(VARIABLE, "")
    if given is None and named:
        if not named.isdecimal() or not 0 < int(named) <= MOST_THREADS:
            raise PetsegError(f"{VARIABLE} is {named!r}; wanted a whole number above zero, at most {MOST_THREADS}")
        return int(named)
    return given


def recorded_threads(folder: Path) -> int | None:
    """Returns with how many threads a run, or a comparison's first, was made, so that sums repeat; None: not known."""
    for path in (folder / "environment.json", *sorted(folder.glob("runs/*/environment.json"))):
        with suppress(OSError, ValueError, TypeError, KeyError):
            return int(json.loads(path.read_bytes())["threads"])
    return None


def free_cores(seconds: float = 0.2) -> int:
    """Returns how many of this process's cores were idle over a moment, at least 1."""
    cores = core_count()
    before = _busy_seconds()
    if before is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # of the last minute
        return max(1, cores - round(load))
    started = time.monotonic()
    time.sleep(seconds)
    busy = ((_busy_seconds() or 0.0) - before) / (time.monotonic() - started)
    return max(1, min(cores, round((os.cpu_count() or cores) - busy)))


class Follower:
    """Keeps the number of torch's threads, `count` at first, at that of the free cores: 1 to `most`.

    Two trainings that start at one moment each see idle cores and would take them all: a tenth of the speed for both.
    """

    def __init__(self, most: int, count: int, every: float = 2.0) -> None:
        self.most, self.count, self.every = most, count, every
        self._others, self._since, self._told = OtherWork(), time.monotonic(), False

    def look(self) -> None:
        """Looks at what others computed since the last look, unless that was less than `every` seconds ago."""
        if time.monotonic() - self._since < self.every:
            return
        busy, self._others, self._since = self._others.cores(), OtherWork(), time.monotonic()
        if busy is None:
            return
        idle = (os.cpu_count() or self.most) - busy
        fewer, more = round(idle), int(idle + 0.25)  # a core more is taken only when it is idle most of the time
        count = max(1, min(self.most, fewer if fewer < self.count else max(self.count, more)))
        if count != self.count:
            import torch

            torch.set_num_threads(count)
            if count < min(self.count, self.most) and not self._told:
                print(f"other programs are busy: {count} of {self.most} threads until they end", file=sys.stderr)
                self._told = True
            self.count = count


_follower: Follower | None = None


def follow(follower: Follower | None) -> None:
    """Makes `keep_pace` let this one look; None: the number of threads stays as it is."""
    global _follower
    _follower = follower


def keep_pace() -> None:
    """Called between steps of long work: takes fewer threads where other programs are busy, if `follow` said so."""
    if _follower is not None:
        _follower.look()


class OtherWork:
    """What other processes compute from its making on, in core seconds; None without Linux's /proc."""

    def __init__(self) -> None:
        self._before, self._own, self._started = _busy_seconds(), time.process_time(), time.monotonic()

    def seconds(self) -> float | None:
        """Returns the core seconds so far, at least 0."""
        now = _busy_seconds()
        if now is None or self._before is None:
            return None
        return round(max(0.0, now - self._before - (time.process_time() - self._own)), 3)

    def cores(self) -> float | None:
        """Returns how many cores the others kept busy on average."""
        seconds = self.seconds()
        return None if seconds is None else round(seconds / max(1e-3, time.monotonic() - self._started), 2)


def _busy_seconds() -> float | None:
    """Returns the seconds that all cores have worked since the machine started; None without Linux's /proc."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, line.split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
