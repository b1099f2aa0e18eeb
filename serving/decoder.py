"""The process that opens untrusted media files: JSON jobs in, lines of JSON and the bytes of arrays out.

Nothing is pickled: an attacker who takes it over with a crafted file can only send numbers to the server.
"""

import contextlib
import errno
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from videoblip2.config import InputError
from videoblip2.features.media import SAMPLING_RATE, stream_untrusted

UNREADABLE = "the uploaded file: cannot be decoded; check that it plays, and send it as mp4 (H.264, AAC)"
OTHER_CONTAINER = (
    "the uploaded file: this container is not accepted here; "
    "send mp4, mov, mkv, webm, avi, mpeg, ts, flv, wmv, ogg or gif"
)
TOO_LARGE = "the uploaded file: takes too much memory to decode, or is damaged; scale it down, or check that it plays"
HEADROOM = 64 << 20  # bytes; no single allocation of FFmpeg is larger


@dataclass(frozen=True)
class DecodingJob:
    """One file to decode, and the limits for it."""

    path: str
    fps: float
    max_seconds: float
    max_pixels: int
    cpu_seconds: float
    rate: int = SAMPLING_RATE


def main() -> None:
    """Answer jobs until standard input closes; a memory error ends the process, since its heap may be corrupt."""
    for stop in (signal.SIGTERM, signal.SIGINT):  # sent to the whole group; the server first answers its requests
        signal.signal(stop, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print to standard error, not among the answers
    confine(int(os.environ["VB2_DECODER_MEMORY"]))
    with contextlib.suppress(InputError):  # opening a missing file loads FFmpeg before the first job
        next(stream_untrusted("", 1, SAMPLING_RATE, 1, 1))
    for line in sys.stdin.buffer:
        if not answer(DecodingJob(**json.loads(line)), answers):
            return


def answer(job: DecodingJob, answers: BinaryIO) -> bool:
    """Decode one file and send its arrays and `end`, or why it failed; False if this process should end."""
    limit = math.ceil(time.process_time() + job.cpu_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))  # then the kernel ends this process
    try:
        for array in stream_untrusted(job.path, job.fps, job.rate, job.max_seconds, job.max_pixels):
            if array is None:  # no audio
                _send(answers, {"kind": "array", "shape": None})
            else:
                _send(answers, {"kind": "array", "shape": array.shape}, np.ascontiguousarray(array).data.cast("B"))
        _send(answers, {"kind": "end"})
    except BrokenPipeError:
        return False
    except Exception as error:  # a crafted file can raise anything: refuse it and read the next one
        # The cause may be FFmpeg's failure to get memory for a frame or (EAGAIN) for a thread's stack.
        wants_memory = isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError | BlockingIOError)
        short = wants_memory or near_memory_limit()
        reason = str(error).replace(job.path, "the uploaded file") if isinstance(error, InputError) else UNREADABLE
        if getattr(error.__cause__, "errno", 0) == errno.EINVAL:  # FFmpeg's for a format outside the whitelist
            reason = OTHER_CONTAINER
        _send(answers, {"kind": "refused", "reason": TOO_LARGE if short else reason, "ends": short})
        return not short
    return True


def confine(memory: int) -> None:
    """Limit this process: `memory` bytes of address space, no core files, and no byte written to any file."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def near_memory_limit() -> bool:
    """Whether memory is so near its limit that any error may be due to that, whatever FFmpeg reports."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, StopIteration):  # /proc is Linux
        with open("/proc/self/status", encoding="ascii") as status:
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmPeak:")) * 1024
        return limit != resource.RLIM_INFINITY and peak > limit - HEADROOM
    return False


def _send(answers: BinaryIO, header: Mapping[str, object], data: memoryview | bytes = b"") -> None:
    answers.write(json.dumps(header).encode() + b"\n")
    answers.write(data)
    answers.flush()


if __name__ == "__main__":
    main()
