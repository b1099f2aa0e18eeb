"""The model's two vocabularies, used by the training loop and by the thread that makes its batches."""

import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT

from videoblip2.config import InputError
from videoblip2.model import tokenizers as module
from videoblip2.model.tokenizers import QFORMER_FOLDER, load_tokenizers

GOLDEN = ROOT / "tests" / "golden" / "tokenizers"
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


@pytest.mark.parametrize("folder", [GOLDEN, GOLDEN.parent, "nope"], ids=["of a T5", "none", "not in the cache"])
def test_word_pieces_that_are_not_berts_are_refused(folder):
    """transformers would return five special tokens where it finds no files."""
    with pytest.raises(InputError, match=rf"^model\.qformer\.bert={folder}: has no BERT word pieces; give a folder"):
        load_tokenizers(GOLDEN, folder)


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path, monkeypatch, capfd):
    """A cached model loads without it; another name is refused by its key."""
    place, commit = tmp_path / "models--tiny--t5", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(GOLDEN, place / "snapshots" / commit)
    (place / "snapshots" / commit / "config.json").write_text('{"model_type": "t5"}')
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    for name, value in (("HF_HUB_OFFLINE", False), ("ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_CACHE", str(tmp_path))):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    began = time.perf_counter()
    assert load_tokenizers("tiny/t5", GOLDEN / QFORMER_FOLDER).text.vocab_size == 80
    for name in ("nope", "no/such/folder"):
        with pytest.raises(InputError, match=rf"^model\.language_model={name}: no tokenizer: .*; give a folder"):
            load_tokenizers(name, GOLDEN / QFORMER_FOLDER)
    assert time.perf_counter() - began < 1 and capfd.readouterr() == ("", "")
