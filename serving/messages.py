"""Messages of the service: the fields of a form, answers, refusals, the state of its models."""

import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast, get_origin

from fastapi import Request, UploadFile
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, FiniteFloat, StringConstraints

from videoblip2.config import QUESTION_PROMPT, Decoding, InputError
from videoblip2.modality import ExplainedWord

from . import observe

WORDS = "with `explain`: each word, and by how many nats its log-probability falls without the sound, and the picture"
MAX_TEXT = 300  # characters of a prompt or question
FORM_LIMITS = {"max_files": 256, "max_fields": 256, "max_part_size": 64 * 1024}  # bytes of a text


class Answer(BaseModel):
    """The caption of one video, or the answer to a question about it."""

    caption: str = Field(examples=["a man is playing a guitar on a stage"])
    score: float = Field(description="mean log-probability of its tokens; with beams the length-normalized score")
    model_version: str = Field(examples=["videoblip2/3"])
    seconds: float = Field(description="from the end of the upload to the answer")
    timings: dict[str, float] = Field(description="seconds: features, waiting for the model (queue), its batch (model)")
    batch: int = Field(description="number of captions in the batch")
    words: tuple[ExplainedWord, ...] | None = Field(None, description=WORDS)
    clip: str = Field("", description="token of an uploaded file: send it as `clip` instead of the file to ask again")


class SegmentAnswer(BaseModel):
    """The caption of one segment."""

    start: float = Field(description="seconds from the beginning")
    end: float
    caption: str
    score: float
    words: tuple[ExplainedWord, ...] | None = Field(None, description=WORDS)


class Segments(BaseModel):
    """Captions of a video over time: neighbors with the same caption are merged into one segment."""

    segments: list[SegmentAnswer]
    model_version: str
    seconds: float = Field(description="from the end of the upload to the answer")
    clip: str = Field("", description="as in an answer about the whole video")


class Moment(BaseModel):
    """A frame or an audio window, and its share of the attention."""

    start: float
    end: float
    weight: float = Field(description="all moments of a modality sum to 1")


class Attention(BaseModel):
    """The Q-Formers' cross-attention over time: the mean over their layers, heads and queries."""

    model_version: str
    seconds: float | None = Field(description="length of the clip; null if unknown: start and end are then 0 to 1")
    modalities: dict[str, list[Moment] | None] = Field(description="empty: not in the clip; null: unused by the model")


class Problem(BaseModel):
    """Why there is no caption; the server's log has the request under the same id."""

    error: str = Field(examples=["video_features: features of shape [12, 640]; this model takes [N,768]"])
    request_id: str = ""


class ItemProblem(BaseModel):
    """Why one item of many has no caption."""

    error: str
    status: int = Field(description="the status that this item alone would have had", examples=[400])


class Answers(BaseModel):
    """One entry per item, in the order sent."""

    results: list[Answer | ItemProblem]


class Comparison(BaseModel):
    """Champion and challenger on the same requests, since the last change of either."""

    model: str
    champion: str = Field("", description="version")
    challenger: str = Field("", description="version")
    compared: int = 0
    same: int = Field(0, description="captions with the same words")
    overlap: float = Field(0.0, description="mean Jaccard index of the words of both captions")
    champion_score: float = Field(0.0, description="mean")
    challenger_score: float = Field(0.0, description="mean")
    failed: int = 0
    dropped: int = Field(0, description="requests without a challenger: queue full, other encoders, not loaded")


class ModelState(BaseModel):
    """What is in service."""

    model: str
    model_version: str
    since: str = Field(description="when it came into service, ISO 8601")
    waiting: int = Field(description="captions in the queue")
    trouble: str = Field(description="why the model cannot be followed right now; empty if all is well")
    warning: str = Field(description="what users must know first; empty if nothing")
    answers: bool = Field(description="false if it was never trained on questions: /ask refuses them")
    shadow: Comparison | None = None
    max_upload_mb: float = Field(0, description="largest upload that is accepted")


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
    """A request, or one item of it, that gets a status and a reason, not a caption. kind: label in the metrics."""

    def __init__(
        self, status: int, reason: str, retry_after: int = 0, kind: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(reason)
        self.status, self.reason, self.kind = status, reason, kind or KINDS.get(status, "malformed")
        self.headers = {"Retry-After": str(retry_after)} if retry_after else headers

    def response(self, request_id: str) -> JSONResponse:
        """The response with this status and reason."""
        return JSONResponse({"error": self.reason, "request_id": request_id}, self.status, self.headers)


def refusal_of(error: BaseException) -> Refusal:
    """A user's mistake with its reason; a bug is logged with its trace, and the client never sees its details."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal(400, str(error))
    observe.log.error("unexpected", exc_info=error)
    return Refusal(500, "internal error; the server's log has the details")


class FormRoute(APIRoute):
    """Read a form within limits, refuse unknown or repeated fields, and bound the time to answer."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the route's handler in the checks of its form."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        fields = cast(type[BaseModel], self.body_field.field_info.annotation).model_fields

        async def checked(request: Request) -> Response:
            if request.query_params:
                name = next(iter(request.query_params))
                raise Refusal(400, f"{name[:80]!r} in the address; send it as a field of the form")
            async with request.form(**FORM_LIMITS) as form:
                names = [name for name, _ in form.multi_items()]
                for name in names:
                    if name not in fields:
                        raise Refusal(400, f"unknown field {name[:80]!r}; known: {', '.join(sorted(fields))}")
                    if (count := names.count(name)) > 1 and get_origin(fields[name].annotation) is not list:
                        once = "send it once; /captions takes many files"
                        raise Refusal(400, f"{name!r} is in the form {count} times; {once}")
                async with request.app.state.engine.deadline():
                    return await handle(request)

        return checked


Every = Annotated[FiniteFloat, Field(gt=0, le=86_400)] | Literal["scenes"]
SEGMENTS = "answer over time: seconds per segment, or `scenes` for a new one wherever the picture changes"
Question = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TEXT)]


class OneUpload(BaseModel):
    """The files of one item, or the clip of an earlier answer instead."""

    video: UploadFile | None = Field(None, description="a media file: mp4, avi, webm …")
    video_features: UploadFile | None = Field(None, description=".npy, floats [frames, 768]")
    audio_features: UploadFile | None = Field(None, description=".npy, floats [windows, 512]; leave out if no sound")
    features: UploadFile | None = Field(None, description="safetensors with `video` and, with sound, `audio`")
    clip: str = Field("", max_length=64, description="token from an earlier answer, instead of a file; 410 if expired")


class Options(BaseModel):
    """Decoding options and the seed; an option that is left out is as the model's own configuration says."""

    num_beams: int | None = Field(None, ge=1, le=10, description="1 = greedy, or sampled if there is a seed")
    max_new_tokens: int | None = Field(None, ge=1, le=128)
    length_penalty: FiniteFloat | None = Field(None, ge=-5, le=5, description="above 1, beams favor long captions")
    consensus: int | None = Field(None, ge=0, le=64, description="sample this many; return the one closest to the rest")
    seed: int | None = Field(None, ge=0, lt=2**63, description="sample; the same seed gives the same caption")
    temperature: FiniteFloat | None = Field(None, ge=0.05, le=5, description="of samples; low = close to greedy")
    explain: bool = Field(False, description="also return how much each word depends on the sound and on the picture")

    def decoding(self, own: Decoding) -> Decoding:
        """With a model that decodes as `own` by itself. Raises InputError for a seed with beams."""
        given = {name: getattr(self, name) for name in Options.model_fields if hasattr(own, name)}
        consensus = own.consensus if self.consensus is None else self.consensus
        return own.but(self.seed is not None and not consensus, **given)


@dataclass
class Ask:
    """One request: its options, its prompt, and what became of it."""

    options: Options = field(default_factory=Options)
    prompt: str | None = None
    question: bool = False
    request_id: str = field(default_factory=observe.request_id)
    began: float = field(default_factory=time.perf_counter)
    features_seconds: float = 0.0
    turn: int = 0  # number of the last batch that contained one of its items
    clip: str = ""


class Prompted(Options):
    """How to caption."""

    prompt: str | None = Field(None, max_length=MAX_TEXT, description="such as `a video of`")

    @property
    def asking(self) -> Ask:
        return Ask(self, self.prompt)


class CaptionForm(OneUpload, Prompted):
    """One item to caption."""

    segments: Every | None = Field(None, description=SEGMENTS)


class CaptionsForm(Prompted):
    """Many items to caption: their files, by kind."""

    video: list[UploadFile] = Field([], description="media files")
    video_features: list[UploadFile] = Field([], description=".npy files, floats [frames, 768]")
    audio_features: list[UploadFile] = Field([], description=".npy, as many as `video_features`, or none")
    features: list[UploadFile] = Field([], description="safetensors; `NAME.video`, `NAME.audio` for many")


class StreamForm(OneUpload, Prompted):
    """One item to caption word by word."""

    challenger: bool = Field(False, description="also send the caption of the challenger in shadow, as the last event")


class AttentionForm(OneUpload):
    """One item, and what the attention is for."""

    question: Question | None = Field(None, description="question to answer")

    @property
    def asking(self) -> Ask:
        return Ask(prompt=self.question and QUESTION_PROMPT.format(self.question), question=self.question is not None)


class QuestionForm(OneUpload, Options):
    """One item and a question about it."""

    question: Question = Field(description="such as `what is the man playing?`")
    segments: Every | None = Field(None, description=SEGMENTS)

    @property
    def asking(self) -> Ask:
        return Ask(self, QUESTION_PROMPT.format(self.question), question=True)
