"""The models, loaded once, and the queue before them: inference runs off the event loop, a photo a thread."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from petseg.config import ServeConfig
from petseg.predict.runtimes import chosen_runtime
from petseg.predict.segmenter import KINDS, Segmenter, shipped_model, shipped_models

T = TypeVar("T")


class Models:
    """The shipped models, ready; a kind's name stands for its best one."""

    def __init__(self) -> None:
        loaded = {name: Segmenter(name, threads=1, runtime=chosen_runtime()) for name in shipped_models()}
        self.best = {kind: loaded[shipped_model(kind)] for kind in KINDS}
        """Kind -> its best model; the page shows these side by side."""
        self.all = dict(sorted(loaded.items(), key=lambda item: (KINDS.index(item[1].card["model"]), item[0])))
        """Name -> model: U-Nets first, each base before its small."""

    def get(self, name: str) -> Segmenter:
        """Returns the model of a name, or the best one of a kind."""
        return self.best.get(name) or self.all[name]


class Queue:
    """At most `concurrent` photos are computed at once and at most `queue` more requests wait."""

    def __init__(self, config: ServeConfig) -> None:
        self.places = config.concurrent + config.queue
        self.taken = 0
        """Requests that have a place: uploading, waiting or computed."""
        self._threads = partial(ThreadPoolExecutor, config.concurrent, thread_name_prefix="petseg")
        self._pool = self._threads()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Takes a place until the end of the block."""
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """Returns what `work` returns, called in a thread; cancelled while it waits, it is never called."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Waits for what is being computed; what only waits is dropped. It may be used again."""
        self._pool.shutdown(cancel_futures=True)
        self._pool = self._threads()


async def unless_gone(request: Request, job: Coroutine[Any, Any, T]) -> T:
    """Returns what `job` returns; ClientDisconnect as soon as the client goes away. Its body must have been read."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, gone = asyncio.ensure_future(job), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        gone.cancel()
