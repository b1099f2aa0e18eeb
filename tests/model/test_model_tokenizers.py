"""The model's two vocabularies, used by the training loop and by the thread that makes its batches."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from videoblip2.config import InputError
from videoblip2.model import tokenizers as module
from videoblip2.model.tokenizers import load_tokenizers

CAPTIONS = ["a red circle moves left and a dog barks at a man"] * 8


def test_threads_do_not_get_each_others_lengths(tokenizers):
    def widths(longest):
        return {tokenizers.labels(CAPTIONS, longest).shape[1] for _ in range(60)}

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(widths, (5, 9))) == [{5}, {9}]


def test_a_copy_for_another_process_says_the_same(tokenizers):
    copy = pickle.loads(pickle.dumps(tokenizers))
    assert torch.equal(copy.labels(CAPTIONS, 9), tokenizers.labels(CAPTIONS, 9))
    assert copy.texts(copy.labels(CAPTIONS[:1], 32)) == CAPTIONS[:1]


@pytest.mark.parametrize("installed", [False, True])
def test_a_folder_with_a_sentencepiece_model_only_names_what_reads_it(tmp_path, monkeypatch, installed):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "spiece.model").write_bytes(b"\x0a\x0e\x0a\x05<pad>\x15\0\0\0\0\x18\x03")
    monkeypatch.setattr(module, "find_spec", lambda name: name if installed else None)
    with pytest.raises(InputError, match="model is damaged" if installed else "pip install sentencepiece") as error:
        load_tokenizers(tmp_path, tmp_path)
    assert "tiktoken" not in str(error.value)
