"""The application: the page, POST /api/segment, GET /api/models, /answer and /health."""

import asyncio
import copy
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from petseg import __version__
from petseg.config import ServeConfig
from petseg.errors import PetsegError, unknown_name
from petseg.predict.outputs import Look, encoded
from petseg.predict.photos import Photo, TooManyPixelsError
from petseg.predict.segmentation import Summary
from petseg.predict.segmenter import Segmenter
from petseg.schema import ClassInfo
from petseg.serve import published
from petseg.serve.upload import FIELD, FORM, RAW, drain
from petseg.serve.work import Work, unless_gone

Output = Literal["mask", "overlay", "cutout", "classes", "trimap", "json"]
OUTPUTS = list(get_args(Output))
MOST_SCALES = 4
LOCAL = ["127.0.0.1", "localhost", "::1", "[::1]"]  # a page elsewhere that resolves its own name to these is refused
HEADERS = {  # of every answer: the browser itself then keeps the page from loading anything from elsewhere
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Prediction(Summary):
    """The answer for output=json: what `petseg predict --json` prints, with the model and its time."""

    model: str
    milliseconds: float


class ModelCard(BaseModel):
    """A model of the server."""

    name: str
    title: str
    kind: str | None
    best: bool
    classes: list[ClassInfo]
    size: int
    miou: float | None


class ModelList(BaseModel):
    """The models, best first, and the limits that a client should know."""

    default: str
    shipped: bool
    models: list[ModelCard]
    outputs: list[str]
    matting: bool
    upload_bytes: int
    pixels: int


class Health(BaseModel):
    """Whether it runs, how many requests have a place, and how many photos are computed."""

    status: Literal["ok"]
    version: str
    busy: int
    computing: int
    places: int


class Asked(BaseModel):
    """What a request asks for, in its query or in fields of its form, which come first."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("", description="A model, or a kind: the best one of it.")
    output: list[Output] = Field(
        ["mask"],
        description="What to return; repeat it for several at once.",
        min_length=1,
        max_length=len(OUTPUTS),
        examples=[["cutout"], OUTPUTS],
    )
    foreground: list[str] = Field([], description="Classes to cut out; repeat it. Default: the model's own.")
    scales: list[Annotated[float, Field(ge=0.25, le=2)]] = Field(
        [1.0], description="Sizes to average over; repeat it.", min_length=1, max_length=MOST_SCALES
    )
    flip: bool = Field(False, description="Whether to average with the mirrored photo.")
    zoom: bool | None = Field(None, description="Whether to look closer at small objects. Default: the model's own.")
    matting: bool = Field(False, description="Whether a cut-out gets finer hair, in more time.")
    raw: bool = Field(False, description="Whether to keep small pieces and holes, and what is hardly an object.")


class Problem(BaseModel):
    """What is wrong, in a sentence."""

    detail: str


PHOTO = {"type": "string", "format": "binary"}
FIELDS = {FIELD: PHOTO, **Asked.model_json_schema()["properties"]}
BODY = {
    "required": True,
    "content": {
        FORM: {
            "schema": {"type": "object", "required": [FIELD], "additionalProperties": False, "properties": FIELDS},
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
    422: "An unknown model, output or parameter, or no photo in the form",
    503: "The queue is full, or the answer took too long; Retry-After says when to try again",
}


api = APIRouter()


def make_app(config: ServeConfig | None = None, *, hosts: Sequence[str] = LOCAL) -> FastAPI:
    """Returns the application, its models loaded; it answers under these names, "*" for any."""
    work = Work(config or ServeConfig())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        work.close()

    # FastAPI's own pages of the document come from a CDN
    app = FastAPI(title="petseg", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.petseg = work
    app.openapi = partial(_document, app, [*work.best, *work.models])  # type: ignore[method-assign]
    app.include_router(api)
    for route in api.routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
    # mounted, it would take what is asked of a route with another method
    app.router.default = StaticFiles(packages=[("petseg.serve", "page")], html=True)
    app.add_exception_handler(RequestValidationError, _wrong_query)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_middleware(_with_headers)
    return app


@api.post(
    "/api/segment",
    summary="Segment one photo",
    response_class=Response,
    responses={
        200: {
            "description": "A PNG, or JSON for output=json; for several outputs, multipart/form-data with a part each. "
            "Server-Timing holds the milliseconds of the network and of all.",
            "model": Prediction,
            "content": {kind: {"schema": PHOTO} for kind in ("image/png", FORM)},
        },
        **{status: {"model": Problem, "description": reason} for status, reason in PROBLEMS.items()},
    },
    openapi_extra={"requestBody": BODY},
)
async def segment(request: Request, asked: Annotated[Asked, Query()]) -> Response:
    """Returns the segmentation of a photo as an image or as JSON."""
    shared: Work = request.app.state.petseg
    computing = False
    try:
        if shared.taken >= shared.places:
            await drain(request)
            raise HTTPException(503, "the queue is full; try again in a moment", {"Retry-After": "1"})
        with shared.place() as place:
            async with asyncio.timeout(shared.config.seconds):
                content, fields = await shared.upload(request, place)
                computing = True
                asked = _with_fields(asked, fields)
                segmenter = _asked_model(shared, asked)
                work = partial(_compute, segmenter, content, asked, shared.config.pixels)
                return await unless_gone(request, shared.run(work, place))
    except TimeoutError:
        problem = f"took longer than {shared.config.seconds:g} s; try again"
        if computing:
            raise HTTPException(503, f"the answer {problem}", {"Retry-After": "5"}) from None
        raise HTTPException(408, f"the upload {problem}") from None
    except ClientDisconnect:
        return Response(status_code=499)  # never sent


@api.get("/api/models", summary="The models and the limits")
async def models(request: Request) -> ModelList:
    """Returns the shipped models, best first, and the limits that a client should know."""
    shared: Work = request.app.state.petseg
    best, config = [model.name for model in shared.best.values()], shared.config
    cards = [
        ModelCard(
            name=name,
            title=model.card["title"],
            kind=model.card["model"] if model.card["model"] in shared.best else None,
            best=name in best,
            classes=[ClassInfo(**asdict(each)) for each in model.classes],
            size=model.size,
            miou=model.card.get("scores", {}).get("miou"),
        )
        for name, model in shared.models.items()
    ]
    limits = {"upload_bytes": config.upload_bytes, "pixels": config.pixels}
    return ModelList(
        default=best[0], shipped=not config.run, models=cards, outputs=OUTPUTS, matting=matting_at_hand(), **limits
    )


@api.get("/health", summary="Whether it runs")
async def health(request: Request) -> Health:
    """Returns how many requests have a place, how many photos are computed, and how many places there are."""
    shared: Work = request.app.state.petseg
    counts = {"busy": shared.taken, "computing": shared.computing, "places": shared.places}
    return Health(status="ok", version=__version__, **counts)


@api.get("/answer", include_in_schema=False)
def answer() -> HTMLResponse:
    """Returns the published study's answer, a part of the page."""
    return HTMLResponse(published.answer(), headers={"Cache-Control": "max-age=3600"})


def _with_fields(asked: Asked, fields: Mapping[str, list[str]]) -> Asked:
    """Returns what is asked for with what the form's fields say; HTTPException 422 if they say anything else."""
    several = ("output", "foreground", "scales")
    given = {name: values if name in several else values[-1] for name, values in fields.items()}
    try:
        return Asked.model_validate({**asked.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise HTTPException(422, _wrong(str(first["loc"][0]), first)) from None


def _asked_model(shared: Work, asked: Asked) -> Segmenter:
    """Returns the model with what is asked of it; HTTPException 422 if there is none such."""
    named = {**shared.models, **shared.best}
    try:
        if asked.matting and not matting_at_hand():
            raise PetsegError("matting needs scipy, which the server lacks; pip install 'petseg[matting]'")
        if (model := asked.model or next(iter(shared.best))) not in named:
            raise unknown_name("model", model, named)
        options = {name: getattr(asked, name) for name in ("flip", "scales", "foreground", "raw", "zoom")}
        return named[model].using(**options)
    except PetsegError as error:
        raise HTTPException(422, str(error)) from None


def _document(app: FastAPI, models: Sequence[str]) -> dict[str, Any]:
    """Returns the OpenAPI document, in which `model` is one of these, the first where it is not given."""
    document = copy.deepcopy(FastAPI.openapi(app))
    operation = document["paths"]["/api/segment"]["post"]
    fields = operation["requestBody"]["content"][FORM]["schema"]["properties"]
    for schema in (fields["model"], *(each["schema"] for each in operation["parameters"] if each["name"] == "model")):
        schema |= {"enum": list(dict.fromkeys(models)), "default": models[0]}
    return document


def matting_at_hand() -> bool:
    """Returns whether the extra `matting` is installed."""
    return find_spec("scipy") is not None


def _compute(segmenter: Segmenter, content: bytes, asked: Asked, pixels: int) -> Response:
    """Returns the answer to one photo; this is what the threads do."""
    outputs, look = tuple(dict.fromkeys(asked.output)), Look(matting=asked.matting)
    try:
        photo = Photo(content, "the photo")
        if (given := photo.size[0] * photo.size[1]) > pixels:
            raise HTTPException(413, f"the photo has {given:,} pixels; at most {pixels:,} are taken: make it smaller")
        started = time.perf_counter()
        result = segmenter(photo)
        own = {"model": segmenter.name, "milliseconds": round(1000 * result.seconds, 2)}
        summary = json.dumps(result.summary().to_dict() | own).encode() if "json" in outputs else b""
        parts: dict[str, bytes] = {
            each: summary if each == "json" else encoded(result, each, look=look) for each in outputs
        }
    except TooManyPixelsError:
        raise HTTPException(413, f"the photo has far more than {pixels:,} pixels; make it smaller") from None
    except PetsegError as error:
        raise HTTPException(400, str(error)) from None
    timing = f"network;dur={1000 * result.seconds:.2f}, all;dur={1000 * (time.perf_counter() - started):.2f}"
    kind, body = _multipart(parts) if len(parts) > 1 else (_media_type(outputs[0]), parts[outputs[0]])
    return Response(body, media_type=kind, headers={"Cache-Control": "no-store", "Server-Timing": timing})


def _multipart(parts: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Returns content type and body of a form with a file for each output, which browsers take apart themselves.

    Why no library: the email package turns bytes into base64, which forms do not allow; nothing else here writes forms.
    """
    boundary = secrets.token_hex(16)
    body = b""
    for output, content in parts.items():
        kind = _media_type(output)
        disposition = f'form-data; name="{output}"; filename="{output}.{kind.partition("/")[2]}"'
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\nContent-Type: {kind}\r\n\r\n".encode()
        body += content + b"\r\n"
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()


def _media_type(output: str) -> str:
    return "application/json" if output == "json" else "image/png"


def _wrong(name: str, first: Mapping[str, Any]) -> str:
    """Returns what is wrong with a parameter, in the words that all errors have."""
    if first["type"] == "extra_forbidden":
        return str(unknown_name("parameter", name, Asked.model_fields))
    return f"{name} is {str(first['input'])[:40]!r}; {first['msg'][:1].lower()}{first['msg'][1:]}"


async def _wrong_query(request: Request, error: Exception) -> JSONResponse:
    """Returns 422 with the first thing wrong."""
    assert isinstance(error, RequestValidationError)
    await drain(request)
    first = error.errors()[0]
    return JSONResponse({"detail": _wrong(str(first["loc"][1]), first)}, 422)


def _with_headers(app: ASGIApp) -> ASGIApp:
    """Returns the application with `HEADERS` on every answer."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app(scope, receive, send_guarded)

    return guarded
