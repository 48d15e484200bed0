"""A photo out of a request, kept in memory alone: nothing that is sent touches the disk or a log."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

FORM = "multipart/form-data"
RAW = "application/octet-stream"  # beside image/*, the content type under which the body is the photo itself
FIELD = "image"  # the form's field that holds the photo
MOST_FIELDS = 269  # beside it: 6 outputs, 4 scales, 255 classes, and the other 4 once
AROUND = 10_000  # bytes of boundaries, names and headers that may stand around a photo
PATIENCE = 10.0  # seconds in which a refused client may finish sending

# its warnings of broken forms would go to stderr
logging.getLogger("python_multipart").addHandler(logging.NullHandler())


class InMemory(MultiPartParser):
    """Starlette's parser, which FastAPI's UploadFile uses too; that one writes what is above 1 MB to the disk."""

    spool_max_size = 0  # of SpooledTemporaryFile: never to disk


async def from_form(request: Request, body: bytes) -> tuple[bytes, dict[str, list[str]]]:
    """Returns the photo's file and the form's other fields."""

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await InMemory(request.headers, once(), max_files=1, max_fields=MOST_FIELDS).parse()
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
