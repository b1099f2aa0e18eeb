"""CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 8) with frozen document frequencies, for whole batches.

What pycocoevalcap's `Cider` computes, in its scale (0.613 is shown as 61.3), from an inverted index of the references:
for each (video, n-gram), those that contain it and their tf-idf weights. A few numpy calls then score a batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from videoblip2.captions.frequencies import ORDERS, DocumentFrequencies, Int64s, TokenRuns, check_references, cook, find
from videoblip2.captions.functions import Floats
from videoblip2.config import InputError

SIGMA = 6.0
_CHUNK = 2048  # captions scored at once: bounds memory at about 40 MB


class Vectors(NamedTuple):
    """Sparse tf-idf vectors of captions: one entry for each distinct n-gram of each caption."""

    caption: Int64s  # [E]
    gram: Int64s  # [E] id over all orders
    order: Int64s  # [E] 0 to ORDERS - 1
    weight: Floats  # [E] term frequency × inverse document frequency
    norm: Floats  # [M, ORDERS] Euclidean length of each caption's vector
    length: Int64s  # [M] bigrams in the caption, which CIDEr-D calls its length


class Index(NamedTuple):
    """Postings of all references, sorted by (video, n-gram)."""

    pair: Int64s  # [P] video × number of n-grams + n-gram
    first: Int64s  # [P + 1] start of each pair's postings
    reference: Int64s  # [N] index of the reference in its video
    weight: Floats  # [N]


class CiderD:
    """Scores captions against the references of their video, raw captions by id, which are tokenised and indexed once.

    If `df` was counted with the end token, references also end with it. Raises InputError for a video without any.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], df: DocumentFrequencies) -> None:
        check_references(references)
        self._end_token = df.end_token
        self._row = {video: row for row, video in enumerate(references)}
        self._count = np.array([len(group) for group in references.values()])
        captions = [caption for group in references.values() for caption in group]
        self._table, runs, grams = df.extended(cook(captions, df.end_token))
        self._sizes = [len(counts) for counts in self._table.counts]
        self._unknown_idf = float(np.log(float(df.num_documents)))
        self._idf = self._unknown_idf - np.log(np.maximum(1.0, np.concatenate(self._table.counts)))
        self._first = np.concatenate([[0], np.cumsum(self._count)])
        vectors = self._vectors(runs, grams, self._sizes, len(captions))
        self._norm, self._length = vectors.norm, vectors.length
        video = np.searchsorted(self._first, vectors.caption, side="right") - 1
        pairs = video * len(self._idf) + vectors.gram
        by_pair = np.argsort(pairs, kind="stable")
        pair, start = np.unique(pairs[by_pair], return_index=True)
        reference = (vectors.caption - self._first[video])[by_pair]
        self._index = Index(pair, np.append(start, len(pairs)), reference, vectors.weight[by_pair])

    def score(self, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool] | None = None) -> Floats:
        """CIDEr-D of each caption against all references of its video: [M], pycocoevalcap's scale.

        `ended[i]` False means that caption i was cut off before its end token (None: all ended); it only matters if the
        document frequencies contain end tokens. Raises InputError for an unknown video or lists of different lengths.
        """
        similar = self.similarities(video_ids, captions, ended)
        return np.asarray(10.0 * similar.sum(axis=1) / self._count[[self._row[video] for video in video_ids]])

    def similarities(
        self, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool] | None = None
    ) -> Floats:
        """Similarity of each caption to each reference of its video: [M, R], R the largest number of references.

        Columns past a video's own references are 0. `score` is 10 times the mean over the references.
        """
        if unknown := [video for video in video_ids if video not in self._row]:
            raise InputError(f"video {unknown[0]!r} has no references here: give its captions to CiderD")
        rows = np.array([self._row[video] for video in video_ids], np.int64)
        if {len(captions), len(rows if ended is None else ended)} != {len(rows)}:
            counts = f"{len(rows)} video ids, {len(captions)} captions and {len(ended or ())} end marks"
            raise InputError(f"{counts}: give the same number of each")
        parts = [np.zeros((0, int(self._count.max())))]
        for part in (slice(at, at + _CHUNK) for at in range(0, len(rows), _CHUNK)):
            tokens = cook(captions[part], self._end_token, None if ended is None else ended[part])
            parts.append(self._similarities(rows[part], tokens))
        return np.concatenate(parts)

    def centrality(self) -> Floats:
        """Mean tf-idf cosine of each reference to all references of all videos: [references, in the order given]."""
        video, gram = np.divmod(np.repeat(self._index.pair, np.diff(self._index.first)), len(self._idf))
        caption = self._first[video] + self._index.reference
        norm = self._norm[caption, np.repeat(np.arange(ORDERS), self._sizes)[gram]]
        unit = np.divide(self._index.weight, norm, out=np.zeros_like(norm), where=norm > 0)
        mean = np.bincount(gram, unit, minlength=len(self._idf)) / len(self._length)
        return np.asarray(np.bincount(caption, unit * mean[gram], minlength=len(self._length)) / ORDERS)

    def _similarities(self, rows: Int64s, tokens: Sequence[Sequence[str]]) -> Floats:
        hyp = self._vectors(*self._table.look_up(tokens), len(tokens))
        num_references = int(self._count.max())
        dots = self._dots(rows, hyp, num_references)  # [M, ORDERS, R]
        at = np.minimum(self._first[rows, None] + np.arange(num_references), len(self._length) - 1)  # [M, R]
        norms = hyp.norm[:, :, None] * self._norm[at].transpose(0, 2, 1)
        cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
        gap = hyp.length[:, None] - self._length[at]
        return np.asarray(cosines.mean(axis=1) * np.exp(-(gap**2) / (2 * SIGMA**2)))

    def _dots(self, rows: Int64s, hyp: Vectors, num_references: int) -> Floats:
        """Clipped dot products of each caption with each reference, order by order: [M, ORDERS, R]."""
        known = np.flatnonzero(hyp.gram < len(self._idf))
        place, there = find(rows[hyp.caption[known]] * len(self._idf) + hyp.gram[known], self._index.pair)
        entry, place = known[there], place[there]
        first = self._index.first[place]
        sizes = self._index.first[place + 1] - first
        entry = np.repeat(entry, sizes)
        posting = np.arange(len(entry)) + np.repeat(first - (np.cumsum(sizes) - sizes), sizes)
        weight = self._index.weight[posting]
        products = np.minimum(hyp.weight[entry], weight) * weight
        cell = (hyp.caption[entry] * ORDERS + hyp.order[entry]) * num_references + self._index.reference[posting]
        shape = (len(rows), ORDERS, num_references)
        return np.bincount(cell, products, minlength=math.prod(shape)).reshape(shape).astype(np.float64, copy=False)

    def _vectors(self, runs: TokenRuns, grams: Sequence[Int64s], sizes: Sequence[int], num_captions: int) -> Vectors:
        """Vectors of captions from the ids of their n-grams; unknown n-grams get ids after those of all orders."""
        offsets = np.cumsum([0, *self._sizes])
        unknown = offsets[-1] + np.cumsum([0, *np.subtract(sizes, self._sizes)])
        total, flat = int(unknown[-1]), []
        for order, (ids, own) in enumerate(zip(grams, self._sizes, strict=True)):
            gram = np.where(ids < own, ids + offsets[order], ids - own + unknown[order])
            flat.append((runs.caption[runs.starts(order + 1)] * ORDERS + order) * total + gram)
        distinct, frequency = np.unique(np.concatenate(flat), return_counts=True)
        slot, gram = np.divmod(distinct, total) if total else (distinct, distinct)
        caption, order_of = np.divmod(slot, ORDERS)
        weight = frequency * np.append(self._idf, self._unknown_idf)[np.minimum(gram, len(self._idf))]
        norm = np.sqrt(np.bincount(slot, weight**2, minlength=num_captions * ORDERS)).reshape(num_captions, ORDERS)
        length = np.bincount(runs.caption[runs.room >= 2], minlength=num_captions)
        return Vectors(caption, gram, order_of, weight, norm, length)


def leave_one_out(references: Mapping[str, Sequence[str]], df: DocumentFrequencies) -> dict[str, Floats]:
    """CIDEr-D of each reference against the other references of its video, in pycocoevalcap's scale: video id → [R].

    A single reference gets 0. Raises InputError for a video without references.
    """
    pairs = [(video, caption) for video, group in references.items() for caption in group]
    similar = CiderD(references, df).similarities([video for video, _ in pairs], [caption for _, caption in pairs])
    consensus, at = {}, 0
    for video, group in references.items():
        own = similar[at : at + len(group), : len(group)]
        consensus[video] = 10.0 * (own.sum(axis=1) - own.diagonal()) / max(1, len(group) - 1)
        at += len(group)
    return consensus


def typical_caption(references: Mapping[str, Sequence[str]]) -> str:
    """The reference caption that agrees best with the whole corpus; the trivial baseline gives it to every video.

    It has the largest mean cosine to all references of all videos (CIDEr without the -D); the first of equals wins.
    """
    captions = [caption for group in references.values() for caption in group]
    return captions[int(CiderD(references, DocumentFrequencies.from_references(references)).centrality().argmax())]
