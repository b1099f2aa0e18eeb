"""Decode uploads in bounded child processes: a crafted, endless or huge file costs only that process.

A process that exceeds its time or memory, or dies, is replaced, and its request is refused with the reason.
"""

import fcntl
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import cast

import numpy as np

from videoblip2.config import InputError

from . import observe
from .decoder import UNREADABLE, DecodingJob
from .messages import Refusal
from .service_settings import MB, Settings

LINE_BYTES = 10_000  # longest line that a decoder sends
JOBS_EACH = 500  # then a decoder is replaced: FFmpeg may leak memory
PIPE_BYTES = 1 << 20  # the most Linux grants by default; with 64 kB both ends keep waiting for each other
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")  # the rest may hold keys and passwords
BUSY = "every decoder is busy; try again later"
Sound = Callable[[], np.ndarray | None]


class Decoders:
    """The pool; `start` it once, call `decode` from any thread, `stop` it at the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._all = [_Decoder(settings) for _ in range(settings.decoders)]
        self._idle: queue.Queue[_Decoder] = queue.Queue()
        self._stopped = False

    def start(self) -> None:
        """Start every decoder; each is ready in about a second, and files may be queued before that."""
        for decoder in self._all:
            decoder.start()
            self._idle.put(decoder)

    def stop(self) -> None:
        """End every decoder."""
        self._stopped = True
        for decoder in self._all:
            decoder.kill()

    @contextmanager
    def decode(
        self, path: Path, fps: float, rate: int = DecodingJob.rate
    ) -> Iterator[tuple[Iterator[np.ndarray], Sound]]:
        """Decode `path` at `fps` frames per second, within the block.

        Yields frames, uint8 [H, W, 3] one at a time, and a function for the sound after them: mono float32 [N] at
        `rate` Hz, or None for a video without audio. Reading frames raises Refusal 429 if no decoder is free in time,
        and InputError with a message for the client if the file is refused.
        """
        sound: np.ndarray | None = None

        def read() -> Generator[np.ndarray, None, None]:
            nonlocal sound
            decoder = self._take()
            timer = threading.Timer(self.settings.decode_seconds, decoder.expire)
            timer.daemon = True
            timer.start()
            waited, start, ended = 0.0, time.perf_counter(), False
            try:
                for array in decoder.work(path, fps, rate):
                    waited += time.perf_counter() - start
                    if ended:
                        raise InputError(UNREADABLE)
                    if array is None or array.ndim == 1:
                        sound, ended = array, True
                    else:
                        yield array
                    start = time.perf_counter()
            finally:
                observe.timed("decode", waited)
                timer.cancel()
                self._give_back(decoder)

        with closing(read()) as frames:
            yield frames, lambda: sound

    def _take(self) -> "_Decoder":
        deadline = time.monotonic() + self.settings.decode_wait_seconds
        with suppress(queue.Empty):
            while (left := deadline - time.monotonic()) > 0:
                decoder = self._idle.get(timeout=left)
                if decoder.alive():
                    return decoder
                self._give_back(decoder)  # it died while idle, perhaps of the out-of-memory killer
        raise Refusal(429, BUSY, self.settings.retry_after)

    def _give_back(self, decoder: "_Decoder") -> None:
        if not decoder.healthy():
            decoder.kill()
            if self._stopped:
                return
            decoder.start()
        self._idle.put(decoder)


class _Decoder:
    """One process at a time, and the state of its conversation."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def start(self) -> None:
        """Start a process; an earlier one has been killed."""
        self.jobs, self.expired, self.between_jobs = 0, False, True
        # Only what decoding needs, and this process's module path: PYTHONPATH lacks a Bento's folder.
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
            "VB2_DECODER_MEMORY": str(self.settings.decode_memory_mb * MB),
        }
        self.process = process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=tempfile.gettempdir(),
        )
        self._stdin, self._stdout = cast(BufferedWriter, process.stdin), cast(BufferedReader, process.stdout)
        with suppress(OSError, AttributeError):  # the user's limit is reached, or not Linux: keep the default
            fcntl.fcntl(self._stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def alive(self) -> bool:
        return self.process.poll() is None

    def healthy(self) -> bool:
        return self.alive() and self.between_jobs and not self.expired and self.jobs < JOBS_EACH

    def work(self, path: Path, fps: float, rate: int) -> Iterator[np.ndarray | None]:
        """Arrays of one file as they come. Raises InputError if the file is refused, or kills the process."""
        self.jobs += 1
        self.between_jobs = False
        settings = self.settings
        cpu_seconds = settings.decode_seconds * (os.cpu_count() or 1)
        job = DecodingJob(str(path), fps, settings.max_video_seconds, settings.max_pixels, cpu_seconds, rate)
        try:
            self._stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            self._stdin.flush()
            while (header := json.loads(self._stdout.readline(LINE_BYTES)))["kind"] == "array":
                yield self._array(header["shape"])
        except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
            self.kill()  # its output can no longer be trusted
            why = "took too much memory or time, or is damaged; check that it plays, and send it as mp4 (H.264, AAC)"
            if self.expired:
                why = f"takes longer than {settings.decode_seconds:g} s to decode; send a shorter or smaller one"
            raise InputError(f"the uploaded file: {why}") from error
        self.between_jobs = not header.get("ends")  # out of memory, it ends: its heap may be corrupt
        if header["kind"] != "end":
            raise InputError(str(header.get("reason", UNREADABLE)))

    def expire(self) -> None:
        self.expired = True
        self.process.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self._stdin, self._stdout):
            with suppress(OSError):  # unflushed bytes for a broken pipe
                pipe.close()

    def _array(self, shape: Sequence[int] | None) -> np.ndarray | None:
        """Check the announced shape against the limits, then read that many bytes: the decoder may be compromised."""
        if shape is None:
            return None
        sound = len(shape) == 1
        count = math.prod(int(side) for side in shape)
        most = (self.settings.max_video_seconds + 2) * DecodingJob.rate if sound else 3 * self.settings.max_pixels
        if min(shape) < 0 or count > most or not (sound or (len(shape) == 3 and shape[2] == 3)):
            raise ValueError(f"array of shape {shape}")
        array = np.empty(shape, np.float32 if sound else np.uint8)
        if count and self._stdout.readinto(array.data.cast("B")) < array.nbytes:
            raise EOFError
        return array
