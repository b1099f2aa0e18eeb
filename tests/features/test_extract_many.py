"""Extraction of many videos: parallel shards, films, a full disk, odd files, frame policies, Ray."""

import errno
import importlib.util
import json
import platform
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import av
import numpy as np
import pytest
import torch

from videoblip2.config import InputError
from videoblip2.features import engines
from videoblip2.features.encoders import load_clip
from videoblip2.features.extract import (
    ExtractionRun,
    extract_features,
)
from videoblip2.features.manifest import FeatureManifest, VideoNote
from videoblip2.features.media import decode_audio, write_video
from videoblip2.features.media_features import Encoders, FeatureSettings, load_encoders
from videoblip2.features.sources import find_videos, ignored_entries, in_shard, parse_shard
from videoblip2.features.store import FeatureStore, check_features, refuse_unnoted
from videoblip2.features.towers import FrameEncoder, SoundEncoder
from videoblip2.imports import threads_of_torch
from videoblip2.jobs.ray import Actor, Wrapped, extraction, require_ray
from videoblip2.toy.networks import TOY_SETTINGS

RATE = 16_000


def encoded(clip, frames):
    return clip.encode_pixels([clip.pixels(frame) for frame in frames])


def with_settings(encoders, **changed):
    return replace(encoders, settings=encoders.settings.model_copy(update=changed))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six videos of one second, three of them with sound."""
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for number in range(6):
        frames = rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
        sound = rng.normal(0, 0.1, RATE).astype(np.float32) if number % 2 else None
        write_video(folder / f"v{number}.mp4", frames, 4, sound, RATE)
    return folder


def arrays(folder):
    store = FeatureStore(folder)
    return {name: tuple(store.features(name).values()) for name in store.ids}


def test_shards_split_by_id_and_make_one_store(encoders, videos, tmp_path):
    paths = find_videos([videos])
    parts = [{p.stem for p in paths if in_shard(p.stem, (part, 2))} for part in (1, 2)]
    assert parts[0] and parts[1] and not parts[0] & parts[1]
    for part in (1, 2):
        report = extract_features(paths, tmp_path / "out", encoders, ExtractionRun(shard=(part, 2)))
        assert set(report.done) == parts[part - 1]
    store = FeatureStore(tmp_path / "out")
    assert set(store.manifest.videos) == set(store.ids) == {f"v{i}" for i in range(6)}
    again = extract_features(paths, tmp_path / "out", encoders)
    assert not again.done and len(again.skipped) == 6, "a run without shards knows what shards did"
    anew = extract_features(paths[:1], tmp_path / "out", encoders, ExtractionRun(resume=False))
    assert anew.done == ["v0"]


def test_two_runs_of_one_shard_are_refused_and_two_shards_are_not(encoders, videos, tmp_path):
    def meanwhile(files, known):
        with pytest.raises(InputError, match="another extraction is writing"):
            extract_features([], tmp_path, encoders, ExtractionRun(shard=(1, 2)))
        extract_features(find_videos([videos]), tmp_path, encoders, ExtractionRun(shard=(2, 2)))
        yield from engines.encode_all(files, known, tmp_path, encoders, 1)

    extract_features(find_videos([videos]), tmp_path, encoders, ExtractionRun(shard=(1, 2)), engine=meanwhile)
    assert len(FeatureManifest.read(tmp_path).videos) == 6


def test_a_store_of_two_encoders_is_refused_by_its_readers(encoders, videos, tmp_path):
    extract_features([videos / "v0.mp4"], tmp_path, encoders)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["clip"]["fingerprint"] = "of another"
    (tmp_path / "manifest.1-of-2.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError,
        match=r"manifest\.json and manifest\.1-of-2\.json differ, with a clip of fingerprint \w+, not of another",
    ):
        FeatureStore(tmp_path).manifest  # noqa: B018
    (tmp_path / "manifest.1-of-2.json").unlink()
    store = FeatureStore(tmp_path)
    refuse_unnoted(store, ["v0"])
    with pytest.raises(InputError, match="lacks v1"):
        refuse_unnoted(store, ["v0", "v1"])


def test_a_full_disk_is_named_and_keeps_what_is_stored(encoders, videos, tmp_path, monkeypatch):
    one = with_settings(encoders, batch_frames=1)
    whole, write = [], engines.write_features

    def full(out, video_id, features):
        if len(whole) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole.append(video_id)
        write(out, video_id, features)

    monkeypatch.setattr(engines, "write_features", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\).*what is stored is kept"):
        extract_features(find_videos([videos]), tmp_path, one, ExtractionRun(workers=1))
    assert sorted(FeatureManifest.read(tmp_path).videos) == sorted(whole)
    monkeypatch.undo()
    report = extract_features(find_videos([videos]), tmp_path, one)
    assert sorted(report.skipped) == sorted(whole) and len(report.done) == 4


def test_a_film_of_three_hours_is_never_in_memory(encoders, tmp_path, monkeypatch):
    made = encoded = most = 0
    encode = FrameEncoder.encode_pixels

    def counted(clip, pixels, batch):
        nonlocal encoded
        encoded += len(pixels)
        return encode(clip, pixels, batch)

    def frames(path, fps, threads, caveats, **how):
        nonlocal made, most
        for second in range(0, 3 * 3600, 40):
            made += 1
            most = max(most, made - encoded)
            yield np.full((64, 64, 3), second % 256, np.uint8)

    monkeypatch.setattr(FrameEncoder, "encode_pixels", counted)
    monkeypatch.setattr(engines, "stream_frames", frames)
    monkeypatch.setattr(
        engines, "stream_audio", lambda path, rate, caveats, span: (np.zeros(48_000, np.float32) for _ in range(20))
    )
    (tmp_path / "film.mp4").write_bytes(b"film")
    settings = FeatureSettings(fps=1 / 40, window_seconds=1.0)
    report = extract_features(
        [tmp_path / "film.mp4"], tmp_path / "out", replace(encoders, settings=settings), ExtractionRun(workers=1)
    )
    note = FeatureStore(tmp_path / "out").manifest.videos["film"]
    assert report.done == ["film"] and (note.frames, note.audio_windows, note.audio) == (270, 20, "silent")
    assert most <= 64, "a batch"


def test_closing_the_pipeline_ends_decoding_within_a_film(encoders, videos, tmp_path, monkeypatch):
    made, decode = [], engines.stream_frames

    def frames(path, fps, threads, caveats, **how):
        if path.stem == "v0":
            yield from decode(path, fps, threads)
            return
        for _ in range(5_000):
            made.append(path)
            yield np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr(engines, "stream_frames", frames)
    outcomes = engines.encode_all([(name, videos / f"{name}.mp4") for name in ("v0", "v2")], {}, tmp_path, encoders, 1)
    assert next(outcomes).video_id == "v0"
    outcomes.close()
    assert len(made) < 1_000


def test_rows_keep_their_order_where_a_later_batch_is_encoded_first(encoders, monkeypatch):
    began, later = threading.Event(), threading.Event()

    def encode(clip, pixels, batch):
        if 0 in pixels:
            began.set()
            assert later.wait(30), "only one batch is encoded at a time"
        else:
            later.set()
        return np.array(pixels, np.float32)[:, None].repeat(768, axis=1)

    monkeypatch.setattr(FrameEncoder, "encode_pixels", encode)
    batches = engines.RowBatches(with_settings(encoders, batch_frames=4), 2)
    frames = [engines.Piece("v", "video", number) for number in range(4)]
    assert not batches.add(frames[0])
    first = threading.Thread(target=batches.add, args=frames[1:2])
    first.start()
    assert began.wait(30)
    assert not batches.add(frames[2]) and not batches.add(frames[3])
    first.join()
    (ended,) = batches.add(engines.VideoOutcome("v", VideoNote(audio="absent", source="v.mp4", sha256="0")))
    assert ended.features["video"][:, 0].tolist() == [0, 1, 2, 3] and ended.note.frames == 4


@pytest.mark.parametrize(("threads", "windows"), [(1, 16), (2, 16), (4, 8)])
def test_few_threads_encode_as_many_windows_at_a_time_as_pay(encoders, monkeypatch, threads, windows):
    sizes = []
    monkeypatch.setattr(
        SoundEncoder, "encode_windows", lambda clap, found: sizes.append(len(found)) or np.zeros((len(found), 512))
    )
    batches = engines.RowBatches(with_settings(encoders, batch_frames=64), threads)
    for number in range(16):
        batches.add(engines.Piece("v", "audio", number))
    assert sizes == [windows] * (16 // windows)


def test_threads_are_shared_until_the_last_captions_are_made(encoders, videos):
    with threads_of_torch(4):
        ended = engines.encode_videos({"v0": videos / "v0.mp4"}, lambda *_: False, encoders, 2)
        seen = [(outcomes, torch.get_num_threads()) for outcomes in ended]
        assert seen[-1] == ([], 2) and torch.get_num_threads() == 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_a_batch_is_kept_for_the_next(encoders):
    def batches(count):
        for _ in range(count):
            _ = [np.ones(400_000) for _ in range(12)]
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

    assert not [*chain(*engines.encode_videos({}, lambda *_: False, encoders, 1))]
    with ThreadPoolExecutor(1) as thread:  # whose memory is apart from the main thread's
        before, after = (thread.submit(batches, count).result() for count in (2, 10))
    assert after - before < 5000, "pages that the system had to give, of 94,000 in use"


def test_a_file_that_breaks_off_leaves_nothing_and_any_error_is_recorded(encoders, videos, tmp_path, monkeypatch):
    decode = engines.stream_frames

    def broken(path, fps, threads, caveats, **how):
        yield from decode(path, fps, threads)
        if path.stem == "v1":
            raise InputError(f"{path}: truncated")
        if path.stem == "v2":
            raise MemoryError("too large")

    monkeypatch.setattr(engines, "stream_frames", broken)
    report = extract_features(find_videos([videos]), tmp_path, encoders)
    assert report.done == ["v0", "v3", "v4", "v5"] and list(report.failed) == ["v1", "v2"]
    assert "MemoryError: too large" in report.failed["v2"] and FeatureStore(tmp_path).ids == report.done


def test_a_wrong_suffix_is_seen_through(encoders, videos, tmp_path):
    content = (videos / "v1.mp4").read_bytes()
    (tmp_path / "a.avi").write_bytes(content)
    (tmp_path / "b.dat").write_bytes(content)
    (tmp_path / "notes.txt").write_text("no video")
    found = find_videos([tmp_path])
    assert [path.name for path in found] == ["a.avi", "b.dat"]
    expected = encoders.encode_file(videos / "v1.mp4").values()
    for path in found:
        for one, other in zip(encoders.encode_file(path).values(), expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("codec", ["pcm_s16le", "aac"])
def test_an_audio_stream_without_a_sample_is_told_from_none(encoders, tmp_path, codec):
    path = tmp_path / "empty.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=4)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        container.add_stream(codec, rate=RATE, layout="mono")
        for level in range(0, 240, 20):
            picture = np.full((64, 64, 3), level, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.audio) == 1
    assert decode_audio(path).shape == (0,)
    extract_features([path], tmp_path / "out", encoders)
    assert FeatureStore(tmp_path / "out").manifest.videos["empty"].audio == "empty"
    report = check_features(tmp_path / "out")
    assert report.ok and report.empty == ["empty"] and not report.absent and not report.silent


def test_what_a_folder_holds_besides_is_named(videos, tmp_path):
    for name in ("notes.txt", "still.jpg", "._hidden.mp4", "clip.wmv", "tape.dv"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "tape").write_bytes(bytes.fromhex("060e2b34"))
    (tmp_path / "raw").write_bytes(bytes.fromhex("000001b3"))
    (tmp_path / "more.mp4").mkdir()
    assert [path.name for path in find_videos([tmp_path])] == ["clip.wmv", "raw", "tape", "tape.dv"]
    found = ignored_entries([tmp_path, videos / "v1.mp4"])
    assert [path.name for path in found] == ["more.mp4", "notes.txt", "still.jpg"]


def test_a_fixed_count_of_frames(encoders, videos):
    for count in (1, 3, 7):
        settings = FeatureSettings(fps=4, frames=count)
        assert replace(encoders, settings=settings).encode_file(videos / "v0.mp4")["video"].shape == (count, 768)


def test_frames_that_a_model_would_thin_out_are_not_encoded(encoders, videos, tmp_path):
    from videoblip2.data.batches import thin

    settings = encoders.settings.model_copy(update={"fps": 8.0})
    for limit in ({}, {"max_frames": 9}, {"frames": 9}):
        every = replace(encoders, settings=settings.model_copy(update=limit))
        (whole,), (few,) = (
            [*chain(*engines.encode_videos({"v0": videos / "v0.mp4"}, lambda *_: False, made, 1))]
            for made in (every, every.for_model(5))
        )
        assert len(whole.features["video"]) == whole.note.frames == few.note.frames > 6
        np.testing.assert_allclose(thin(few.features["video"], 5), thin(whole.features["video"], 5), atol=1e-5)
        assert len(few.features["video"]) == (9 if "frames" in limit else 5)
        np.testing.assert_allclose(few.features["audio"], whole.features["audio"], atol=1e-5)


def test_hidden_and_patch_features_are_transformers_own(encoders, tmp_path):
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    assert (encoders.clip.width, load_clip(encoders.clip.identity.name, output="hidden").width) == (768, 256)
    config = CLIPVisionConfig(
        hidden_size=768, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32,
        patch_size=16, projection_dim=512,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3)).astype(np.uint8)
    pooled = load_clip(tmp_path, output="hidden")
    inputs = torch.from_numpy(np.stack([pooled.pixels(frame)["pixel_values"] for frame in frames]))
    with torch.no_grad():
        seen = model.vision_model(inputs)
    np.testing.assert_allclose(encoded(pooled, frames), seen.pooler_output, atol=1e-5)
    patches = load_clip(tmp_path, output="hidden", tokens="patch")
    assert patches.rows == 4
    np.testing.assert_allclose(encoded(patches, frames), seen.last_hidden_state[:, 1:].reshape(12, 768), atol=1e-5)


def test_patch_tokens_of_a_whole_store(encoders, videos, tmp_path):
    clip = load_clip(encoders.clip.identity.name, tokens="patch")
    with pytest.raises(InputError, match="was loaded for output=projected, tokens=pooled"):
        with_settings(encoders, tokens="patch")
    patches = Encoders(clip, encoders.clap, TOY_SETTINGS.model_copy(update={"tokens": "patch"}))
    extract_features([videos / "v0.mp4"], tmp_path, patches)
    store = FeatureStore(tmp_path)
    assert store.manifest.videos["v0"].frames == 4 and store.array("video", "v0").shape == (4 * 16, 768)
    assert store.origin.settings.tokens == "patch"


def test_bfloat16_is_near_and_not_mixed_in(encoders, videos, tmp_path):
    half = load_encoders(encoders.origin, "cpu", "a test", dtype="bfloat16")
    assert half.origin == encoders.origin and half.dtype == "bfloat16"
    extract_features([videos / "v1.mp4"], tmp_path, half)
    expected = encoders.encode_file(videos / "v1.mp4")
    for name, array in FeatureStore(tmp_path).features("v1").items():
        assert array.dtype == np.float32 and np.corrcoef(array.ravel(), expected[name].ravel())[0, 1] > 0.99
    with pytest.raises(InputError, match="made with dtype bfloat16, not float32"):
        extract_features([videos / "v1.mp4"], tmp_path, encoders)
    with pytest.raises(InputError, match="dtype=int8"):
        load_clip(encoders.clip.identity.name, dtype="int8")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/2", "1/2/3", "-1/2"])
def test_a_wrong_shard_is_named(text):
    with pytest.raises(InputError, match=f"--shard {text}"):
        parse_shard(text)
    assert parse_shard("2/4") == (2, 4) and parse_shard(None) is None


def test_without_ray_the_engine_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"Ray is not installed.*videoblip2\[ray\]"):
        require_ray()


def test_ray_s_actor_makes_the_same_store(encoders, videos, tmp_path):
    """The actor's own code, in this process; starting Ray itself takes longer than this whole file."""
    paths, work = find_videos([videos]), extraction(encoders, tmp_path / "ray", "cpu", 1, {})
    outcomes = Actor(work)({"item": [Wrapped((path.stem, path)) for path in paths]})["result"]
    extract_features(paths, tmp_path / "local", encoders)
    here, there = arrays(tmp_path / "local"), arrays(tmp_path / "ray")
    for name, pair in here.items():
        for one, other in zip(pair, there[name], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    notes = {end.content.video_id: end.content.note for end in outcomes}
    local = FeatureStore(tmp_path / "local").manifest.videos
    assert notes == {video_id: note.model_copy(update={"at": 0}) for video_id, note in local.items()}
    other = replace(
        encoders, clap=replace(encoders.clap, identity=encoders.clap.identity.model_copy(update={"fingerprint": "b"}))
    )
    with pytest.raises(InputError, match=r"clap: is CLAP \w+, but .*ray needs features of b"):
        Actor(extraction(other, tmp_path / "ray", "cpu", 1, {}))


def test_a_shard_in_which_every_file_fails_exits_1(encoders, tmp_path):
    from typer.testing import CliRunner

    from videoblip2.cli import features

    bad = tmp_path / "videos"
    bad.mkdir()
    for number in range(4):
        (bad / f"v{number}.mp4").write_bytes(b"no video")
    assert 0 < sum(in_shard(f"v{number}", (1, 2)) for number in range(4)) < 4
    models = ["--clip", encoders.clip.identity.name, "--clap", encoders.clap.identity.name, "--shard", "1/2"]
    words = ["extract", str(bad), "--out", str(tmp_path / "out"), *models]
    assert CliRunner().invoke(features.app, words).exit_code == 1
