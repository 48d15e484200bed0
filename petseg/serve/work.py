"""What requests share: the models, the places, the threads, and the uploads in memory."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from petseg.config import ServeConfig
from petseg.predict.runtimes import chosen_runtime
from petseg.predict.segmenter import Segmenter
from petseg.serve.upload import AROUND, FIELD, FORM, RAW, drain, from_form
from petseg.shipped import DEFAULT, KINDS, shipped_model, shipped_models

T = TypeVar("T")
CLOSE = {"Connection": "close"}  # of a refusal that does not wait for the rest of the upload


class Place:
    """What one request takes: the bytes of its upload, and a thread while its photo is computed."""

    def __init__(self) -> None:
        self.held = 0
        self.computation: Future[Any] = Future()  # until there is one


class Work:
    """At most `concurrent` photos are computed at once, a thread each; at most `queue` more requests wait."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        # the page offers `best`; `models` are all by name, best first
        self.best, self.models = _shipped() if not config.run else _of_run(Path(config.run))
        self.places, self.taken = config.concurrent + config.queue, 0  # uploading, waiting or computed
        self.computing = 0  # photos in a thread, those included whose client has its answer or went away
        self._held = 0  # bytes of uploads
        self._lock = Lock()  # of the three counts, which threads change too
        self._threads = partial(ThreadPoolExecutor, config.concurrent, thread_name_prefix="petseg")
        self._pool = self._threads()

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Takes a place until the end of the block, and longer where its photo is still computed then."""
        place = Place()
        with self._lock:
            self.taken += 1
        try:
            yield place
        finally:
            place.computation.cancel()  # a thread that has begun cannot be stopped
            place.computation.add_done_callback(lambda _: self._free(place))

    def _free(self, place: Place) -> None:
        with self._lock:
            self.taken -= 1
            self._held -= place.held

    async def upload(self, request: Request, place: Place) -> tuple[bytes, dict[str, list[str]]]:
        """Returns the photo's file and a form's other fields; the bytes count towards `held_bytes` with the place."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (FORM, RAW) and not kind.startswith("image/"):
            await drain(request)
            wanted = f"{FORM} with a field {FIELD!r}, or the photo itself as image/* or {RAW}"
            raise HTTPException(415, f"content type {kind or 'is missing'}; wanted {wanted}")
        declared, limit = request.headers.get("content-length", ""), self.config.upload_bytes + AROUND
        too_large = f"the upload is larger than {self.config.upload_bytes / 1e6:g} MB; make the photo smaller"
        length = int(declared) if declared.isdecimal() else 0
        if length > limit:
            raise HTTPException(413, too_large, CLOSE)
        body = bytearray()
        self._hold(place, length)  # all of it: uploads that are each held in part may leave no room for the rest of any
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise HTTPException(413, too_large, CLOSE)
            self._hold(place, len(body))  # more only where no length was declared
        content, fields = await from_form(request, bytes(body)) if kind == FORM else (bytes(body), {})
        if not content:
            raise HTTPException(422, "the photo is empty (zero bytes); was it copied completely?")
        return content, fields

    def _hold(self, place: Place, count: int) -> None:
        more = max(0, count - place.held)
        with self._lock:
            if self._held + more > self.config.held_bytes:
                headers = {"Retry-After": "2", **CLOSE}
                raise HTTPException(503, "too many photos are held at the moment; try again", headers)
            self._held += more
        place.held += more

    async def run(self, work: Callable[[], T], place: Place) -> T:
        """Returns what `work` returns, called in a thread; cancelled while it waits, it is never called."""
        place.computation = computation = self._pool.submit(self._counted, work)
        return await asyncio.wrap_future(computation)

    def _counted(self, work: Callable[[], T]) -> T:
        with self._lock:
            self.computing += 1
        try:
            return work()
        finally:
            with self._lock:
                self.computing -= 1

    def close(self) -> None:
        """Waits for what is being computed; what only waits is dropped. It may be used again."""
        self._pool.shutdown(cancel_futures=True)
        self._pool = self._threads()


def _shipped() -> tuple[dict[str, Segmenter], dict[str, Segmenter]]:
    loaded = {name: Segmenter(name, threads=1, runtime=chosen_runtime()) for name in shipped_models()}
    best = {kind: loaded[shipped_model(kind)] for kind in (DEFAULT, *KINDS)}
    return best, dict(sorted(loaded.items(), key=lambda item: -item[1].card["scores"]["miou"]))


def _of_run(run: Path) -> tuple[dict[str, Segmenter], dict[str, Segmenter]]:
    from petseg.export.onnx import exported_run

    segmenter = Segmenter(exported_run(run), threads=1, runtime=chosen_runtime())
    segmenter.name = run.resolve().name  # a path is nobody's business
    return {segmenter.name: segmenter}, {segmenter.name: segmenter}


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
