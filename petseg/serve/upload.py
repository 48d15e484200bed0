"""A photo out of a request, kept in memory alone: nothing that is sent touches the disk or a log."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from petseg.config import ServeConfig

RAW = "application/octet-stream"  # beside image/*, the content type under which the body is the photo itself
FIELD = "image"  # the multipart field that holds the photo
AROUND = 10_000  # bytes of boundaries, names and headers that may stand around a photo
PATIENCE = 10.0  # seconds in which a refused client may finish sending

# its warnings of broken forms would go to stderr
logging.getLogger("python_multipart").addHandler(logging.NullHandler())


class InMemory(MultiPartParser):
    """Starlette's parser, which FastAPI's UploadFile uses too; that one writes what is above 1 MB to the disk."""

    spool_max_size = 0  # of SpooledTemporaryFile: never to disk


class Uploads:
    """The uploads that are in memory, over all requests."""

    def __init__(self, config: ServeConfig) -> None:
        self._limit = config.upload_bytes
        self._held_limit = config.held_bytes
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[tuple[bytes, dict[str, list[str]]]]:
        """Yields the photo's file and a form's other fields; the bytes count towards `held_bytes` until then."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data" and kind != RAW and not kind.startswith("image/"):
            await drain(request)
            wanted = f"multipart/form-data with a field {FIELD!r}, or the photo itself as image/* or {RAW}"
            raise HTTPException(415, f"content type {kind or 'is missing'}; wanted {wanted}")
        body = bytearray()
        try:
            await self._fill(body, request)
            is_form = kind == "multipart/form-data"
            content, fields = await _from_form(request, bytes(body)) if is_form else (bytes(body), {})
            if not content:
                raise HTTPException(422, "the photo is empty (zero bytes); was it copied completely?")
            yield content, fields
        finally:
            self._held -= len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        declared = request.headers.get("content-length", "")
        too_large = HTTPException(413, f"the upload is larger than {self._limit / 1e6:g} MB; make the photo smaller")
        refused = too_large if declared.isdecimal() and int(declared) > self._limit + AROUND else None
        async for chunk in request.stream():
            if refused:
                continue  # a client hears nothing before it has sent all
            if len(body) + len(chunk) > self._limit + AROUND:
                refused = too_large
            elif self._held + len(chunk) > self._held_limit:
                refused = HTTPException(503, "too many photos are held at the moment; try again", {"Retry-After": "2"})
            else:
                self._held += len(chunk)
                body += chunk
        if refused:
            raise refused


async def _from_form(request: Request, body: bytes) -> tuple[bytes, dict[str, list[str]]]:
    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await InMemory(request.headers, once(), max_files=1, max_fields=10).parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the multipart body cannot be read ({error.message.rstrip('.')})") from None
    try:
        photo = form.get(FIELD)
        if not isinstance(photo, UploadFile):
            got = "holds text, no file" if photo is not None else "is missing"
            raise HTTPException(422, f"the field {FIELD!r} {got}; send one photo in it: curl -F {FIELD}=@cat.jpg ...")
        fields = {name: [str(value) for value in form.getlist(name)] for name in form if name != FIELD}
        return await photo.read(), fields
    finally:
        await form.close()


async def drain(request: Request) -> None:
    """Reads a body that is refused, for a while: a client hears nothing before it has sent all."""
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(PATIENCE):
            async for _ in request.stream():
                pass
