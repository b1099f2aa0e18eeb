"""What a request's form may hold: checked byte by byte before BentoML parses it, then field by field.

BentoML downloads the address that a client puts as text in a file field, parses other text as JSON without a bound, and
names a temporary file after the client's; any of these would be a way in, or an internal error (500) made by a client.
"""

import inspect
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, get_origin

from fastapi import Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from videoblip2.config import Decoding

from .answers import Refusal

MAX_PARTS = 256
MAX_BYTES = 64 * 1024  # of one text field
MAX_NAME = 128  # bytes of a file's name
MAX_TEXT = 300  # characters of a prompt or question
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class FormWatch:
    """Feed it the body's chunks, then `finish`; both raise Refusal.

    Args:
        content_type: the request's Content-Type.
        file_fields: fields that take files; text in one of them is refused.
    """

    def __init__(self, content_type: str, file_fields: Collection[str]) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary or len(boundary) > 200:
            raise Refusal(400, "the form has no boundary in its Content-Type; let your HTTP client set that header")
        self._file_fields = file_fields
        self._parts = 0
        self._complete = False
        self._begin()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Refusal(400, "the form is damaged; send multipart/form-data as curl -F does") from error

    def finish(self) -> None:
        """The body is over."""
        if not self._complete:
            raise Refusal(400, "the form ends before its last boundary; send it again")

    def _begin(self) -> None:
        self._name, self._value, self._text = bytearray(), bytearray(), bytearray()
        self._disposition = b""
        self._field = ""
        self._is_file = False

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Refusal(400, f"the form has more than {MAX_PARTS} parts; send several requests")
        if b"name" not in options:
            raise Refusal(400, "a part of the form has no name")
        self._field = options[b"name"].decode("utf-8", "replace")
        self._is_file = b"filename" in options
        file_name = options.get(b"filename", b"").decode("utf-8", "replace")
        if len(file_name.encode()) > MAX_NAME or CONTROL.search(file_name):
            raise Refusal(
                400, f"{self._field}: the file's name is longer than {MAX_NAME} bytes or holds control characters"
            )
        if not self._is_file and self._field in self._file_fields:
            raise Refusal(400, f"{self._field}: takes a file, not text or an address; upload the file itself")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            return
        self._text += data[start:end]
        if len(self._text) > MAX_BYTES:
            raise Refusal(400, f"{self._field}: longer than {MAX_BYTES // 1024} KiB of text")

    def _part_end(self) -> None:
        if self._is_file:
            return
        try:
            json.loads(self._text)
        except json.JSONDecodeError:
            pass  # plain words
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            if not isinstance(error, UnicodeDecodeError):
                raise Refusal(400, f"{self._field}: neither words nor a number of a usual size") from error

    def _end(self) -> None:
        self._complete = True


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


def one_upload(
    video: Annotated[OneFile, File(description="a media file: mp4, avi, webm …")] = None,
    video_features: Annotated[OneFile, File(description=".npy, floats [frames, 768]")] = None,
    audio_features: Annotated[OneFile, File(description=".npy, floats [windows, 512]; omit it without sound")] = None,
    features: Annotated[OneFile, File(description="safetensors with `video` and, with sound, `audio`")] = None,
    clip: Annotated[
        str | None, Form(max_length=64, description="`clip` of an earlier answer, instead of the file; 410 if too old")
    ] = None,
) -> Uploads:
    """The files of a request for one item, or the clip of an earlier answer."""
    files = {"video": video, "video_features": video_features, "audio_features": audio_features, "features": features}
    return Uploads(clip=clip or "", **{kind: [file] for kind, file in files.items() if file})


def many_uploads(
    video: Annotated[Files, File(description="media files")] = [],  # noqa: B006 - read only
    video_features: Annotated[Files, File(description=".npy files, floats [frames, 768]")] = [],  # noqa: B006
    audio_features: Annotated[Files, File(description=".npy, as many as `video_features`, or none")] = [],  # noqa: B006
    features: Annotated[Files, File(description="safetensors; `NAME.video`, `NAME.audio` for many")] = [],  # noqa: B006
) -> Uploads:
    """The files of a request for many items."""
    return Uploads(video, video_features, audio_features, features)


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
            more = "; /captions takes many" if name in inspect.signature(many_uploads).parameters else ""
            raise Refusal(400, f"{name!r} is in the form {names.count(name)} times; send it once{more}")


def file_fields(app: FastAPI) -> dict[str, frozenset[str]]:
    """Path of each POST route → its fields that take files."""
    posts = [route for route in app.routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())]
    files = frozenset(inspect.signature(many_uploads).parameters)
    return {route.path: files & _fields(route.dependant) for route in posts}


def _fields(dependant: Dependant, many: bool = False) -> set[str]:
    """Names of the form's fields; `many`: of those that may be repeated."""
    fields = (field for field in dependant.body_params if not many or get_origin(field.field_info.annotation) is list)
    own = {field.alias for field in fields}
    return own.union(*(_fields(inner, many) for inner in dependant.dependencies))


Options = Annotated[tuple[Decoding, int | None], Depends(decoding_form)]
One = Annotated[Uploads, Depends(one_upload)]
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
