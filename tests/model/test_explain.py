"""How much each word of a caption depends on the sound and on the picture."""

import numpy as np
import pytest
import torch

from videoblip2.captioner import Captioner
from videoblip2.modality import ExplainedWord

CAPTIONS = ["a dog barks at a man", "the star is quiet", "a"]


@pytest.fixture
def items():
    rng = np.random.default_rng(0)
    shapes = ((3, 2), (5, 3), (4, 0))  # frames and audio windows
    return [
        {"video": rng.normal(size=(f, 24)).astype("float32"), "audio": rng.normal(size=(a, 12)).astype("float32")}
        for f, a in shapes
    ]


def deaf_or_blind(model, modality: str) -> None:
    """Cut the wire between a modality's Q-Former and the language model."""
    with torch.no_grad():
        for parameter in model.get_submodule(f"proj_{modality}").parameters():
            parameter.zero_()


@pytest.mark.parametrize(("cut", "field", "other"), [("video", "sound", "picture"), ("audio", "picture", "sound")])
def test_words_owe_all_to_the_modality_that_reaches_the_language_model(
    tiny_model, tokenizers, items, cut, field, other
):
    deaf_or_blind(tiny_model, cut)
    for words in Captioner(tiny_model, tokenizers).explain(items[:2], CAPTIONS[:2]):
        assert all(abs(getattr(word, field)) > 1e-3 for word in words)
        assert all(getattr(word, other) == 0 for word in words)


def test_sums_are_the_change_of_the_captions_log_probability(tiny_model, tokenizers, items):
    captioner = Captioner(tiny_model, tokenizers)
    explained = captioner.explain(items, CAPTIONS)
    assert [[word.word for word in words] for words in explained] == [caption.split() for caption in CAPTIONS]
    for item, caption, words in zip(items, CAPTIONS, explained, strict=True):
        deaf = {**item, "audio": item["audio"][:0]}
        fall = log_prob(captioner, item, caption) - log_prob(captioner, deaf, caption)
        assert sum(word.sound for word in words) == pytest.approx(fall, abs=1e-5)


def test_a_video_without_sound_owes_it_nothing(tiny_model, tokenizers, items):
    (words,) = Captioner(tiny_model, tokenizers).explain(items[2:], CAPTIONS[:1])
    assert all(word.sound == 0 for word in words) and any(word.picture for word in words)
    assert not any(word.needs_sound for word in words)


def test_a_model_that_does_not_listen(tiny_config, tokenizers, items):
    from videoblip2.model.network import VideoBlip2

    tiny_config.modalities = "video"
    (words, none) = Captioner(VideoBlip2(tiny_config).eval(), tokenizers).explain(items[:2], [CAPTIONS[0], ""])
    assert all(word.sound == 0 for word in words) and any(word.picture for word in words)
    assert none == ()


def test_pieces_make_up_words(tokenizers):
    labels, places, words = tokenizers.words(["a blue square jumps", "quiet"])
    assert words == [["a", "blue", "square", "jumps"], ["quiet"]]
    for row, caption in enumerate(words):
        for number, word in enumerate(caption):
            assert tokenizers.texts(labels[row][places[row] == number][None]) == [word]
    assert set(labels[places == 4].tolist()) == {tokenizers.text.eos_token_id, -100}


def test_half_as_likely_needs_sound():
    assert ExplainedWord("barks", 0.7, 0.0).needs_sound and not ExplainedWord("dog", 0.69, 5.0).needs_sound


def log_prob(captioner, item, caption) -> float:
    """Of the caption's pieces without the end token, one caption at a time, by the logits alone."""
    labels = torch.tensor([captioner.tokenizers.text(caption).input_ids])
    with torch.inference_mode():
        logits = captioner.model(labels, **captioner._batch([item], None).inputs)
    chosen = torch.log_softmax(logits, dim=-1)[0, range(labels.shape[1]), labels[0]]
    return float(chosen[:-1].sum())
