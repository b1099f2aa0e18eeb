"""The small T5 of one's own: what it learns from, and how it starts; the demo's second process."""

import multiprocessing
import time

import numpy as np
import pytest
import torch

from videoblip2.data.annotations import VideoAnnotation
from videoblip2.errors import InputError, validated
from videoblip2.toy.demo import second_process
from videoblip2.toy.networks import LanguageModelConfig, _pairs, build_t5, train_bert_tokenizer
from videoblip2.toy.world import make_captions, make_scenes

VIDEOS = [
    VideoAnnotation(f"video{n}", 0, tuple(" ".join([word] * (1 + 3 * n)) for word in ("dog", "cat"))) for n in range(9)
]


def pairs(**settings):
    return _pairs(VIDEOS, LanguageModelConfig(batch_size=40, **settings), np.random.default_rng(0))


def test_targets_are_captions_of_the_sources_video():
    sources, targets = pairs(word_dropout=0)
    assert len(sources) == len(targets) == 40
    assert all(len(source) == len(target) for source, target in zip(sources, targets, strict=True))
    assert any(source != target for source, target in zip(sources, targets, strict=True))


def test_denoising_restores_the_source_itself():
    sources, targets = pairs(word_dropout=0.5, denoise=1)
    assert all(set(source.split()) <= set(target.split()) for source, target in zip(sources, targets, strict=True))
    assert any(len(source) < len(target) for source, target in zip(sources, targets, strict=True))
    assert {target.split()[0] for target in targets} == {"dog", "cat"}


def test_a_pool_makes_batches_of_like_length():
    def spread(pool):
        lengths = [len(target) for target in pairs(word_dropout=0, pool=pool)[1]]
        return max(lengths) - min(lengths)

    assert len(pairs(pool=9)[0]) == 40
    assert spread(9) < 0.5 * spread(1)


def test_a_tied_start_is_of_two_tensors():
    model = build_t5(50, LanguageModelConfig(d_model=16, d_ff=16, num_heads=2, num_layers=1, tied_start=True))
    assert torch.allclose(model.lm_head.weight, model.shared.weight / 4)
    assert model.lm_head.weight is not model.shared.weight


def test_the_same_texts_give_the_same_pieces():
    texts = [caption for scene in make_scenes(30, 0) for caption in make_captions(scene)]
    first, *others = (train_bert_tokenizer(texts, 300).get_vocab() for _ in range(3))
    assert others == [first, first]


def test_every_character_of_a_large_alphabet_is_a_piece():
    texts = [chr(0x4E00 + n) + chr(0x4E01 + n) for n in range(0, 3000, 2)]
    tokenizer = train_bert_tokenizer(texts, 4000)
    assert len(tokenizer) == 3005 and tokenizer.unk_token_id not in tokenizer(" ".join(texts)).input_ids


def test_a_wrong_setting_is_named():
    with pytest.raises(InputError, match="denoise='2'"):
        validated(LanguageModelConfig, {"denoise": "2"}, "setting")


def test_the_demos_second_process_ends_with_the_first():
    with pytest.raises(KeyboardInterrupt), second_process() as second:
        second.submit(time.sleep, 600)
        raise KeyboardInterrupt
    assert not multiprocessing.active_children()
