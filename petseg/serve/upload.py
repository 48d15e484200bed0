"""A photo out of a request, kept in memory alone: nothing that is sent touches the disk or a log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO

from fastapi import HTTPException, Request
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from petseg.config import ServeConfig
from petseg.data.images import formats
from petseg.errors import PetsegError
from petseg.predict.photos import Photo

RAW = "application/octet-stream"
"""Beside image/*, the content type under which the body is the photo itself."""

FIELD = "image"
"""The multipart field that holds the photo."""

# its warnings of broken forms would go to stderr
logging.getLogger("python_multipart").addHandler(logging.NullHandler())

PATIENCE = 10.0
"""Seconds in which a refused client may finish sending."""


class Upload:
    """The bytes of one request's photo; they count towards `held_bytes` until the request is done."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self.bytes = 0

    async def read(self, request: Request, limit: int) -> bytes:
        """Returns the photo's file.

        Raises:
            HTTPException: 400 broken multipart, 413 too large, 415 another content type, 422 no photo in it, 503
                the server holds enough.
            ClientDisconnect: the client went away.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data" and kind != RAW and not kind.startswith("image/"):
            await drain(request)
            raise HTTPException(
                415,
                f"content type {kind or 'is missing'}; wanted multipart/form-data with a field {FIELD!r}, or the photo "
                f"itself as image/* or {RAW}",
            )
        body = await self._body(request, limit)
        content = await _from_multipart(request, body) if kind == "multipart/form-data" else bytes(body)
        if not content:
            raise HTTPException(422, "the photo is empty (zero bytes); was it copied completely?")
        return content

    async def _body(self, request: Request, limit: int) -> bytearray:
        # boundaries, names and headers stand around a photo
        room = limit + 10_000
        declared = request.headers.get("content-length", "")
        refused = _too_large(limit) if declared.isdecimal() and int(declared) > room else None
        body = bytearray()
        async for chunk in request.stream():
            if refused:
                continue  # a client hears nothing before it has sent all
            if len(body) + len(chunk) > room:
                refused = _too_large(limit)
            elif self._held.bytes + len(chunk) > self._held.limit:
                refused = HTTPException(503, "too many photos are held at the moment; try again", {"Retry-After": "2"})
            else:
                self._held.bytes += len(chunk)
                self.bytes += len(chunk)
                body += chunk
        if refused:
            raise refused
        return body


class Held:
    """How many bytes of uploads are in memory, over all requests."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0

    @contextmanager
    def upload(self) -> Iterator[Upload]:
        """Yields an upload to read; what it held is given back at the end."""
        upload = Upload(self)
        try:
            yield upload
        finally:
            self.bytes -= upload.bytes


class _InMemory(MultiPartParser):
    spool_max_size = 0  # SpooledTemporaryFile: never to disk


async def _from_multipart(request: Request, body: bytearray) -> bytes:
    async def once() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    try:
        form = await _InMemory(request.headers, once(), max_files=1, max_fields=10).parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the multipart body cannot be read ({error.message.rstrip('.')})") from None
    try:
        photo = form.get(FIELD)
        if not isinstance(photo, UploadFile):
            got = "holds text, no file" if photo is not None else "is missing"
            raise HTTPException(422, f"the field {FIELD!r} {got}; send one photo in it: curl -F {FIELD}=@cat.jpg ...")
        return await photo.read()
    finally:
        await form.close()


async def drain(request: Request) -> None:
    """Reads a body that is refused, for a while: a client hears nothing before it has sent all."""
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(PATIENCE):
            async for _ in request.stream():
                pass


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the upload is larger than {limit / 1e6:g} MB; make the photo smaller")


def checked(content: bytes, config: ServeConfig) -> Photo:
    """Returns the photo that a file holds.

    Raises:
        HTTPException: 400 not an image, 413 too many pixels.
    """
    try:
        with Image.open(BytesIO(content), formats=formats()) as opened:
            pixels = opened.width * opened.height
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pixels = None
    except Exception:  # decoders raise what they like of damaged files
        raise HTTPException(400, "this is not an image that can be read; send a JPEG, PNG, WebP, GIF or TIFF") from None
    if pixels is None or pixels > config.pixels:
        told = f"{pixels:,}" if pixels else "far more"
        raise HTTPException(413, f"the photo has {told} pixels; at most {config.pixels:,} are taken: make it smaller")
    try:
        return Photo(content, "the photo")
    except PetsegError as error:
        raise HTTPException(400, str(error)) from None


__all__ = ["ClientDisconnect", "Held", "Upload", "checked", "drain"]
