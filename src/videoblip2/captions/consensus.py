"""Consensus among references: how each caption agrees with its video, and which one agrees with all videos."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from videoblip2.captions.cider import CiderD
from videoblip2.captions.frequencies import DocumentFrequencies


def leave_one_out(references: Mapping[str, Sequence[str]], df: DocumentFrequencies) -> dict[str, NDArray[np.float64]]:
    """CIDEr-D of each reference against the other references of its video, in pycocoevalcap's scale: video id → [R].

    A video with a single reference gets 0: nothing agrees with it. Raises InputError for a video without references.
    """
    scorer = CiderD(references, df)
    consensus = {}
    for block in _blocks(list(references)):
        videos = [video for video in block for _ in references[video]]
        similar = scorer.similarities(videos, [caption for video in block for caption in references[video]])
        at = 0
        for video in block:
            count = len(references[video])
            own = similar[at : at + count, :count]
            consensus[video] = 10.0 * (own.sum(axis=1) - own.diagonal()) / max(1, count - 1)
            at += count
    return consensus


def typical_caption(references: Mapping[str, Sequence[str]]) -> str:
    """The reference caption that agrees best with all the corpus: the trivial baseline that says it for every video.

    It is the one with the largest mean cosine to every reference of every video, over tf-idf n-gram vectors averaged
    over orders 1 to 4: CIDEr without the -D, whose mean over a corpus is one product with the corpus's mean vector.
    The first of equals wins.
    """
    captions = [caption for group in references.values() for caption in group]
    return captions[int(CiderD(references, DocumentFrequencies.from_references(references)).centrality().argmax())]


def _blocks(videos: Sequence[str], size: int = 128) -> list[Sequence[str]]:
    return [videos[at : at + size] for at in range(0, len(videos), size)]
