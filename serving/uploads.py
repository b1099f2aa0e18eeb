"""From the files of a request to items: features as .npy or safetensors, or media that become features here."""

import asyncio
import secrets
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated

from anyio import to_thread
from fastapi import Depends, File, Form, UploadFile

from videoblip2.config import InputError
from videoblip2.modality import Features

from . import observe
from .answers import Refusal
from .arrays import npy_array, safetensors_items
from .encoding import Clip, EncodingQueue
from .following import Served
from .media import Busy, Decoders

if TYPE_CHECKING:
    from videoblip2.predict import PreparedVideo

KEPT_CLIPS = 32
SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v")
ONE_OF = (
    "send a media file as `video`, an .npy as `video_features` (and `audio_features`), or safetensors as `features`"
)

VideoFile = Annotated[UploadFile | None, File(description="a media file: mp4, avi, webm …")]
VideoNpy = Annotated[UploadFile | None, File(description=".npy, floats [frames, 768]")]
AudioNpy = Annotated[
    UploadFile | None, File(description=".npy, floats [windows, 512]; leave out where there is no sound")
]
Tensors = Annotated[UploadFile | None, File(description="safetensors with `video` and, with sound, `audio`")]
ClipToken = Annotated[
    str | None, Form(max_length=64, description="`clip` of an earlier answer, in place of the file; 410 when too old")
]
VideoFiles = Annotated[list[UploadFile], File(description="media files")]
VideoNpys = Annotated[list[UploadFile], File(description=".npy files, floats [frames, 768]")]
AudioNpys = Annotated[list[UploadFile], File(description=".npy files, as many as `video_features`, or none")]
TensorFiles = Annotated[list[UploadFile], File(description="safetensors; `NAME.video`, `NAME.audio` for many in one")]


@dataclass(frozen=True)
class Uploads:
    """The files of a request, by kind."""

    video: Sequence[UploadFile] = ()
    video_features: Sequence[UploadFile] = ()
    audio_features: Sequence[UploadFile] = ()
    features: Sequence[UploadFile] = ()
    clip: str = ""


def one_upload(
    video: VideoFile = None,
    video_features: VideoNpy = None,
    audio_features: AudioNpy = None,
    features: Tensors = None,
) -> Uploads:
    """The files of a request for one item."""
    videos, video_npys, audio_npys, tensors = (
        [file] if file else [] for file in (video, video_features, audio_features, features)
    )
    return Uploads(videos, video_npys, audio_npys, tensors)


def one_source(uploads: Annotated[Uploads, Depends(one_upload)], clip: ClipToken = None) -> Uploads:
    """The files of a request for one item, or the clip of an earlier answer."""
    return replace(uploads, clip=clip or "")


def many_uploads(
    video: VideoFiles = [],  # noqa: B006 - read only
    video_features: VideoNpys = [],  # noqa: B006
    audio_features: AudioNpys = [],  # noqa: B006
    features: TensorFiles = [],  # noqa: B006
) -> Uploads:
    """The files of a request for many items."""
    return Uploads(video, video_features, audio_features, features)


async def items_of(uploads: Uploads, served: Served, intake: "MediaIntake") -> list["Features | Refusal"]:
    """Items in the order media, .npy, safetensors; a file that cannot be used is a Refusal in its place.

    Raises Refusal if it is unclear what the items are.
    """
    npys, sounds = uploads.video_features, uploads.audio_features
    if not (uploads.video or npys or uploads.features):
        raise Refusal(400, f"no video in the request; {ONE_OF}")
    if sounds and len(sounds) != len(npys):
        raise Refusal(400, f"{len(npys)} `video_features` and {len(sounds)} `audio_features`; send pairs, or no audio")
    items: list[Features | Refusal] = [*await asyncio.gather(*(_media(file, served, intake) for file in uploads.video))]
    async with intake.reading:
        for place, file in enumerate(npys):
            items.append(await _npy_pair(file, sounds[place] if sounds else None))
        for file in uploads.features:
            items.extend(await _tensors(file))
    return items


async def one_item(uploads: Uploads, served: Served, intake: "MediaIntake") -> tuple[Features, str]:
    """The one item of a request, and for a media file the token that stands for it from now on.

    Raises Refusal if there is no item, more than one, or one that cannot be used.
    """
    kinds = [kind for kind in (uploads.video, uploads.video_features, uploads.features, uploads.clip) if kind]
    if len(kinds) > 1:
        raise Refusal(400, f"more than one video in the request; {ONE_OF}, or use /captions")
    if uploads.clip:
        return intake.clips.find(uploads.clip, served), uploads.clip
    items = await items_of(uploads, served, intake)
    if len(items) != 1:
        raise Refusal(400, f"{len(items)} items in `features`; send one, or use /captions")
    if isinstance(items[0], Refusal):
        raise items[0]
    return items[0], intake.clips.keep(items[0], served) if uploads.video else ""


class Clips:
    """The features of the clips that were uploaded last, so that they can be asked about without another upload."""

    def __init__(self, most: int = KEPT_CLIPS) -> None:
        self._most = most
        self._kept: OrderedDict[str, tuple[Features, str]] = OrderedDict()

    def keep(self, item: Features, served: Served) -> str:
        """Keep features made for `served`; returns a token that nobody can guess."""
        token = secrets.token_urlsafe(16)
        self._kept[token] = item, served.captioner.encoders_name
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return token

    def find(self, token: str, served: Served) -> Features:
        """Raises Refusal 410 if the clip is no longer kept, or if `served` reads features of other encoders."""
        item, encoders = self._kept.get(token, (None, ""))
        if item is None or encoders != served.captioner.encoders_name:
            raise Refusal(410, "this clip is no longer held; send the file again", kind="gone")
        self._kept.move_to_end(token)
        return item


class MediaIntake:
    """Media files to features: decoded in child processes, encoded here by the model in service.

    As many are decoded at a time as there are decoders; `EncodingQueue` bounds the frames that wait for the encoders.
    `reading` is for arrays that come as files: one request's at a time is in memory whole.
    """

    def __init__(self, decoders: Decoders) -> None:
        self.decoders = decoders
        self.encoding = EncodingQueue()
        self.clips = Clips()
        self.reading = asyncio.Lock()
        self._room = asyncio.Semaphore(decoders.settings.decoders)

    async def features(self, file: UploadFile, served: Served) -> Features:
        """One upload → its features. Raises Refusal: 400 where it cannot be read, 429 where no decoder is free.

        The client's file name gives a known suffix and nothing else.
        """
        try:
            async with self._turn():
                prepared = await to_thread.run_sync(self._prepare, file, served, abandon_on_cancel=True)
                clip = Clip(prepared, served)
                await self.encoding.enter(clip)
            with observe.phase("encode"):
                return await clip.features
        except InputError as error:
            raise Refusal(400, str(error), kind="media") from error
        except Busy as busy:
            raise Refusal(429, str(busy), self.decoders.settings.retry_after) from busy

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.decoders.settings.decode_wait_seconds):
                await self._room.acquire()
        except TimeoutError:
            raise Busy("every decoder is busy; try again later") from None
        try:
            yield
        finally:
            self._room.release()

    def _prepare(self, file: UploadFile, served: Served) -> "PreparedVideo":
        """On a thread, the temporary file's coming and going included: on a busy disk they would hold up the loop."""
        suffix, captioner = PurePath(file.filename or "").suffix.lower(), served.captioner
        with tempfile.NamedTemporaryFile(prefix="vb2-upload-", suffix=suffix if suffix in SUFFIXES else ".bin") as copy:
            shutil.copyfileobj(file.file, copy)
            copy.flush()
            try:
                with self.decoders.decode(Path(copy.name), captioner.media_fps) as media:
                    return captioner.prepare_media(media.frames, media.sound)
            except InputError as error:
                raise InputError(str(error).replace(copy.name, "the uploaded file")) from error


async def _media(file: UploadFile, served: Served, intake: MediaIntake) -> "Features | Refusal":
    try:
        return await intake.features(file, served)
    except Refusal as refusal:
        return refusal


async def _npy_pair(video: UploadFile, audio: UploadFile | None) -> "Features | Refusal":
    try:
        files = {"audio": audio, "video": video}
        return {name: npy_array(await file.read(), f"{name}_features") for name, file in files.items() if file}
    except InputError as error:
        return Refusal(400, str(error))


async def _tensors(file: UploadFile) -> list["Features | Refusal"]:
    try:
        found = safetensors_items(await file.read(), "features")
    except InputError as error:
        return [Refusal(400, str(error))]
    return [Refusal(400, str(item)) if isinstance(item, InputError) else item for item in found]
