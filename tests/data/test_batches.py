"""Batches: padding, thinning, order as a function of the step."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from videoblip2.config import DataConfig, InputError
from videoblip2.data import batches as room
from videoblip2.data.annotations import VideoAnnotation
from videoblip2.data.batches import BatchMaker, CachedFeatures, collate, pad, thin
from videoblip2.training.tasks import CAPTIONS


class Source:
    """Features that say which video they are of; counts its reads."""

    def __init__(self):
        self.reads = Counter()

    def features(self, video_id):
        self.reads[video_id] += 1
        video = np.full((int(video_id[5:]) % 3 + 1, 24), int(video_id[5:]), dtype=np.float32)
        return {"video": video, "audio": np.zeros((0, 12), dtype=np.float32)}


def batches(tokenizers, count=7, batch_size=3, seed=0, captions_per_video=2, captions=4):
    videos = [
        VideoAnnotation(f"video{i}", 0, tuple(f"a red circle {'moves ' * k}left" for k in range(captions)))
        for i in range(count)
    ]
    config = DataConfig(captions_per_video=captions_per_video)
    maker = BatchMaker(Source(), tokenizers, config, batch_size, seed, max_positions=10)
    return CAPTIONS.batches(videos, maker)


def test_pad_masks_what_is_not_there():
    padded, mask = pad([np.ones((2, 3), np.float32), np.zeros((0, 3), np.float32)], 10)
    assert padded.shape == (2, 2, 3)
    assert mask.tolist() == [[1, 1], [0, 0]]
    assert torch.equal(padded[0], torch.ones(2, 3))


def test_a_batch_without_any_audio_keeps_one_place():
    padded, mask = pad([np.zeros((0, 3), np.float32)] * 2, 10)
    assert padded.shape == (2, 1, 3)
    assert mask.sum() == 0


def test_thinning_keeps_ends_and_order():
    rows = np.arange(100)[:, None]
    kept = thin(rows, 7)[:, 0]
    assert len(kept) == 7
    assert (kept[0], kept[-1]) == (0, 99)
    assert (np.diff(kept) > 10).all()
    assert thin(rows, 100) is rows


def test_a_batch_is_a_function_of_seed_and_step(tokenizers):
    first, second = batches(tokenizers), batches(tokenizers)
    for step in range(4):
        second(step)
    again, fresh = second(1), first(1)
    assert again.video_ids == fresh.video_ids
    assert torch.equal(again.labels, fresh.labels)
    assert batches(tokenizers, seed=1)(1).video_ids != fresh.video_ids


def test_every_video_once_an_epoch_and_every_caption_equally_often(tokenizers):
    made = [batches(tokenizers)(step) for step in range(14)]  # 14 steps of 3 = 6 epochs of 7
    assert set(Counter(video_id for batch in made for video_id in batch.video_ids).values()) == {6}
    texts = Counter(
        (video_id, text)
        for batch in made
        for video_id, pair in zip(batch.video_ids, batch.labels.split(2), strict=True)
        for text in tokenizers.texts(pair)
    )
    assert len(texts) == 7 * 4 and set(texts.values()) == {3}


def test_labels_follow_their_videos(tokenizers):
    batch = batches(tokenizers)(0)
    assert batch.labels.shape[0] == 2 * len(batch.video_ids)
    assert [int(row[0, 0]) for row in batch.features["video"]] == [int(video_id[5:]) for video_id in batch.video_ids]


def test_features_are_read_once_and_only_as_room_allows():
    source = Source()
    roomy = CachedFeatures(source)
    tight = CachedFeatures(source, megabytes=0)
    for _ in range(3):
        roomy.features("video1")
        tight.features("video2")
    assert source.reads == {"video1": 1, "video2": 3}


def test_features_larger_than_the_free_memory_are_not_all_kept(monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda: 4 * 10 * 24 * 4)  # a quarter of it: ten rows
    source = Source()
    some = CachedFeatures(source)
    for _ in range(2):
        for number in range(1, 9):
            assert some.features(f"video{number}")["video"][0, 0] == number
    kept = [video_id for video_id, reads in source.reads.items() if reads == 1]
    assert 0 < len(kept) < 8 and sum(len(source.features(video_id)["video"]) for video_id in kept) <= 10


def test_a_packed_store_is_not_kept_twice():
    source = Source()
    source.packed = True
    features = CachedFeatures(source)
    for _ in range(3):
        features.features("video1")
    assert source.reads == {"video1": 3}


def test_a_failed_read_names_the_video():
    class Failing(Source):
        def features(self, video_id):
            raise self.error

    source = Failing()
    source.error = KeyError("lost")
    with pytest.raises(RuntimeError, match="features of video4: KeyError: 'lost'"):
        CachedFeatures(source).features("video4")
    source.error = InputError("video4.npy: holds NaN")
    with pytest.raises(InputError, match=r"^video4\.npy: holds NaN$"):
        CachedFeatures(source).features("video4")


def test_free_memory_is_the_machines_or_what_the_container_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=5000 * 1024))
    monkeypatch.setattr(room, "CONTROL_GROUP", tmp_path)
    assert room.free_memory() == 5000 * 1024
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    for limit, free in (("max\n", 5000 * 1024), ("4000000\n", 1_500_000), ("1000000\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert room.free_memory() == free


@pytest.mark.parametrize("prompts", [["a red circle"] * 3, ["a red circle", "a", "the blue square jumps"]])
def test_prompts_are_each_videos_own(tokenizers, prompts):
    items = [{"video": np.ones((2, 24), np.float32), "audio": np.ones((1, 12), np.float32)}] * 3
    batch = collate(["video0", "video1", "video2"], items, prompts, tokenizers, 10)
    for name, expected in tokenizers.prompts(prompts).items():
        assert torch.equal(getattr(batch, name), expected) and getattr(batch, name).is_contiguous()
