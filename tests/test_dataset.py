"""Batches: padding, thinning, order as a function of the step."""

from collections import Counter

import numpy as np
import pytest
import torch

from videoblip2.config import DataConfig, InputError
from videoblip2.data.annotations import VideoAnnotation
from videoblip2.data.dataset import CachedFeatures, TrainingBatches, pad, thin


class Source:
    """Features that say which video they are of; counts its reads."""

    def __init__(self):
        self.reads = Counter()

    def video(self, video_id):
        self.reads[video_id] += 1
        return np.full((int(video_id[5:]) % 3 + 1, 24), int(video_id[5:]), dtype=np.float32)

    def audio(self, video_id):
        return np.zeros((0, 12), dtype=np.float32)


def batches(tokenizers, count=7, batch_size=3, seed=0, captions_per_video=2, captions=4):
    videos = [
        VideoAnnotation(f"video{i}", 0, tuple(f"a red circle {'moves ' * k}left" for k in range(captions)))
        for i in range(count)
    ]
    config = DataConfig(captions_per_video=captions_per_video)
    return TrainingBatches(videos, Source(), tokenizers, config, batch_size, seed, max_positions=10)


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
    source = batches(tokenizers)
    seen = Counter(video_id for step in range(7) for video_id in source(step).video_ids)
    assert set(seen.values()) == {3}  # 7 steps of 3 = 3 epochs of 7
    taught = Counter(text for epoch in range(2) for text in source.captions(epoch, 0))
    assert set(taught.values()) == {1}  # 4 captions, 2 an epoch
    assert set(taught) == set(source.videos[0].captions)


def test_labels_follow_their_videos(tokenizers):
    batch = batches(tokenizers)(0)
    assert batch.labels.shape[0] == 2 * len(batch.video_ids)
    assert [int(row[0, 0]) for row in batch.video] == [int(video_id[5:]) for video_id in batch.video_ids]


def test_features_are_read_once_and_only_as_room_allows():
    source = Source()
    roomy = CachedFeatures(source)
    tight = CachedFeatures(source, megabytes=0)
    for _ in range(3):
        roomy.video("video1")
        tight.video("video2")
    assert source.reads == {"video1": 1, "video2": 3}


def test_no_videos_is_said_before_training(tokenizers):
    with pytest.raises(InputError, match=r"train\.json: no videos"):
        TrainingBatches([], Source(), tokenizers, DataConfig(), 3, 0, 10)
