"""HTTP: what a request looks like, and how answers and refusals become responses."""

import asyncio
import inspect
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, get_origin

from fastapi import Depends, FastAPI, Form, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from videoblip2.config import Decoding
from videoblip2.modality import Features

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
from .engine import Ask, Engine, answer_of, problem_of
from .page import add_page
from .uploads import MediaIntake, Uploads, items_of, many_uploads, one_item, one_source, one_upload

SHADOW_SECONDS = 20  # a challenger has only the time that the champion leaves
MAX_TEXT = 300  # characters of a prompt or question
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


def decoding_form(
    num_beams: Annotated[int, Form(ge=1, le=10, description="1 = greedy, or sampled if there is a seed")] = 1,
    max_new_tokens: Annotated[int, Form(ge=1, le=128)] = 32,
    length_penalty: Annotated[
        float, Form(ge=-5, le=5, allow_inf_nan=False, description="with beams: above 1 favours long captions")
    ] = 1.0,
    seed: Annotated[
        int | None,
        Form(ge=0, lt=2**63, description="samples a caption; the same seed gives the same one", examples=[7]),
    ] = None,
    temperature: Annotated[
        float, Form(ge=0.05, le=5, allow_inf_nan=False, description="of sampling; low = close to greedy")
    ] = 1.0,
) -> tuple[Decoding, int | None]:
    """Decoding options and the seed."""
    if seed is not None and num_beams > 1:
        raise Refusal(
            400, f"seed={seed} with num_beams={num_beams}: beam search does not sample; leave one of them out"
        )
    return Decoding(num_beams, max_new_tokens, length_penalty, temperature, seed is not None), seed


async def known_fields(request: Request) -> None:
    """Refuse an unknown field, and a field sent twice where one is expected: nothing is ignored silently."""
    if request.method == "GET":
        return
    if request.query_params:
        raise Refusal(400, f"{next(iter(request.query_params))!r} in the address; send it as a field of the form")
    names = [name for name, _ in (await request.form()).multi_items()]
    dependant = request.scope["route"].dependant
    known, many = _fields(dependant), _fields(dependant, many=True)
    for name in names:
        if name not in known:
            raise Refusal(400, f"unknown field {name!r}; known: {', '.join(sorted(known))}")
        if name not in many and names.count(name) > 1:
            more = "; /captions takes many" if name in inspect.signature(one_upload).parameters else ""
            raise Refusal(400, f"{name!r} is in the form {names.count(name)} times; send it once{more}")


def file_fields(app: FastAPI) -> dict[str, frozenset[str]]:
    """Path of each POST route → its fields that take files."""
    posts = [route for route in app.routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())]
    files = frozenset(inspect.signature(one_upload).parameters)
    return {route.path: files & _fields(route.dependant) for route in posts}


def _fields(dependant: Dependant, many: bool = False) -> set[str]:
    """Names of the form's fields; `many`: of those that may be repeated."""
    own = {
        field.alias for field in dependant.body_params if not many or get_origin(field.field_info.annotation) is list
    }
    return own.union(*(_fields(inner, many) for inner in dependant.dependencies))


Options = Annotated[tuple[Decoding, int | None], Depends(decoding_form)]
One = Annotated[Uploads, Depends(one_source)]
Many = Annotated[Uploads, Depends(many_uploads)]
Prompt = Annotated[
    str | None, Form(max_length=MAX_TEXT, description="default: the model's own", examples=["a video of"])
]
Question = Annotated[
    str, Form(min_length=1, max_length=MAX_TEXT, description="in plain words", examples=["what is the man playing?"])
]
AttentionQuestion = Annotated[
    str | None, Form(max_length=MAX_TEXT, description="attention while answering it; without it, while captioning")
]
Challenger = Annotated[bool, Form(description="also send the caption of the challenger in shadow, as the last event")]


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
    add_page(app)
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
    return await _one(request, uploads, options, _question_prompt(question))


async def attention(request: Request, uploads: One, question: AttentionQuestion = None) -> Attention:
    """Say how the model divides its attention over the frames and the sound of one video."""
    engine = engine_of(request)
    async with engine.deadline():
        served = engine.served()
        item, _ = await one_item(uploads, served, intake_of(request))
        return await engine.attention(item, served, None if question is None else _question_prompt(question))


async def references(request: Request, video_id: str) -> References:
    """Say how people described a video of VB2_REFERENCES; an unknown one has no captions."""
    return References(captions=list(request.app.state.references.get(video_id, ())))


async def captions(request: Request, uploads: Many, options: Options, prompt: Prompt = None) -> Answers:
    """Caption many videos; a bad one has an `error` in its place, the others their captions."""
    engine, asking = engine_of(request), _ask(options, prompt)
    async with engine.deadline():
        served = engine.served()
        items = await items_of(uploads, served, intake_of(request))
        asking.features_seconds = time.perf_counter() - asking.began
        results = await engine.answer(items, served, asking)
    _count_failures(items, results)
    return Answers(results=results)


async def caption_stream(
    request: Request, uploads: One, options: Options, prompt: Prompt = None, challenger: Challenger = False
) -> StreamingResponse:
    """Caption one video, and send the caption word by word while it is made."""
    engine, asking = engine_of(request), _ask(options, prompt)
    async with engine.deadline():
        served = engine.served()
        item, asking.clip = await one_item(uploads, served, intake_of(request))
    asking.features_seconds = time.perf_counter() - asking.began
    job = engine.job(item, served, asking)
    if isinstance(job, Refusal):
        raise job
    texts: asyncio.Queue[str | None] = asyncio.Queue()
    job.listener = texts.put_nowait
    job.future.add_done_callback(lambda _: texts.put_nowait(None))
    engine.submit([job])
    return StreamingResponse(_events(engine, job, texts, asking, challenger), media_type="text/event-stream")


async def model(request: Request) -> ModelState:
    """Say what is in service, since when, and how a challenger compares."""
    return engine_of(request).state()


async def _one(request: Request, uploads: Uploads, options: Options, prompt: str | None) -> Answer:
    engine, asking = engine_of(request), _ask(options, prompt)
    async with engine.deadline():
        served = engine.served()
        item, asking.clip = await one_item(uploads, served, intake_of(request))
        asking.features_seconds = time.perf_counter() - asking.began
        (result,) = await engine.answer([item], served, asking)
    if isinstance(result, ItemProblem):
        raise Refusal(result.status, result.error)
    return result


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
            yield _event("caption", answer_of(job, done, asking).model_dump_json())
        compared = engine.compare([job], [done], asking)
        if challenger and engine.shadow and (contender := engine.shadow.follower.current):
            caption = await _within(SHADOW_SECONDS, compared[0]) if compared else None
            contended = ChallengerCaption(caption=caption, model_version=contender.version)
            yield _event("challenger", contended.model_dump_json())
    except Refusal as refusal:
        yield _failure(ItemProblem(error=refusal.reason, status=refusal.status))
    except Exception as error:
        yield _failure(problem_of(error))
    finally:
        job.future.cancel()


async def _within(seconds: float, task: "asyncio.Task[str | None]") -> str | None:
    """The task's result, or None when it takes longer; the task is not cancelled."""
    done, _ = await asyncio.wait([task], timeout=seconds)
    return task.result() if done else None


def _question_prompt(question: str) -> str:
    return f"question: {question.strip()} answer:"


def _count_failures(items: Sequence[Features | Refusal], results: Sequence[Answer | ItemProblem]) -> None:
    for item, result in zip(items, results, strict=True):
        if isinstance(item, Refusal):
            observe.failed(item.kind)
        elif isinstance(result, ItemProblem):
            observe.failed(Refusal(result.status, result.error).kind)


def engine_of(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def intake_of(request: Request) -> MediaIntake:
    intake: MediaIntake = request.app.state.intake
    return intake


def _ask(options: tuple[Decoding, int | None], prompt: str | None) -> Ask:
    decoding, seed = options
    return Ask(decoding, prompt, seed, observe.request_id())


def _failure(problem: ItemProblem) -> str:
    observe.failed(Refusal(problem.status, problem.error).kind)
    return _event("error", problem.model_dump_json())


def _event(kind: str, data: str) -> str:
    return f"event: {kind}\ndata: {data}\n\n"


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
