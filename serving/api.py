"""HTTP: the routes, how answers and refusals become responses, and the page at `/`.

The page is three static files that use these routes. All its addresses are relative, so it works under any prefix, and
its Content-Security-Policy lets a browser run and load nothing but these files.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import bentoml
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from videoblip2.config import QUESTION_PROMPT, Decoding

from . import observe
from .answers import (
    Answer,
    Answers,
    Attention,
    ChallengerCaption,
    ItemProblem,
    ModelState,
    Problem,
    References,
    Refusal,
)
from .batching import Job
from .engine import Ask, Engine, answer_of, refusal_of
from .forms import AttentionQuestion, Challenger, Many, One, Options, Prompt, Question, Uploads, known_fields
from .uploads import items_of, one_item

SHADOW_SECONDS = 20  # a challenger has only the time that the champion leaves
Responses = dict[int | str, dict[str, Any]]  # the form that FastAPI reads
REFUSALS: Responses = {
    400: {"model": Problem, "description": "The request or its file cannot be used; the reason says what to change"},
    429: {"model": Problem, "description": "The queue is full; Retry-After says when to come back"},
    503: {"model": Problem, "description": "No model in service yet; Retry-After says when to come back"},
    504: {"model": Problem, "description": "No answer before the timeout"},
    "default": {"model": Problem, "description": "Any other refusal, with its reason"},
}
STREAM: Responses = {
    200: {
        "description": "Server-sent events: `text` with the caption so far, then `caption` with the answer, or "
        "`error`; last `challenger`, if it was asked for and one runs in shadow",
        "content": {"text/event-stream": {"example": 'event: text\ndata: {"text": "a man is"}\n\n'}},
    }
}
STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {"page.js": "text/javascript", "page.css": "text/css"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
API_DESCRIPTION = Path(bentoml.__file__).parents[1] / "_bentoml_impl" / "server" / "main-openapi.html"
TRACKER = re.compile(r"<!-- Google Tag Manager.*?<!-- End Google Tag Manager[^>]*-->", re.DOTALL)


def create_app() -> FastAPI:
    """The API; `app.state.engine` and `app.state.intake` are set by the service when it starts."""
    app = FastAPI(
        title="VideoBLIP2",
        docs_url=None,  # /docs, made by BentoML, describes these routes too, and needs no network
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(known_fields)],
    )
    post = partial(app.post, responses=REFUSALS, tags=["Captions"])
    post("/caption", response_model=Answer)(caption)
    post("/captions", response_model=Answers)(captions)
    post("/ask", response_model=Answer)(ask)
    post("/caption_stream", responses=REFUSALS | STREAM, response_class=StreamingResponse)(caption_stream)
    post("/attention", response_model=Attention)(attention)
    app.get("/references/{video_id}", response_model=References, tags=["Captions"])(references)
    app.get("/model", response_model=ModelState, tags=["Captions"])(model)
    app.get("/", include_in_schema=False)(index)
    app.get("/static/{name}", include_in_schema=False)(static_file)
    app.get("/docs", include_in_schema=False)(docs)
    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, bug)
    return app


async def caption(request: Request, uploads: One, options: Options, prompt: Prompt = None) -> Answer:
    """Caption one video: a media file, or its features."""
    return await _one(request, uploads, options, prompt)


async def ask(request: Request, uploads: One, options: Options, question: Question) -> Answer:
    """Answer a question about one video; the `caption` of the answer is the answer."""
    return await _one(request, uploads, options, QUESTION_PROMPT.format(question.strip()))


async def _one(request: Request, uploads: Uploads, options: tuple[Decoding, int | None], prompt: str | None) -> Answer:
    engine: Engine = request.app.state.engine
    asking = Ask(*options, prompt, observe.request_id())
    async with engine.deadline():
        served = engine.served()
        item, asking.clip = await one_item(uploads, served, request.app.state.intake)
        asking.features_seconds = time.perf_counter() - asking.began
        (result,) = await engine.answer([item], served, asking)
    if isinstance(result, Refusal):
        raise result
    return result


async def captions(request: Request, uploads: Many, options: Options, prompt: Prompt = None) -> Answers:
    """Caption many videos; a bad one has an `error` in its place, the others their captions."""
    engine: Engine = request.app.state.engine
    asking = Ask(*options, prompt, observe.request_id())
    async with engine.deadline():
        served = engine.served()
        items = await items_of(uploads, served, request.app.state.intake)
        asking.features_seconds = time.perf_counter() - asking.began
        results = await engine.answer(items, served, asking)
    return Answers(results=[_counted(result) if isinstance(result, Refusal) else result for result in results])


async def attention(request: Request, uploads: One, question: AttentionQuestion = None) -> Attention:
    """Say how the model divides its attention over the frames and the sound of one video."""
    engine: Engine = request.app.state.engine
    async with engine.deadline():
        served = engine.served()
        item, _ = await one_item(uploads, served, request.app.state.intake)
        prompt = None if question is None else QUESTION_PROMPT.format(question.strip())
        return await engine.attention(item, served, prompt)


async def references(request: Request, video_id: str) -> References:
    """Say how people described a video of VB2_REFERENCES; an unknown one has no captions."""
    return References(captions=list(request.app.state.references.get(video_id, ())))


async def model(request: Request) -> ModelState:
    """Say what is in service, since when, and how a challenger compares."""
    engine: Engine = request.app.state.engine
    return engine.state()


async def caption_stream(
    request: Request, uploads: One, options: Options, prompt: Prompt = None, challenger: Challenger = False
) -> StreamingResponse:
    """Caption one video, and send the caption word by word while it is made."""
    engine: Engine = request.app.state.engine
    asking = Ask(*options, prompt, observe.request_id())
    async with engine.deadline():
        served = engine.served()
        item, asking.clip = await one_item(uploads, served, request.app.state.intake)
    asking.features_seconds = time.perf_counter() - asking.began
    job = engine.job(item, served, asking)
    if isinstance(job, Refusal):
        raise job
    texts: asyncio.Queue[str | None] = asyncio.Queue()
    job.listener = texts.put_nowait
    job.future.add_done_callback(lambda _: texts.put_nowait(None))
    engine.submit([job])
    return StreamingResponse(_events(engine, job, texts, asking, challenger), media_type="text/event-stream")


async def _events(
    engine: Engine, job: Job, texts: "asyncio.Queue[str | None]", asking: Ask, challenger: bool
) -> AsyncIterator[str]:
    """Server-sent events; a client that goes away takes its caption out of the queue."""
    said = ""
    try:
        async with engine.deadline():
            while (text := await texts.get()) is not None:
                if text != said:
                    yield _event("text", json.dumps({"text": text}, ensure_ascii=False))
                    said = text
            done = job.future.result()
        answer = answer_of(job, done, asking)
        assert isinstance(answer, Answer)
        yield _event("caption", answer.model_dump_json())
        compared = engine.compare([job], [done], asking)
        if challenger and engine.shadow and (contender := engine.shadow.follower.current):
            # A challenger that is too late is not cancelled: its caption is still compared.
            finished, _ = await asyncio.wait(compared, timeout=SHADOW_SECONDS) if compared else (set(), None)
            caption = next((task.result() for task in finished), None)
            contended = ChallengerCaption(caption=caption, model_version=contender.version)
            yield _event("challenger", contended.model_dump_json())
    except Exception as error:
        yield _event("error", _counted(refusal_of(error)).model_dump_json())
    finally:
        job.future.cancel()


def _event(kind: str, data: str) -> str:
    return f"event: {kind}\ndata: {data}\n\n"


def _counted(refusal: Refusal) -> ItemProblem:
    """A refusal within an answer whose status is 200; the metrics still count it."""
    observe.failed(refusal.kind)
    return ItemProblem(error=refusal.reason, status=refusal.status)


async def refused(request: Request, error: Exception) -> JSONResponse:
    """Turn a Refusal into its status and reason."""
    assert isinstance(error, Refusal)
    observe.failed(error.kind)
    return _problem(error.status, error.reason, error.headers)


async def invalid(request: Request, error: Exception) -> JSONResponse:
    """Say in one line which fields are wrong."""
    assert isinstance(error, RequestValidationError)
    problems = [_explain(str(one["loc"][-1]), str(one["msg"]), one.get("input")) for one in error.errors()]
    observe.failed("malformed")
    return _problem(400, "; ".join(problems))


def _explain(field: str, message: str, given: object) -> str:
    if "UploadFile" in message:
        return f"{field}: not a file; send one, as curl -F {field}=@FILE does"
    shown = f"{field}={given[:40]!r}" if isinstance(given, str) else field
    return f"{shown}: {message[0].lower()}{message[1:]}"


async def http_error(request: Request, error: Exception) -> JSONResponse:
    """Keep starlette's own refusals (method, broken body) in our form."""
    assert isinstance(error, HTTPException)
    observe.failed("malformed")
    return _problem(error.status_code, str(error.detail), error.headers)


async def bug(request: Request, error: Exception) -> JSONResponse:
    """Reveal nothing internal; the guard, which sees the exception next, counts it and logs its trace."""
    return _problem(500, "the server failed on this request; its log has the details")


def _problem(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(Problem(error=reason, request_id=observe.request_id()).model_dump(), status, headers)


async def index(request: Request) -> Response:
    """The page, or with VB2_PAGE=false the description of the API."""
    if not request.app.state.engine.settings.page:
        return await docs()
    return FileResponse(STATIC / "index.html", media_type="text/html", headers=HEADERS)


async def static_file(name: str) -> Response:
    """The page's script or style."""
    if name not in MEDIA_TYPES:
        raise HTTPException(404)
    return FileResponse(STATIC / name, media_type=MEDIA_TYPES[name], headers=HEADERS)


async def docs() -> Response:
    """BentoML's interactive description of the API, without the tracker it contains."""
    return HTMLResponse(TRACKER.sub("", API_DESCRIPTION.read_text(encoding="utf-8")))
