"""The model's two vocabularies, used by the training loop and by the thread that makes its batches."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import torch

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
