"""Decoding in a child process: the same arrays, and what a hostile file, or a hostile child, can do."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from serving import decoder as decoder_module
from serving.decoders import Decoders
from serving.messages import Refusal
from serving.service_settings import Settings
from videoblip2.config import InputError
from videoblip2.features.media import decode_audio, stream_frames, write_video

RATE = 48_000


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two seconds of 8 frames a second, with sound."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (16, 64, 48, 3), dtype=np.uint8)
    write_video(path, frames, 8, np.sin(np.arange(2 * RATE) / 20).astype(np.float32), RATE)
    return path


@pytest.fixture(scope="module")
def decoders():
    pool = Decoders(Settings(decoders=1))
    pool.start()
    yield pool
    pool.stop()


def read(pool, path, fps=4.0):
    with pool.decode(path, fps) as (frames, sound):
        return list(frames), sound()


def process(pool):
    (decoder,) = pool._all
    return decoder.process


def gone(pid, seconds=10):
    """Wait until process `pid` has ended."""
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not psutil.pid_exists(pid)


def test_what_comes_out_is_what_decoding_here_gives(decoders, video, tmp_path):
    frames, sound = read(decoders, video)
    assert np.array_equal(np.stack(frames), list(stream_frames(video, 4.0)))
    assert np.array_equal(sound, decode_audio(video, RATE))
    write_video(tmp_path / "mute.mp4", np.zeros((8, 64, 48, 3), np.uint8), 8, None, RATE)
    frames, sound = read(decoders, tmp_path / "mute.mp4")
    assert len(frames) == 4 and sound is None


def test_a_gif_is_read_like_a_silent_video(decoders, tmp_path):
    pictures = [Image.new("RGB", (48, 64), (40 * shade, 0, 0)) for shade in range(6)]
    pictures[0].save(tmp_path / "v.bin", "gif", save_all=True, append_images=pictures[1:], duration=250, loop=0)
    frames, sound = read(decoders, tmp_path / "v.bin")
    assert [frame.shape for frame in frames] == [(64, 48, 3)] * 6
    assert sound is None and frames[0][0, 0, 0] < frames[-1][0, 0, 0]


def test_a_decoder_is_used_again_after_good_and_bad_files(decoders, video, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    first = process(decoders).pid
    for _ in range(3):
        with pytest.raises(InputError, match="the uploaded file: not a readable video"):
            read(decoders, tmp_path / "text.mp4")
        assert len(read(decoders, video)[0]) == 8
    assert process(decoders).pid == first


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_no_decoder(decoders, video, stop):
    read(decoders, video)
    first = process(decoders)
    first.send_signal(stop)
    assert len(read(decoders, video)[0]) == 8 and process(decoders) is first


def test_a_reason_holds_no_path_of_the_server(decoders, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError) as refused:
        read(decoders, tmp_path / "text.mp4")
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n", "not a readable video"),
        ("ffconcat version 1.0\nfile '{name}'\n", "this container is not accepted here; send mp4, mov"),
        (
            "RIFF\44\0\0\0WAVEfmt \20\0\0\0\1\0\1\0@\37\0\0\0>\0\0\2\0\20\0data\0\0\0\0",
            "this container is not accepted here; send mp4, mov",
        ),
    ],
)
def test_no_other_container_is_opened_and_no_play_list(decoders, video, text, reason):
    sneaky = video.parent / "list.mp4"
    sneaky.write_text(text.format(other=video, name=video.name))
    with pytest.raises(InputError, match=reason):
        read(decoders, sneaky)


def test_length_and_size_are_limited_by_the_header(video):
    pool = Decoders(Settings(decoders=1, max_video_seconds=1.5))
    pool.start()
    with pytest.raises(InputError, match=r"longer than 1\.5 s"):
        read(pool, video)
    pool.stop()
    pool = Decoders(Settings(decoders=1, max_pixels=64 * 48 - 1))
    pool.start()
    with pytest.raises(InputError, match=r"48x64, more than 3071 pixels"):
        read(pool, video)
    pool.stop()


def test_a_decoder_that_takes_too_long_is_killed_and_replaced(video):
    pool = Decoders(Settings(decoders=1, decode_seconds=0.2))
    pool.start()
    slow = process(pool)
    slow.send_signal(19)  # SIGSTOP: it does nothing any more
    with pytest.raises(InputError, match=r"longer than 0\.2 s to decode"):
        read(pool, video)
    assert gone(slow.pid)
    assert process(pool).pid != slow.pid
    pool.stop()


def test_a_decoder_that_dies_over_a_file_or_in_between_is_replaced(video):
    pool = Decoders(Settings(decoders=1))
    pool.start()
    read(pool, video)
    process(pool).kill()
    assert gone_or_zombie(process(pool))
    assert len(read(pool, video)[0]) == 8, "died while idle"
    with pytest.raises(InputError, match="too much memory or time"), pool.decode(video, 4.0) as (frames, _):
        next(frames)
        process(pool).kill()
        list(frames)
    assert len(read(pool, video)[0]) == 8
    pool.stop()


def gone_or_zombie(child):
    child.wait(10)
    return child.returncode is not None


def test_too_little_memory_costs_that_file_alone(tmp_path):
    """How much address space a decoder needs varies by some arenas, so the large file may also fit."""
    small = write_small(tmp_path / "small.mp4")
    write_video(tmp_path / "large.mp4", np.zeros((4, 2400, 3200, 3), np.uint8), 4, None, RATE)
    usual = Decoders(Settings(decoders=1))
    usual.start()
    read(usual, small)
    needed = int(Path(f"/proc/{process(usual).pid}/status").read_text().split("VmPeak:")[1].split()[0]) // 1024
    usual.stop()
    pool = Decoders(Settings(decoders=1, decode_memory_mb=needed + 24))
    pool.start()
    try:
        read(pool, tmp_path / "large.mp4")
    except InputError as error:
        assert "memory" in str(error)
    assert len(read(pool, small)[0]) == 4, "the next file is decoded"
    pool.stop()


@pytest.mark.parametrize(
    ("cause", "word", "goes_on"),
    [
        (av.error.MemoryError(12, "no memory"), "too much memory", False),
        (av.error.BlockingIOError(11, "no thread"), "too much memory", False),
        (av.error.InvalidDataError(1, "bad"), "damaged", True),
        (None, "damaged", True),
    ],
)
def test_want_of_memory_is_told_from_damage_and_ends_the_decoder(monkeypatch, cause, word, goes_on):
    def decode(*given):
        raise InputError("/tmp/x.mp4: damaged") from cause
        yield

    monkeypatch.setattr(decoder_module, "stream_untrusted", decode)
    monkeypatch.setattr(decoder_module.resource, "setrlimit", lambda *limit: None)
    answers = io.BytesIO()
    job = decoder_module.DecodingJob("/tmp/x.mp4", fps=1, max_seconds=1, max_pixels=1, cpu_seconds=1)
    assert decoder_module.answer(job, answers) is goes_on
    reason = json.loads(answers.getvalue())["reason"]
    assert reason.startswith("the uploaded file: ") and word in reason


def test_with_every_decoder_at_work_the_next_is_told_to_come_back(video):
    pool = Decoders(Settings(decoders=1, decode_wait_seconds=0.05))
    pool.start()
    with pool.decode(video, 4.0) as (frames, _):
        next(frames)
        with pytest.raises(Refusal, match="every decoder is busy"):
            read(pool, video)
    assert len(read(pool, video)[0]) == 8, "left in the middle, it is replaced"
    pool.stop()


def test_decoders_that_do_not_start_are_not_waited_for_without_end(video, monkeypatch):
    pool = Decoders(Settings(decoders=1, decode_wait_seconds=0.2))
    monkeypatch.setattr("serving.decoders._Decoder.alive", lambda decoder: False)
    pool.start()
    try:
        with pytest.raises(Refusal, match="every decoder is busy"):
            read(pool, video)
    finally:
        pool.stop()


def test_the_decoder_is_free_as_soon_as_all_is_read(decoders, video):
    with decoders.decode(video, 4.0) as (frames, _):
        list(frames)
        assert not decoders._idle.empty()


def test_a_decoder_sees_no_secret_and_may_not_write(decoders, monkeypatch, tmp_path):
    monkeypatch.setenv("VB2_API_KEY", "secret")
    pool = Decoders(Settings(decoders=1))
    pool.start()
    child = psutil.Process(process(pool).pid)
    assert "VB2_API_KEY" not in child.environ()
    read(pool, write_small(tmp_path / "v.mp4"))
    limits = Path(f"/proc/{child.pid}/limits").read_text()
    rows = {line[:26].strip(): line[26:].split()[:1] for line in limits.splitlines()[1:]}
    assert rows["Max file size"] == ["0"] and rows["Max core file size"] == ["0"]
    assert rows["Max address space"] == [str(2048 * 2**20)]
    assert rows["Max cpu time"] != ["unlimited"]
    pool.stop()


def write_small(path):
    write_video(path, np.zeros((4, 64, 48, 3), np.uint8), 4, None, RATE)
    return path


@pytest.mark.parametrize(
    "said",
    [
        {"kind": "array", "dtype": "uint8", "shape": [10**9, 10**9, 3]},
        {"kind": "array", "dtype": "uint8", "shape": [-1, 4, 3]},
        {"kind": "array", "dtype": "object", "shape": [4, 4, 4]},
        {"kind": "array", "dtype": "float32", "shape": [10**12]},
        {"kind": "array"},
        ["kind"],
        {},
        b"\x80\x04not json",
        None,
    ],
)
def test_a_decoder_in_an_enemys_hands_cannot_hurt_the_server(monkeypatch, video, said):
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    reply = b"1" * 20_000 if said is None else text + b"\n"
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **options: Scripted(reply))
    pool = Decoders(Settings(decoders=1))
    pool.start()
    enemy = process(pool)
    with pytest.raises(InputError, match="the uploaded file"):
        read(pool, video)
    assert enemy.killed and process(pool) is not enemy


class Answers(io.BytesIO):
    """It minds how much is asked for at once: this much memory would be taken for it."""

    def readline(self, size=-1):
        assert 0 <= size <= 10_000
        return super().readline(size)


class Scripted:
    """In the place of a process: it says `reply`, whatever it is asked."""

    def __init__(self, reply):
        self.stdin, self.stdout, self.killed = io.BytesIO(), Answers(reply), False

    def poll(self):
        return 1 if self.killed else None

    def kill(self):
        self.killed = True

    def wait(self):
        return 1


def test_stop_ends_every_process(video):
    pool = Decoders(Settings(decoders=2))
    pool.start()
    children = [decoder.process for decoder in pool._all]
    pool.stop()
    assert all(child.returncode is not None for child in children)


def test_a_decoder_loads_no_torch():
    """It would take most of the memory that a decoder may have, and seconds at each start."""
    code = (
        "import sys, contextlib, serving.decoder as decoder\n"
        "with contextlib.suppress(decoder.InputError): next(decoder.stream_untrusted('', 1, 1, 1, 1))\n"
        "print('av' in sys.modules, sorted({'torch', 'transformers', 'bentoml', 'mlflow'} & set(sys.modules)))"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.stdout.strip() == "True []", done.stderr
