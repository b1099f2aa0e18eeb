"""What the service is sent and what it says: the fields of a form, answers, refusals, the state of its models."""

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, get_origin

from fastapi import Depends, File, Form, Request, UploadFile
from fastapi.dependencies.models import Dependant
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints
from pydantic import FiniteFloat as Finite

from videoblip2.config import GREEDY, QUESTION_PROMPT, Decoding

from . import observe

MAX_TEXT = 300  # characters of a prompt or question
FORM_LIMITS = {"max_files": 256, "max_fields": 256, "max_part_size": 64 * 1024}  # bytes of a text
EXAMPLE: dict[str, JsonValue] = {
    "caption": "a man is playing a guitar on a stage",
    "score": -0.41,
    "model_version": "videoblip2/3",
    "seconds": 0.084,
    "timings": {"features": 0.051, "queue": 0.002, "model": 0.029},
    "batch": 4,
}


class Timings(BaseModel):
    """Seconds: making features, waiting for the model, the model's batch."""

    features: float
    queue: float
    model: float


class Answer(BaseModel):
    """What the model says about one video."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    caption: str
    score: float = Field(description="mean log-probability of its tokens; with beams the length-normalised score")
    model_version: str
    seconds: float = Field(description="from the first byte understood to the answer")
    timings: Timings
    batch: int = Field(description="how many captions the model made at once")
    clip: str = Field("", description="of an uploaded media file: send it as `clip` in place of the file to ask again")


class Moment(BaseModel):
    """A frame or an audio window, and its share of the attention."""

    start: float
    end: float
    weight: float = Field(description="all moments of a modality sum to 1")


class Attention(BaseModel):
    """The Q-Formers' cross-attention over time: the mean over their layers, heads and queries."""

    model_version: str
    seconds: float | None = Field(description="length of the clip; null if unknown: start and end are then 0 to 1")
    modalities: dict[str, list[Moment] | None] = Field(
        description="empty: not in the clip; null: not read by the model"
    )


class References(BaseModel):
    """What people said about a known video."""

    captions: list[str]


class ChallengerCaption(BaseModel):
    """The caption of a challenger that runs in shadow."""

    caption: str | None = Field(description="null if it failed, was too late or had no room in the queue")
    model_version: str


class Problem(BaseModel):
    """Why there is no caption; the server's log has the request under the same id."""

    error: str = Field(examples=["video_features: features of shape [12, 640]; this model takes [N,768]"])
    request_id: str = ""


class ItemProblem(BaseModel):
    """Why one item of many has no caption."""

    error: str
    status: int = Field(description="the status that this item would have had in a request by itself", examples=[400])


class Answers(BaseModel):
    """One entry an item, in the order sent."""

    results: list[Answer | ItemProblem]


class Comparison(BaseModel):
    """Champion and challenger on the same requests, since either last changed."""

    model: str
    champion: str = Field("", description="version")
    challenger: str = Field("", description="version")
    compared: int = 0
    same: int = Field(0, description="captions with the same words")
    overlap: float = Field(0.0, description="mean Jaccard index of the words of both captions")
    champion_score: float = Field(0.0, description="mean")
    challenger_score: float = Field(0.0, description="mean")
    failed: int = 0
    dropped: int = Field(0, description="requests that the challenger never saw: no room, other encoders, not loaded")


class ModelState(BaseModel):
    """What is in service."""

    model: str
    model_version: str
    since: str = Field(description="when it came into service, ISO 8601")
    waiting: int = Field(description="captions in the queue")
    trouble: str = Field(description="why the model cannot be followed right now; empty if all is well")
    warning: str = Field(description="what its users must know first; empty if nothing")
    answers: bool = Field(description="false if it was never trained on questions: /ask refuses them")
    shadow: Comparison | None = None
    max_upload_mb: float = Field(0, description="largest upload that is accepted")


Headers = Mapping[str, str] | None
KINDS = {
    401: "unauthorised",
    408: "timeout",
    410: "gone",
    413: "too_large",
    415: "unsupported",
    429: "overloaded",
    500: "internal",
    503: "not_ready",
    504: "timeout",
}


class Refusal(Exception):
    """A request, or one item of it, that gets a status and a reason instead of a caption. kind: for the metrics."""

    def __init__(
        self, status: int, reason: str, retry_after: int | None = None, kind: str = "", headers: Headers = None
    ) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason
        self.kind = kind or KINDS.get(status, "malformed")
        self.headers = {**(headers or {})} if retry_after is None else {"Retry-After": str(retry_after)}

    def response(self, request_id: str) -> JSONResponse:
        """The response with this status and reason."""
        problem = Problem(error=self.reason, request_id=request_id)
        return JSONResponse(problem.model_dump(), self.status, self.headers)


class FormRoute(APIRoute):
    """Reads a form within bounds and refuses a field that is unknown or sent twice: nothing is ignored silently."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's handler behind the checks of its form."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if request.method == "GET":
                return await handle(request)
            if request.query_params:
                name = next(iter(request.query_params))
                raise Refusal(400, f"{name[:80]!r} in the address; send it as a field of the form")
            async with request.form(**FORM_LIMITS) as form:
                self._check([name for name, _ in form.multi_items()])
                return await handle(request)

        return checked

    def _check(self, names: list[str]) -> None:
        known = form_fields(self.dependant)
        for name in names:
            if name not in known:
                raise Refusal(400, f"unknown field {name[:80]!r}; known: {', '.join(sorted(known))}")
            if not known[name] and (count := names.count(name)) > 1:
                raise Refusal(400, f"{name!r} is in the form {count} times; send it once; /captions takes many files")


def form_fields(dependant: Dependant) -> dict[str, bool]:
    """Name of each field of a route's form → whether it may be repeated."""
    own = {field.alias: get_origin(field.field_info.annotation) is list for field in dependant.body_params}
    return own | {name: many for inner in dependant.dependencies for name, many in form_fields(inner).items()}


@dataclass(frozen=True)
class Uploads:
    """The files of a request, by kind; or the `clip` of an earlier answer in their place."""

    video: Sequence[UploadFile] = ()
    video_features: Sequence[UploadFile] = ()
    audio_features: Sequence[UploadFile] = ()
    features: Sequence[UploadFile] = ()
    clip: str = ""


OneFile = UploadFile | None
Files = list[UploadFile]
Question = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT)]


def one_upload(
    video: Annotated[OneFile, File(description="a media file: mp4, avi, webm …")] = None,
    video_features: Annotated[OneFile, File(description=".npy, floats [frames, 768]")] = None,
    audio_features: Annotated[OneFile, File(description=".npy, floats [windows, 512]; omit it without sound")] = None,
    features: Annotated[OneFile, File(description="safetensors with `video` and, with sound, `audio`")] = None,
    clip: Annotated[str, Form(max_length=64, description="of an earlier answer, in place of a file; else 410")] = "",
) -> Uploads:
    """The files of a request for one item, or the clip of an earlier answer."""
    files = {"video": video, "video_features": video_features, "audio_features": audio_features, "features": features}
    return Uploads(clip=clip, **{kind: [file] for kind, file in files.items() if file})


def many_uploads(
    video: Annotated[Files, File(description="media files")] = [],  # noqa: B006 - read only
    video_features: Annotated[Files, File(description=".npy files, floats [frames, 768]")] = [],  # noqa: B006
    audio_features: Annotated[Files, File(description=".npy, as many as `video_features`, or none")] = [],  # noqa: B006
    features: Annotated[Files, File(description="safetensors; `NAME.video`, `NAME.audio` for many")] = [],  # noqa: B006
) -> Uploads:
    """The files of a request for many items."""
    return Uploads(video, video_features, audio_features, features)


@dataclass
class Ask:
    """What to do with items: decoding, seed, prompt; and who asks."""

    decoding: Decoding = GREEDY
    seed: int | None = None
    prompt: str | None = None
    question: bool = False
    request_id: str = ""
    began: float = field(default_factory=time.perf_counter)
    features_seconds: float = 0.0
    clip: str = ""


def decoding_form(
    num_beams: Annotated[int, Form(ge=1, le=10, description="1 = greedy, or sampled if there is a seed")] = 1,
    max_new_tokens: Annotated[int, Form(ge=1, le=128)] = 32,
    length_penalty: Annotated[Finite, Form(ge=-5, le=5, description="with beams: above 1 favours long captions")] = 1.0,
    seed: Annotated[int | None, Form(ge=0, lt=2**63, description="samples; the same seed gives the same one")] = None,
    temperature: Annotated[Finite, Form(ge=0.05, le=5, description="of sampling; low = close to greedy")] = 1.0,
) -> Ask:
    """Decoding options and the seed."""
    if seed is not None and num_beams > 1:
        raise Refusal(400, f"seed={seed} with num_beams={num_beams}: beam search does not sample; leave one out")
    decoding = Decoding(num_beams, max_new_tokens, length_penalty, temperature, seed is not None)
    return Ask(decoding, seed, request_id=observe.request_id())


def caption_form(
    ask: Annotated[Ask, Depends(decoding_form)],
    prompt: Annotated[str | None, Form(max_length=MAX_TEXT, description="such as `a video of`")] = None,
) -> Ask:
    """How to caption."""
    return replace(ask, prompt=prompt)


def question_form(
    ask: Annotated[Ask, Depends(decoding_form)],
    question: Annotated[Question, Form(description="such as `what is the man playing?`")],
) -> Ask:
    """How to answer."""
    return replace(ask, prompt=QUESTION_PROMPT.format(question), question=True)


def attention_form(
    question: Annotated[Question | None, Form(description="question to answer")] = None,
) -> Ask:
    """What the attention is for."""
    return Ask() if question is None else question_form(Ask(), question)


One = Annotated[Uploads, Depends(one_upload)]
Many = Annotated[Uploads, Depends(many_uploads)]
Captioning = Annotated[Ask, Depends(caption_form)]
Asking = Annotated[Ask, Depends(question_form)]
Attending = Annotated[Ask, Depends(attention_form)]
Challenger = Annotated[bool, Form(description="also send the caption of the challenger in shadow, as the last event")]
