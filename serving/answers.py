"""What the service says: answers, refusals, the state of its models."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, JsonValue

EXAMPLE: dict[str, JsonValue] = {
    "caption": "a man is playing a guitar on a stage",
    "score": -0.41,
    "model_version": "videoblip2/3",
    "seconds": 0.084,
    "timings": {"features": 0.051, "queue": 0.002, "model": 0.029},
    "batch": 4,
}


class Said(BaseModel):
    """What may have fields whose names begin with `model_`."""

    model_config = ConfigDict(protected_namespaces=())


class Timings(BaseModel):
    """Seconds: making features, waiting for the model, the model's batch."""

    features: float
    queue: float
    model: float


class Answer(Said):
    """What the model says about one video."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    caption: str
    score: float = Field(description="mean log-probability of its tokens; with beams the length-normalised score")
    model_version: str
    seconds: float = Field(description="from the first byte understood to the answer")
    timings: Timings
    batch: int = Field(description="how many captions the model made at once")
    clip: str = Field(
        "",
        description="of an uploaded media file: send it as `clip` in place of the file to ask again without an upload",
    )


class Moment(BaseModel):
    """A frame or an audio window, and its share of the attention."""

    start: float
    end: float
    weight: float = Field(description="all moments of a modality sum to 1")


class Attention(Said):
    """The Q-Formers' cross-attention over time: the mean over their layers, heads and queries."""

    model_version: str
    seconds: float | None = Field(description="length of the clip; null if unknown: start and end are then 0 to 1")
    modalities: dict[str, list[Moment] | None] = Field(
        description="by modality, such as `video`: empty if the clip has none, null if this model does not use it"
    )


class References(BaseModel):
    """What people said about a known video."""

    captions: list[str]


class ChallengerCaption(Said):
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


class Comparison(Said):
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


class ModelState(Said):
    """What is in service."""

    model: str
    model_version: str
    since: str = Field(description="when it came into service, ISO 8601")
    waiting: int = Field(description="captions in the queue")
    trouble: str = Field(description="why the model cannot be followed right now; empty if all is well")
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
    """A request, or one item of it, that gets a status and a reason instead of a caption.

    Args:
        retry_after: seconds until it is worth trying again.
        kind: for the metrics; default: what the status says.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        retry_after: int | None = None,
        kind: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason
        self.kind = kind or KINDS.get(status, "malformed")
        self.headers = {**(headers or {})} if retry_after is None else {"Retry-After": str(retry_after)}
