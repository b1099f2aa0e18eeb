"""Extraction of very many videos: shards side by side, films, a full disk, odd files, frame policies, Ray."""

import errno
import importlib.util
import json

import av
import numpy as np
import pytest

from videoblip2.config import InputError
from videoblip2.features import pipeline
from videoblip2.features.check import check_features
from videoblip2.features.encoders import ClipEncoder, load_clap, load_clip
from videoblip2.features.extract import encode_video, extract_features, find_videos, parse_shard, passed_over, shard_of
from videoblip2.features.manifest import read_manifest, refuse_other_encoders, refuse_unnoted
from videoblip2.features.media import decode_audio, write_video
from videoblip2.features.ray_engine import RayEngine, require_ray
from videoblip2.features.settings import FeatureSettings, feature_settings
from videoblip2.features.store import FeatureStore
from videoblip2.provenance import FeatureOrigin
from videoblip2.toy.encoders import TOY_SETTINGS, build_toy_clap, build_toy_clip

RATE = 16_000


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return load_clip(build_toy_clip(root / "clip", 0)), load_clap(build_toy_clap(root / "clap", 0))


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
    parts = [{p.stem for p in paths if shard_of(p.stem, 2) == part} for part in (1, 2)]
    assert parts[0] and parts[1] and not parts[0] & parts[1]
    for part in (1, 2):
        report = extract_features(paths, tmp_path / "out", *encoders, TOY_SETTINGS, shard=(part, 2))
        assert set(report.done) == parts[part - 1]
    store = FeatureStore(tmp_path / "out")
    assert set(store.manifest["videos"]) == set(store.ids) == {f"v{i}" for i in range(6)}
    again = extract_features(paths, tmp_path / "out", *encoders, TOY_SETTINGS)
    assert not again.done and len(again.skipped) == 6, "a run without shards knows what shards did"
    anew = extract_features(paths[:1], tmp_path / "out", *encoders, TOY_SETTINGS, resume=False)
    assert anew.done == ["v0"]


def test_two_runs_of_one_shard_are_refused_and_two_shards_are_not(encoders, videos, tmp_path):
    def meanwhile(paths, known):
        with pytest.raises(InputError, match="another extraction is writing"):
            extract_features([], tmp_path, *encoders, TOY_SETTINGS, shard=(1, 2))
        extract_features(find_videos([videos]), tmp_path, *encoders, TOY_SETTINGS, shard=(2, 2))
        yield from pipeline.encode_all(paths, known, tmp_path, *encoders, TOY_SETTINGS, 1)

    extract_features(find_videos([videos]), tmp_path, *encoders, TOY_SETTINGS, shard=(1, 2), engine=meanwhile)
    assert len(read_manifest(tmp_path)["videos"]) == 6


def test_a_store_of_two_encoders_is_refused_by_its_readers(encoders, videos, tmp_path):
    extract_features([videos / "v0.mp4"], tmp_path, *encoders, TOY_SETTINGS)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["clip"]["fingerprint"] = "of another"
    (tmp_path / "manifest.1-of-2.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"two kinds, a clip of fingerprint .* and of another in manifest\.1-of-2"):
        FeatureStore(tmp_path).manifest  # noqa: B018
    (tmp_path / "manifest.1-of-2.json").unlink()
    manifest = FeatureStore(tmp_path).manifest
    refuse_unnoted(tmp_path, manifest, ["v0"])
    with pytest.raises(InputError, match="does not note v1"):
        refuse_unnoted(tmp_path, manifest, ["v0", "v1"])


def test_a_full_disk_is_named_and_keeps_what_is_stored(encoders, videos, tmp_path, monkeypatch):
    one = TOY_SETTINGS.model_copy(update={"batch_frames": 1})
    whole, write = [], pipeline.write_features

    def full(out, video_id, features):
        if len(whole) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole.append(video_id)
        write(out, video_id, features)

    monkeypatch.setattr(pipeline, "write_features", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\).*what is stored is kept"):
        extract_features(find_videos([videos]), tmp_path, *encoders, one, workers=1)
    assert sorted(read_manifest(tmp_path)["videos"]) == sorted(whole)
    monkeypatch.undo()
    report = extract_features(find_videos([videos]), tmp_path, *encoders, one)
    assert sorted(report.skipped) == sorted(whole) and len(report.done) == 4


def test_a_film_of_three_hours_is_never_in_memory(encoders, tmp_path, monkeypatch):
    made = encoded = most = 0
    encode = ClipEncoder.encode_pixels

    def counted(clip, pixels, batch):
        nonlocal encoded
        encoded += len(pixels)
        return encode(clip, pixels, batch)

    def frames(path, fps, threads):
        nonlocal made, most
        for second in range(0, 3 * 3600, 20):
            made += 1
            most = max(most, made - encoded)
            yield np.full((64, 64, 3), second % 256, np.uint8)

    monkeypatch.setattr(ClipEncoder, "encode_pixels", counted)
    monkeypatch.setattr(pipeline, "stream_frames", frames)
    monkeypatch.setattr(pipeline, "stream_audio", lambda path, rate: (np.zeros(48_000, np.float32) for _ in range(20)))
    (tmp_path / "film.mp4").write_bytes(b"film")
    settings = FeatureSettings(fps=1 / 20, window_seconds=1.0)
    report = extract_features([tmp_path / "film.mp4"], tmp_path / "out", *encoders, settings, workers=1)
    note = FeatureStore(tmp_path / "out").manifest["videos"]["film"]
    assert report.done == ["film"] and (note["frames"], note["audio_windows"], note["audio"]) == (540, 20, "silent")
    assert most <= 64 + 6 * pipeline.PIECE["video"], "a batch, the queue, and what is in the two threads' hands"


def test_a_file_that_breaks_off_leaves_nothing_and_any_error_is_recorded(encoders, videos, tmp_path, monkeypatch):
    decode = pipeline.stream_frames

    def broken(path, fps, threads):
        yield from decode(path, fps, threads=threads)
        if path.stem == "v1":
            raise InputError(f"{path}: truncated")
        if path.stem == "v2":
            raise MemoryError("too large")

    monkeypatch.setattr(pipeline, "stream_frames", broken)
    report = extract_features(find_videos([videos]), tmp_path, *encoders, TOY_SETTINGS)
    assert report.done == ["v0", "v3", "v4", "v5"] and list(report.failed) == ["v1", "v2"]
    assert "MemoryError: too large" in report.failed["v2"] and FeatureStore(tmp_path).ids == report.done


def test_a_wrong_suffix_is_seen_through(encoders, videos, tmp_path):
    content = (videos / "v1.mp4").read_bytes()
    (tmp_path / "a.avi").write_bytes(content)
    (tmp_path / "b.dat").write_bytes(content)
    (tmp_path / "notes.txt").write_text("no video")
    found = find_videos([tmp_path])
    assert [path.name for path in found] == ["a.avi", "b.dat"]
    expected = encode_video(videos / "v1.mp4", *encoders, TOY_SETTINGS).values()
    for path in found:
        for one, other in zip(encode_video(path, *encoders, TOY_SETTINGS).values(), expected, strict=True):
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
    extract_features([path], tmp_path / "out", *encoders, TOY_SETTINGS)
    assert FeatureStore(tmp_path / "out").manifest["videos"]["empty"]["audio"] == "empty"
    report = check_features(tmp_path / "out")
    assert report.ok and report.empty == ["empty"] and not report.absent and not report.silent


def test_what_a_folder_holds_besides_is_named(videos, tmp_path):
    for name in ("notes.txt", "still.jpg", "._hidden.mp4", "clip.wmv"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more.mp4").mkdir()
    assert [path.name for path in find_videos([tmp_path])] == ["clip.wmv"]
    found = passed_over([tmp_path, videos / "v1.mp4"])
    assert [path.name for path in found] == ["more.mp4", "notes.txt", "still.jpg"]


def test_a_fixed_count_of_frames(encoders, videos):
    for count in (1, 3, 7):
        settings = feature_settings(fps=4, frames=count)
        assert encode_video(videos / "v0.mp4", *encoders, settings)["video"].shape == (count, 768)
    with pytest.raises(InputError, match="frames=3"):
        feature_settings(frames=3, max_frames=3)


def test_hidden_and_patch_features_are_transformers_own(encoders, tmp_path):
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    assert (encoders[0].width, load_clip(encoders[0].name, output="hidden").width) == (768, 256)
    config = CLIPVisionConfig(
        hidden_size=768, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32,
        patch_size=16, projection_dim=512,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3)).astype(np.uint8)
    pooled = load_clip(tmp_path, output="hidden")
    inputs = torch.from_numpy(np.stack([pooled.pixels(frame) for frame in frames]))
    with torch.no_grad():
        seen = model.vision_model(inputs)
    np.testing.assert_allclose(pooled.encode(frames), seen.pooler_output, atol=1e-5)
    patches = load_clip(tmp_path, output="hidden", tokens="patch")
    assert patches.rows == 4
    np.testing.assert_allclose(patches.encode(frames), seen.last_hidden_state[:, 1:].reshape(12, 768), atol=1e-5)


def test_patch_tokens_of_a_whole_store(encoders, videos, tmp_path):
    clip = load_clip(encoders[0].name, tokens="patch")
    settings = TOY_SETTINGS.model_copy(update={"tokens": "patch"})
    with pytest.raises(InputError, match="was loaded for pooled"):
        extract_features([videos / "v0.mp4"], tmp_path, *encoders, settings)
    extract_features([videos / "v0.mp4"], tmp_path, clip, encoders[1], settings)
    store = FeatureStore(tmp_path)
    assert store.manifest["videos"]["v0"]["frames"] == 4 and store.array("video", "v0").shape == (4 * 16, 768)
    assert store.manifest["settings"]["tokens"] == "patch"


def test_bfloat16_is_near_and_not_mixed_in(encoders, videos, tmp_path):
    half = (load_clip(encoders[0].name, dtype="bfloat16"), load_clap(encoders[1].name, dtype="bfloat16"))
    assert half[0].fingerprint == encoders[0].fingerprint
    extract_features([videos / "v1.mp4"], tmp_path, *half, TOY_SETTINGS)
    for one, other in zip(
        arrays(tmp_path)["v1"], encode_video(videos / "v1.mp4", *encoders, TOY_SETTINGS).values(), strict=True
    ):
        assert one.dtype == np.float32 and np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99
    with pytest.raises(InputError, match="made with dtype bfloat16, not float32"):
        extract_features([videos / "v1.mp4"], tmp_path, *encoders, TOY_SETTINGS)
    with pytest.raises(InputError, match="dtype=int8"):
        load_clip(encoders[0].name, dtype="int8")


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
    from videoblip2.features.ray_engine import Actor

    def by_actor(paths, known):
        engine = RayEngine(*encoders, tmp_path / "ray", TOY_SETTINGS)
        batch = {"path": [str(p) for p in paths], "known": [known.get(p.stem, "") for p in paths]}
        from videoblip2.features.ledger import Outcome

        yield from (Outcome(**json.loads(text)) for text in Actor(engine._task())(batch)["outcome"])

    paths = find_videos([videos])
    report = extract_features(paths, tmp_path / "ray", *encoders, TOY_SETTINGS, engine=by_actor)
    assert len(report.done) == 6
    extract_features(paths, tmp_path / "local", *encoders, TOY_SETTINGS)
    here, there = arrays(tmp_path / "local"), arrays(tmp_path / "ray")
    for name, pair in here.items():
        for one, other in zip(pair, there[name], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_shard_in_which_every_file_fails_exits_1(encoders, tmp_path):
    from typer.testing import CliRunner

    from videoblip2.cli import features

    bad = tmp_path / "videos"
    bad.mkdir()
    for number in range(4):
        (bad / f"v{number}.mp4").write_bytes(b"no video")
    assert 0 < sum(shard_of(f"v{number}", 2) == 1 for number in range(4)) < 4
    models = ["--clip", encoders[0].name, "--clap", encoders[1].name, "--shard", "1/2"]
    words = ["extract", str(bad), "--out", str(tmp_path / "out"), *models]
    assert CliRunner().invoke(features.app, words).exit_code == 1


def test_a_store_of_other_encoders_than_the_checkpoint_was_trained_on(tmp_path):
    def made_with(clip: str = "a", **settings: str) -> dict[str, object]:
        return {"clip": {"fingerprint": clip}, "clap": {"fingerprint": "b"}, "settings": settings, "videos": {}}

    trained_on = FeatureOrigin.of_manifest(made_with())
    for same in (made_with(fps=2), made_with(output="projected"), None, {"imported_from": "x.npy", "videos": {}}):
        refuse_other_encoders(tmp_path, same, trained_on, "runs/ce/best")
        refuse_other_encoders(tmp_path, made_with(), FeatureOrigin.of_manifest(same), "runs/ce/best")
    for other in (made_with("c"), made_with(output="hidden"), made_with(tokens="patch")):
        with pytest.raises(InputError, match="runs/ce/best was trained on those of"):
            refuse_other_encoders(tmp_path, other, trained_on, "runs/ce/best")
