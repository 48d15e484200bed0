"""The application: the page, POST /api/segment, GET /api/models, /api/results and /health.

FastAPI serves it; the page is written by hand, one HTML, one CSS and one JavaScript file without a build step.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from petseg import __version__
from petseg.config import ServeConfig
from petseg.data.oxford_pets import COLOURS as CLASS_COLOURS
from petseg.errors import PetsegError, unknown_name
from petseg.predict.outputs import encoded
from petseg.predict.segmenter import Segmentation, Segmenter
from petseg.serve import published
from petseg.serve.upload import FIELD, RAW, ClientDisconnect, Held, checked, drain
from petseg.serve.work import Models, Queue, unless_gone

Output = Literal["mask", "overlay", "cutout", "trimap", "json"]

GONE = 499
"""Never sent: the client is no longer there."""

LOCAL = ["127.0.0.1", "localhost", "::1", "[::1]"]
"""Names under which a loopback server answers; a page elsewhere that resolves its own name to 127.0.0.1 is refused."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; frame-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Of every answer: the browser itself then keeps the page from loading anything from elsewhere."""


class Species(BaseModel):
    """Cat or dog."""

    name: Literal["cat", "dog"]
    probability: float


class Box(BaseModel):
    """A connected region of pet, in pixels of the photo."""

    left: int
    top: int
    right: int
    bottom: int
    share: float
    confidence: float
    species: Species | None


class Prediction(BaseModel):
    """What output=json tells: what `petseg predict --json` prints, with the model and its time."""

    model_config = ConfigDict(extra="forbid")

    model: str
    milliseconds: float
    width: int
    height: int
    pet: bool
    pet_share: float
    confidence: float | None
    species: Species | None
    boxes: list[Box]
    notes: list[str]


class ModelCard(BaseModel):
    """A shipped model."""

    name: str
    title: str
    kind: str
    best: bool
    classes: list[str]
    size: int
    miou: float | None


class ModelList(BaseModel):
    """The models, best first, what can be asked of them and what they are shown with."""

    default: str
    pair: list[str]
    models: list[ModelCard]
    outputs: list[str]
    colours: dict[str, str]
    upload_bytes: int
    pixels: int


class Published(BaseModel):
    """A published comparison: what it found, and its page."""

    name: str
    answer: list[str]
    url: str


class Health(BaseModel):
    """Whether it runs, and how much it has to do."""

    status: Literal["ok"]
    version: str
    busy: int
    places: int


class Problem(BaseModel):
    """What is wrong, in a sentence."""

    detail: str


EXAMPLE = {
    "model": "unet_small",
    "milliseconds": 3.6,
    "width": 451,
    "height": 300,
    "pet": True,
    "pet_share": 0.750636,
    "confidence": 0.8711,
    "species": {"name": "cat", "probability": 0.8132},
    "boxes": [
        {
            "left": 0,
            "top": 0,
            "right": 398,
            "bottom": 300,
            "share": 0.750229,
            "confidence": 0.8713,
            "species": {"name": "cat", "probability": 0.8125},
        }
    ],
    "notes": [],
}

PHOTO = {"type": "string", "format": "binary"}

BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "required": [FIELD], "properties": {FIELD: PHOTO}},
            "encoding": {FIELD: {"contentType": f"image/jpeg, image/png, {RAW}"}},
        },
        **{kind: {"schema": PHOTO} for kind in ("image/jpeg", "image/png", "image/webp", RAW)},
    },
}

PROBLEMS: dict[int, str] = {
    400: "Not an image, or a damaged one",
    408: "The upload took too long",
    413: "Too many bytes or pixels",
    415: "Another content type than multipart/form-data, image/* or application/octet-stream",
    422: "An unknown model or output, or no photo in the form",
    503: "The queue is full, or the answer took too long; Retry-After says when to try again",
}


@dataclass(frozen=True)
class State:
    """What the requests share."""

    config: ServeConfig
    models: Models
    queue: Queue
    held: Held


api = APIRouter()


def make_app(config: ServeConfig | None = None, *, loopback: bool = True) -> FastAPI:
    """Returns the application, its models loaded.

    Args:
        config: its limits; None takes the defaults.
        loopback: answer only under this machine's own names.
    """
    config = config or ServeConfig()
    state = State(config, Models(), Queue(config), Held(config.held_bytes))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        state.queue.close()

    app = FastAPI(
        title="petseg",
        version=__version__,
        summary="Cats and dogs cut out by U-Net and SegNet.",
        # FastAPI's own pages of the document come from a CDN
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.petseg = state
    app.include_router(api)
    app.mount("/", StaticFiles(packages=[("petseg.serve", "page")], html=True))
    app.add_exception_handler(RequestValidationError, _wrong_query)
    if loopback:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)
    app.add_middleware(_Guarded)
    operation = app.openapi()["paths"]["/api/segment"]["post"]
    (names,) = (parameter for parameter in operation["parameters"] if parameter["name"] == "model")
    names["schema"] = {"type": "string", "enum": state.models.names(), "default": state.models.default.name}
    # FastAPI leaves null out of examples
    operation["responses"]["200"]["content"]["application/json"]["example"] = EXAMPLE
    return app


@api.post(
    "/api/segment",
    summary="Segment one photo",
    response_class=Response,
    responses={
        200: {
            "description": "A PNG, or JSON for output=json; for several outputs, multipart/form-data with a part each. "
            "Server-Timing tells what the network took.",
            "model": Prediction,
            "content": {
                "image/png": {"schema": PHOTO},
                "multipart/form-data": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        **{status: {"model": Problem, "description": told} for status, told in PROBLEMS.items()},
    },
    openapi_extra={"requestBody": BODY},
)
async def segment(
    request: Request,
    model: Annotated[str | None, Query(description="A shipped model, or a kind: the best one of it.")] = None,
    output: Annotated[
        list[Output],
        Query(
            description="What to return; repeat it for several at once.",
            min_length=1,
            max_length=len(get_args(Output)),
            openapi_examples={"cut-out": {"value": ["cutout"]}, "all": {"value": list(get_args(Output))}},
        ),
    ] = ["mask"],  # noqa: B006  # FastAPI copies it
) -> Response:
    """Returns what a model sees in the photo: a mask, an overlay, a cut-out, a trimap, or JSON."""
    state: State = request.app.state.petseg
    segmenter = state.models.default if model is None else state.models.get(model)
    if segmenter is None:
        assert model is not None
        await drain(request)
        raise HTTPException(422, str(unknown_name("model", model, state.models.names())))
    computing = False
    try:
        if state.queue.full():
            await drain(request)
            raise HTTPException(503, "the queue is full; try again in a moment", {"Retry-After": "1"})
        with state.queue.place(), state.held.upload() as upload:
            async with asyncio.timeout(state.config.seconds):
                content = await upload.read(request, state.config.upload_bytes)
                computing = True
                work = partial(_compute, segmenter, content, tuple(dict.fromkeys(output)), state.config)
                return await unless_gone(request, state.queue.run(work))
    except TimeoutError:
        told = f"took longer than {state.config.seconds:g} s; try again"
        if computing:
            raise HTTPException(503, f"the answer {told}", {"Retry-After": "5"}) from None
        raise HTTPException(408, f"the upload {told}") from None
    except ClientDisconnect:
        return Response(status_code=GONE)


@api.get("/api/models", summary="The models and the limits", response_model=ModelList)
async def models(request: Request) -> ModelList:
    """Returns the shipped models, best first, and the limits that a client should know."""
    state: State = request.app.state.petseg
    return ModelList(
        default=state.models.default.name,
        pair=[model.name for model in state.models.best.values()],
        models=[
            ModelCard(
                name=name,
                title=model.card["title"],
                kind=model.card["model"],
                best=model in state.models.best.values(),
                classes=list(model.classes),
                size=model.size,
                miou=model.card.get("scores", {}).get("miou"),
            )
            for name, model in state.models.all.items()
        ],
        outputs=list(get_args(Output)),
        colours=CLASS_COLOURS,
        upload_bytes=state.config.upload_bytes,
        pixels=state.config.pixels,
    )


@api.get("/api/results", summary="The published comparisons", response_model=list[Published])
async def results() -> list[Published]:
    """Returns what the published comparisons found."""
    return [Published(name=name, answer=published.answer(name), url=f"/results/{name}") for name in published.names()]


@api.get("/health", summary="Whether it runs", response_model=Health)
async def health(request: Request) -> Health:
    """Returns how many requests have a place, and how many places there are."""
    state: State = request.app.state.petseg
    return Health(
        status="ok",
        version=__version__,
        busy=state.queue.taken,
        places=state.config.concurrent + state.config.queue,
    )


@api.get("/results/{name}", include_in_schema=False)
def result_page(name: str) -> HTMLResponse:
    """Returns a published comparison's report."""
    if name not in published.names():
        raise HTTPException(404, str(unknown_name("comparison", name, published.names())))
    return HTMLResponse(published.page(name), headers={"Cache-Control": "max-age=3600"})


def _compute(segmenter: Segmenter, content: bytes, outputs: Sequence[str], config: ServeConfig) -> Response:
    """Returns the answer to one photo; this is what the threads do."""
    photo = checked(content, config)
    started = time.perf_counter()
    try:
        found = segmenter.batch([photo])[0]
        parts = {kind: _part(segmenter, found, kind) for kind in outputs}
    except PetsegError as error:
        raise HTTPException(400, str(error)) from None
    whole = time.perf_counter() - started
    headers = {
        "Cache-Control": "no-store",
        "Server-Timing": f"network;dur={1000 * found.seconds:.2f}, all;dur={1000 * whole:.2f}",
    }
    if len(parts) == 1:
        ((kind, body),) = parts.items()
        return Response(body, media_type=_media_type(kind), headers=headers)
    boundary = secrets.token_hex(16)
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{kind}"; filename="{kind}.{_suffix(kind)}"\r\n'
        f"Content-Type: {_media_type(kind)}\r\n\r\n".encode()
        + part
        + b"\r\n"
        for kind, part in parts.items()
    )
    return Response(
        body + f"--{boundary}--\r\n".encode(),
        media_type=f"multipart/form-data; boundary={boundary}",
        headers=headers,
    )


def _part(segmenter: Segmenter, found: Segmentation, kind: str) -> bytes:
    if kind != "json":
        return encoded(found, kind)
    told: dict[str, Any] = {"model": segmenter.name, "milliseconds": round(1000 * found.seconds, 2), **found.summary()}
    return json.dumps(told).encode()


def _suffix(kind: str) -> str:
    return "json" if kind == "json" else "png"


def _media_type(kind: str) -> str:
    return "application/json" if kind == "json" else "image/png"


async def _wrong_query(request: Request, error: Exception) -> JSONResponse:
    """Returns 422 with the first thing wrong, in the words that all errors have."""
    assert isinstance(error, RequestValidationError)
    await drain(request)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:2])
    told = f"{where} is {str(first['input'])[:40]!r}; {first['msg'][:1].lower()}{first['msg'][1:]}"
    return JSONResponse({"detail": told}, 422)


class _Guarded:
    """Puts `HEADERS` on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, guarded)


__all__ = ["make_app"]
