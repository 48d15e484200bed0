"""Runs many independent jobs, in the shape of `concurrent.futures`; how one gets on is read from its files."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from petseg.errors import PetsegError

T = TypeVar("T")


class LocalProcesses(ThreadPoolExecutor):
    """Runs each job in a fresh process, at most `count` at a time; one that is killed fails alone.

    Jobs end when the `with` block ends by an exception (Ctrl-C is the caller's), and when the caller's process does.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)  # each thread waits for one process
        self._futures: set[Future[Any]] = set()
        self._others = set(multiprocessing.active_children())

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Returns the future of `fn(*args, **kwargs)`; all of these travel by pickle."""
        future = super().submit(_in_process, fn, args, kwargs)
        self._futures.add(future)
        return future

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self.shutdown(wait=kind is None, cancel_futures=True)
        while running := {future for future in self._futures if not future.done()}:
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
            wait(running, timeout=0.1)


def _in_process(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    # one pool a job: max_tasks_per_child of a shared one may hang in Python 3.11 and 3.12 (CPython issue 115634)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _follow_parent) as process:
        try:
            return process.submit(fn, *args, **kwargs).result()
        except BrokenProcessPool:
            raise PetsegError("its process was ended from outside (out of memory?)") from None


def _follow_parent() -> None:
    """Leaves Ctrl-C to the parent, and ends this process when that one ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a spawned process has one"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
