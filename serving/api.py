"""HTTP: the routes, how answers and errors become responses, and the page at `/`.

The page is three static files that use these routes. All its addresses are relative, so it works under any prefix, and
its Content-Security-Policy lets a browser run and load nothing but these files.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from videoblip2 import __version__
from videoblip2.captioner import Captioner
from videoblip2.config import InputError
from videoblip2.modality import Features

from . import messages, observe
from .batching import Job
from .engine import Engine, answer_of
from .messages import Answer, Ask, Attention, ItemProblem, Problem, Refusal, Segments, refusal_of
from .uploads import items_of, one_item

SHADOW_SECONDS = 20  # a challenger runs only in the champion's idle time
NEVER_ASKED = "this model was never trained on questions; serve one trained with data.task=qa or data.task=mixed"
Responses = dict[int | str, dict[str, Any]]  # the format that FastAPI reads
REFUSALS: Responses = {
    400: {"model": Problem, "description": "The request or its file cannot be used; the reason says what to change"},
    429: {"model": Problem, "description": "The queue is full; Retry-After says when to retry"},
    503: {"model": Problem, "description": "No model in service yet; Retry-After says when to retry"},
    504: {"model": Problem, "description": "No answer before the timeout"},
    "default": {"model": Problem, "description": "Any other refusal, with its reason"},
}
STREAM: Responses = {200: {"description": "Server-sent events", "content": {"text/event-stream": {}}}}
UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx too must not buffer words
MULTIPART = Form(media_type="multipart/form-data")
STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
DESCRIPTION = """Videos or their features in; captions, answers and attention out. A request is a multipart form, and
a refusal is `{"error": ..., "request_id": ...}`. Where a key is set, send `Authorization: Bearer KEY`."""


#: `API.state.engine`, `intake` and `references` are set by the service when it starts.
API = FastAPI(
    title="VideoBLIP2",
    description=DESCRIPTION,
    version=__version__,
    servers=[{"url": "."}],
    docs_url=None,  # `docs`, which needs no network
    redoc_url=None,
    openapi_url="/docs.json",
    responses=REFUSALS,
)
API.router.route_class = messages.FormRoute


@API.post("/caption")
async def caption(request: Request, form: Annotated[messages.CaptionForm, MULTIPART]) -> Answer | Segments:
    """Caption one video, a media file or its features; with `segments`, caption each part of it."""
    return await _one(request, form)


@API.post("/ask")
async def ask(request: Request, form: Annotated[messages.QuestionForm, MULTIPART]) -> Answer | Segments:
    """Answer a question about one video, or about each part of it; the field `caption` contains the answer."""
    return await _one(request, form)


async def _one(request: Request, form: messages.CaptionForm | messages.QuestionForm) -> Answer | Segments:
    engine: Engine = request.app.state.engine
    item, captioner = await _read(request, form, asking := form.asking, every_frame=form.segments is not None)
    if form.segments is not None:
        return await engine.segments(item, captioner, asking, form.segments)
    (result,) = await engine.answer([item], captioner, asking)
    if isinstance(result, Refusal):
        raise result
    return result


async def _read(
    request: Request, form: messages.OneUpload, asking: Ask, every_frame: bool = False
) -> tuple[Features, Captioner]:
    """The one item of a request, and the model that will caption it."""
    captioner: Captioner = request.app.state.engine.served()
    if asking.question and captioner.never_asked:
        raise Refusal(400, NEVER_ASKED)
    asking.options.decoding(captioner.model.decoding)  # refuses before the file is read
    item, asking.clip = await one_item(form, captioner, request.app.state.intake, every_frame)
    asking.features_seconds = time.perf_counter() - asking.began
    return item, captioner


@API.post("/captions")
async def captions(request: Request, form: Annotated[messages.CaptionsForm, MULTIPART]) -> messages.Answers:
    """Caption many videos; a bad one gets an `error` instead of a caption."""
    engine: Engine = request.app.state.engine
    captioner, asking = engine.served(), form.asking
    asking.options.decoding(captioner.model.decoding)
    items = await items_of(form, captioner, request.app.state.intake)
    asking.features_seconds = time.perf_counter() - asking.began
    results = await engine.answer(items, captioner, asking)
    return messages.Answers(results=[_counted(result) if isinstance(result, Refusal) else result for result in results])


@API.post("/attention")
async def attention(request: Request, form: Annotated[messages.AttentionForm, MULTIPART]) -> Attention:
    """Return the model's attention over the frames and the sound of one video."""
    engine: Engine = request.app.state.engine
    item, captioner = await _read(request, form, asking := form.asking)
    return await engine.attention(item, captioner, asking)


@API.get("/references/{video_id}")
async def references(request: Request, video_id: str) -> dict[str, list[str]]:
    """Return the human captions of a video from VB2_REFERENCES; none for an unknown video."""
    return {"captions": [*request.app.state.references.get(video_id, ())]}


@API.get("/model")
async def model(request: Request) -> messages.ModelState:
    """Return which model is in service, since when, and how a challenger compares."""
    engine: Engine = request.app.state.engine
    return engine.state()


@API.post("/caption_stream", response_class=StreamingResponse, responses=STREAM)
async def caption_stream(request: Request, form: Annotated[messages.StreamForm, MULTIPART]) -> StreamingResponse:
    """Caption one video, and send the caption word by word as it is generated.

    Events: `text` with the caption so far, then `caption` with the answer, or `error`; last `challenger`, if
    requested and one runs in shadow.
    """
    engine: Engine = request.app.state.engine
    item, captioner = await _read(request, form, asking := form.asking)
    job = engine.job(item, captioner, asking)
    if isinstance(job, Refusal):
        raise job
    texts: asyncio.Queue[str | None] = asyncio.Queue()
    job.listener = texts.put_nowait
    job.future.add_done_callback(lambda _: texts.put_nowait(None))
    engine.batcher.submit([job])
    return StreamingResponse(_events(engine, job, texts, form.challenger), 200, UNBUFFERED, "text/event-stream")


async def _events(engine: Engine, job: Job, texts: "asyncio.Queue[str | None]", challenger: bool) -> AsyncIterator[str]:
    """Server-sent events; a client that disconnects has its caption removed from the queue."""
    sent = ""
    try:
        async with engine.deadline():
            while (text := await texts.get()) is not None:
                if text != sent:
                    yield _event("text", {"text": text})
                    sent = text
            result = job.future.result()
        answer = answer_of(job, result)
        assert isinstance(answer, Answer)
        yield _event("caption", answer.model_dump())
        compared = engine.shadow.offer([job], [result]) if engine.shadow else []
        if challenger and engine.shadow and (contender := engine.shadow.follower.current):
            # A late challenger is not canceled: its caption is still compared.
            finished, _ = await asyncio.wait(compared, timeout=SHADOW_SECONDS) if compared else (set(), None)
            caption = next((task.result() for task in finished), None)
            yield _event("challenger", {"caption": caption, "model_version": contender.version})
    except Exception as error:
        yield _event("error", _counted(refusal_of(error)).model_dump())
    finally:
        job.future.cancel()


def _event(kind: str, data: Mapping[str, object]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _counted(refusal: Refusal) -> ItemProblem:
    """An item refused in a response of status 200; the metrics still count it."""
    observe.failed(refusal.kind)
    return ItemProblem(error=refusal.reason, status=refusal.status)


@API.exception_handler(Refusal)
@API.exception_handler(InputError)
@API.exception_handler(RequestValidationError)
@API.exception_handler(HTTPException)
@API.exception_handler(Exception)
async def refused(request: Request, error: Exception) -> JSONResponse:
    """Answer every refusal alike: a status, a reason of one line, and nothing internal."""
    if isinstance(error, RequestValidationError):
        found = groupby(error.errors(), key=lambda problem: problem["loc"][1])
        error = Refusal(400, "; ".join(explained(str(field), [*problems]) for field, problems in found))
    elif isinstance(error, HTTPException):  # starlette's own: the form, the path, the method
        reason = str(error.detail).rstrip(".")
        if error.status_code == 400:
            reason = f"the form cannot be read ({reason}); send multipart/form-data as curl -F does"
        error = Refusal(error.status_code, reason, kind="malformed", headers=error.headers)
    elif not isinstance(error, Refusal | InputError):  # a bug: the guard answers it
        raise error
    refusal = refusal_of(error)
    observe.failed(refusal.kind)
    return refusal.response(observe.request_id())


def explained(field: str, problems: list[dict[str, Any]]) -> str:
    """Explain what a field contains and what it accepts."""
    given, messages = problems[0].get("input"), [str(problem["msg"]) for problem in problems]
    if "UploadFile" in messages[0]:
        return f"{field}: must be a file, not text or an address; send one, as curl -F {field}=@FILE does"
    shown = f"{field}={given[:40]!r}" if isinstance(given, str) else field
    return f"{shown}: {' or '.join(message[0].lower() + message[1:] for message in messages)}"


@API.get("/", include_in_schema=False)
@API.get("/static/{name}", include_in_schema=False)
async def page(request: Request, name: str = "index.html") -> Response:
    """The page, its script and its style; with VB2_PAGE=false the description of the API."""
    if name not in MEDIA_TYPES:
        raise HTTPException(404)
    if not request.app.state.engine.settings.page:
        return await docs()
    return FileResponse(STATIC / name, media_type=MEDIA_TYPES[name], headers=HEADERS)


@API.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The interactive API documentation, with BentoML's copy of Swagger UI."""
    return get_swagger_ui_html(
        openapi_url="docs.json",
        title="VideoBLIP2 API",
        swagger_js_url="static_content/swagger-ui-bundle.js",
        swagger_css_url="static_content/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
