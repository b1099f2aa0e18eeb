"""From the files of a request to items: media are encoded; .npy and safetensors are read, nothing unpickled."""

import asyncio
import io
import secrets
import shutil
import tempfile
import time
from collections import OrderedDict
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
from anyio import to_thread
from fastapi import UploadFile

from videoblip2.captioner import Captioner
from videoblip2.config import InputError
from videoblip2.errors import refused
from videoblip2.files import MEDIA_SUFFIXES
from videoblip2.modality import MODALITIES, Features

from . import observe
from .batching import Clip, EncodingQueue, Item
from .decoders import BUSY, Decoders
from .messages import CaptionsForm, OneUpload, Refusal

if TYPE_CHECKING:
    from videoblip2.captioner import PreparedVideo

KEPT_CLIPS = 32
ONE_OF = "send a media file as `video`, .npy as `video_features` and `audio_features`, or safetensors as `features`"
NAMES = f"name them {' or '.join(MODALITIES)}, or with a video's name in front: NAME.video"


async def items_of(
    form: CaptionsForm, captioner: Captioner, intake: "MediaIntake", every_frame: bool = False
) -> list[Item]:
    """Items in the order media, .npy, safetensors; an unusable file is an exception in its place.

    Raises Refusal if it is unclear what the items are.
    """
    npys, sounds = form.video_features, form.audio_features
    if not (form.video or npys or form.features):
        raise Refusal(400, f"no video in the request; {ONE_OF}")
    if sounds and len(sounds) != len(npys):
        raise Refusal(400, f"{len(npys)} `video_features` and {len(sounds)} `audio_features`; send pairs, or no audio")
    media = (intake.features(file, captioner, every_frame) for file in form.video)
    items = [*await asyncio.gather(*media, return_exceptions=True)]
    async with intake.reading:
        for pair in zip_longest(npys, sounds):
            items += await asyncio.gather(_npy_item(*pair), return_exceptions=True)
        for file in form.features:
            try:
                items += safetensors_items(await file.read(), "features")
            except InputError as error:
                items.append(error)
    return items


async def _npy_item(video: UploadFile, audio: UploadFile | None) -> Features:
    sound = {} if audio is None else {"audio": npy_array(await audio.read(), "audio_features")}
    return {**sound, "video": npy_array(await video.read(), "video_features")}


async def one_item(
    form: OneUpload, captioner: Captioner, intake: "MediaIntake", every_frame: bool = False
) -> tuple[Features, str]:
    """The one item of a request, and for a media file the token that replaces it in later requests.

    every_frame: read all frames of a media file, even if the model's encoders take a limited number.
    """
    if sum(map(bool, (form.video, form.video_features, form.features, form.clip))) > 1:
        raise Refusal(400, f"more than one video in the request; {ONE_OF}, or use /captions")
    if form.clip:
        return intake.kept(form.clip, captioner, every_frame), form.clip
    files = {kind: [file] for kind in OneUpload.model_fields if (file := getattr(form, kind))}
    items = await items_of(CaptionsForm.model_validate(files), captioner, intake, every_frame)
    if len(items) != 1:
        raise Refusal(400, f"{len(items)} items in `features`; send one, or use /captions")
    if isinstance(item := items[0], BaseException):
        raise item
    return item, intake.keep(item, captioner, every_frame) if form.video else ""


class MediaIntake:
    """Media files to features: decoded in child processes, one file each, and encoded by the model in service.

    reading: a lock around reading arrays, so that those of only one request at a time are in memory.
    """

    def __init__(self, decoders: Decoders) -> None:
        self.decoders = decoders
        self.encoding = EncodingQueue()
        self.reading = asyncio.Lock()
        self._room = asyncio.Semaphore(decoders.settings.decoders)
        self._kept: OrderedDict[str, tuple[Features, tuple[str, bool]]] = OrderedDict()

    def keep(self, item: Features, captioner: Captioner, every_frame: bool) -> str:
        """Keep the features of a recent clip, made for `captioner`; return an unguessable token."""
        token = secrets.token_urlsafe(16)
        self._kept[token] = item, made_with(captioner, every_frame)
        if len(self._kept) > KEPT_CLIPS:
            self._kept.popitem(last=False)
        return token

    def kept(self, token: str, captioner: Captioner, every_frame: bool) -> Features:
        """Kept features. Raises Refusal 410 if they have expired, or if `captioner` needs others."""
        item, made = self._kept.get(token, (None, None))
        if item is None or made != made_with(captioner, every_frame):
            raise Refusal(410, "this clip is no longer kept; send the file again", kind="gone")
        self._kept.move_to_end(token)
        return item

    async def features(self, file: UploadFile, captioner: Captioner, every_frame: bool) -> Features:
        """One upload → its features. Raises Refusal: 400 if it cannot be read, 429 if no decoder is free."""
        settings = self.decoders.settings
        try:
            async with asyncio.timeout(settings.decode_wait_seconds):
                await self._room.acquire()
        except TimeoutError:
            raise Refusal(429, BUSY, settings.retry_after) from None
        try:
            try:
                prepared = await to_thread.run_sync(self._prepare, file, captioner, every_frame, abandon_on_cancel=True)
                clip = Clip(prepared, captioner)
                await self.encoding.enter(clip)
            finally:
                self._room.release()
            started = time.perf_counter()
            try:
                return await clip.future
            finally:
                observe.timed("encode", time.perf_counter() - started)
        except InputError as error:
            raise Refusal(400, str(error), kind="media") from error

    def _prepare(self, file: UploadFile, captioner: Captioner, every_frame: bool) -> "PreparedVideo":
        """Runs on a thread: creating and deleting the temporary file on a busy disk would block the loop."""
        encoders, suffix = captioner.media_encoders, PurePath(file.filename or "").suffix.lower()
        encoders = encoders.every_frame if every_frame else encoders
        suffix = suffix if suffix in MEDIA_SUFFIXES else ".bin"  # the rest of the client's name is ignored
        with tempfile.NamedTemporaryFile(prefix="vb2-upload-", suffix=suffix) as copy:
            shutil.copyfileobj(file.file, copy)
            copy.flush()
            with self.decoders.decode(Path(copy.name), encoders.settings.fps, encoders.clap.rate) as (frames, sound):
                return encoders.prepare(frames, sound)


def made_with(captioner: Captioner, every_frame: bool) -> tuple[str, bool]:
    """What must be equal to reuse features: the encoders, and whether they left frames out."""
    made = captioner.provenance.features
    limited = made is not None and bool(made.settings.frames or made.settings.max_frames)
    return captioner.encoders_name, limited and every_frame


def npy_array(content: bytes, name: str) -> np.ndarray:
    """The bytes of a .npy file with floating-point numbers [rows, width] → float32. Raises InputError naming `name`."""
    file = io.BytesIO(content)
    remedy = "send what numpy.save wrote"
    with refused(f"{name}: not a complete .npy file", remedy, Exception):  # its header is Python: it fails in many ways
        array = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):
        raise InputError(f"{name}: more than one .npy array; {remedy}")
    return _numbers(array, name)


def safetensors_items(content: bytes, name: str) -> list[Features | InputError]:
    """The bytes of a safetensors file → items; an unusable one is an InputError in its place.

    The tensors of one item are named after their modalities: `video`, `audio`. Those of many are `NAME.video` and
    `NAME.audio`; they come in the order of their names. Raises InputError naming `name` if items are unclear.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    remedy = "send one of float16, float32 or float64 tensors"
    with refused(f"{name}: not a safetensors file", remedy, SafetensorError, KeyError, ValueError, TypeError):
        tensors = load(content)
    for key in tensors:
        if key.rpartition(".")[2] not in MODALITIES:
            raise InputError(f"{name}: tensor {key!r}; {NAMES}")
    if not tensors:
        raise InputError(f"{name}: contains no tensor; {NAMES}")
    stems = sorted({key.rpartition(".")[0] for key in tensors}, key=lambda stem: (len(stem), stem))
    return [_item(tensors, stem, name) for stem in stems]


def _item(tensors: dict[str, np.ndarray], stem: str, name: str) -> Features | InputError:
    prefix = f"{stem}." if stem else ""
    found = {modality: tensors[prefix + modality] for modality in MODALITIES if prefix + modality in tensors}
    for modality, entry in MODALITIES.items():
        if entry.required and modality not in found:
            return InputError(f"{name}: has {prefix}{next(iter(found))} and no {prefix}{modality}; send both")
    try:
        return {modality: _numbers(tensor, f"{name}: {prefix}{modality}") for modality, tensor in found.items()}
    except InputError as error:
        return error


def _numbers(array: np.ndarray, name: str) -> np.ndarray:
    """Floats [rows, width] → float32; those too large become infinite, which the model's check refuses."""
    if array.dtype.kind != "f" or array.ndim != 2:
        raise InputError(f"{name}: contains {array.dtype} {list(array.shape)}; send floats [rows, width]")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)
