"""From the files of a request to items: features as .npy or safetensors, or media that become features here."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated

from anyio import to_thread
from fastapi import File, UploadFile

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


def one_upload(
    video: VideoFile = None,
    video_features: VideoNpy = None,
    audio_features: AudioNpy = None,
    features: Tensors = None,
) -> Uploads:
    """The files of a request for one item."""
    given = (video, video_features, audio_features, features)
    return Uploads(*([file] if file else [] for file in given))


def many_uploads(
    video: VideoFiles = [],  # noqa: B006 - read only
    video_features: VideoNpys = [],  # noqa: B006
    audio_features: AudioNpys = [],  # noqa: B006
    features: TensorFiles = [],  # noqa: B006
) -> Uploads:
    """The files of a request for many items."""
    return Uploads(video, video_features, audio_features, features)


async def items_of(uploads: Uploads, served: Served, intake: "MediaIntake") -> list["Features | Refusal"]:
    """Items in the order media, .npy, safetensors, each kind as sent; a file that is no use is a Refusal in its place.

    Raises Refusal where it cannot be said what the items are.
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


async def one_item(uploads: Uploads, served: Served, intake: "MediaIntake") -> Features:
    """The one item of a request. Raises Refusal where there is none, more than one, or no use in it."""
    kinds = [kind for kind in (uploads.video, uploads.video_features, uploads.features) if kind]
    if len(kinds) > 1:
        raise Refusal(400, f"more than one video in the request; {ONE_OF}, or use /captions")
    items = await items_of(uploads, served, intake)
    if len(items) != 1:
        raise Refusal(400, f"{len(items)} items in `features`; send one, or use /captions")
    if isinstance(items[0], Refusal):
        raise items[0]
    return items[0]


class MediaIntake:
    """Media files to features: decoded in child processes, encoded here by the model in service.

    As many are decoded at a time as there are decoders; `EncodingQueue` bounds the frames that wait for the encoders.
    `reading` is for arrays that come as files: one request's at a time is in memory whole.
    """

    def __init__(self, decoders: Decoders) -> None:
        self.decoders = decoders
        self.encoding = EncodingQueue()
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
            raise Busy("every decoder is at work; try again later") from None
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
