"""Runs many independent jobs, in the shape of `concurrent.futures`: in processes of this machine, or on Ray.

What takes an `Executor` does not know which (`experiments.ray_tasks` has the other).
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from petseg.errors import PetsegError
from petseg.memory import keep_freed_memory

T = TypeVar("T")
# macOS's own libraries do not bear a fork
_FORKS = sys.platform != "darwin" and "forkserver" in multiprocessing.get_all_start_methods()


@dataclass(frozen=True)
class Input:
    """A file or folder that a job reads, given to it as a path: on another machine, that of a copy."""

    path: Path


@dataclass(frozen=True)
class Workplace:
    """A folder that a job goes on in, given to it as a path; what it holds afterwards is in this folder."""

    path: Path


class Executor(Protocol):
    """Runs jobs; those that run end when its `with` block ends by an exception."""

    threads: int | None  # what a job may compute with; None: all jobs at a time share this machine's

    @property
    def count(self) -> int:
        """Returns how many jobs run at a time."""

    def submit(self, fn: Callable[..., T], /, *args: Any) -> Future[T]:
        """Returns the future of `fn(*args)`, which travel by pickle; `Input` and `Workplace` arrive as paths."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalProcesses(ThreadPoolExecutor):
    """Runs each job in a process of its own, at most `count` at a time; one that is killed fails alone.

    Where the system can, processes are forked from one that has imported what the first job needs: a job of a study
    starts within .05 s instead of 4 s.

    Jobs end when the `with` block ends by an exception (Ctrl-C is the caller's), and when the caller's process does.
    """

    threads: int | None = None

    def __init__(self, count: int) -> None:
        super().__init__(count)  # each thread waits for one process
        self.count = count
        self._futures: set[Future[Any]] = set()
        self._others = set(multiprocessing.active_children())

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Returns the future of `fn(*args, **kwargs)`; all of these travel by pickle."""
        places = tuple(value.path if isinstance(value, Input | Workplace) else value for value in args)
        future = super().submit(_in_process, fn, places, kwargs)
        self._futures.add(future)
        return future

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self.shutdown(wait=kind is None, cancel_futures=True)
        while running := {future for future in self._futures if not future.done()}:
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
            wait(running, timeout=0.1)


def _in_process(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    context = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
    if _FORKS:  # optimisers import torch._dynamo, which takes a second; a server that lacks it goes on without
        context.set_forkserver_preload([fn.__module__, "torch._dynamo"])
    # one pool a job: max_tasks_per_child of a shared one may hang in Python 3.11 and 3.12 (CPython issue 115634)
    with ProcessPoolExecutor(1, context, _begin, (dict(os.environ),)) as process:
        try:
            return process.submit(fn, *args, **kwargs).result()
        except BrokenProcessPool:
            raise PetsegError("its process was ended from outside (out of memory?)") from None


def _begin(environment: dict[str, str]) -> None:
    """Leaves Ctrl-C to the parent, takes over its environment, keeps freed memory, and ends when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()  # a server's is as it was when it started
    os.environ.update(environment)
    keep_freed_memory()
    parent = multiprocessing.parent_process()
    assert parent is not None, "a spawned process has one"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
