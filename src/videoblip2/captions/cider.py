"""CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 8) with frozen document frequencies, for whole batches.

Equals pycocoevalcap's `Cider`, in its scale (0.613 is shown as 61.3), but with one sparse matrix of tf-idf weights
per n-gram order, so that a few calls score a batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from videoblip2.captions.frequencies import DocumentFrequencies, Int64s, TokenRuns, check_references, cook
from videoblip2.captions.functions import Floats
from videoblip2.config import InputError

SIGMA = 6.0
_CHUNK = 2048  # captions scored at once: limits memory to about 40 MB


class Vectors(NamedTuple):
    """Tf-idf vectors of captions; the columns of n-grams without a document frequency come last."""

    weights: list[Any]  # per order: sparse [M, n-grams], term frequency × inverse document frequency
    norm: Floats  # [M, ORDERS] Euclidean length of each caption's vector
    length: Int64s  # [M] bigrams in the caption, which CIDEr-D calls its length


class CiderD:
    """Scores captions against the references of their video: raw captions by id, tokenized and indexed once.

    If `df` includes end tokens, so do the references. Raises InputError for a video without references.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], df: DocumentFrequencies) -> None:
        check_references(references)
        self._end_token = df.end_token
        self._row = {video: row for row, video in enumerate(references)}
        self._count = np.array([len(group) for group in references.values()])
        captions = [caption for group in references.values() for caption in group]
        self._table, runs, grams = df.extended(cook(captions, df.end_token))
        self._unknown_idf = float(np.log(float(df.num_documents)))
        self._idf = [self._unknown_idf - np.log(np.maximum(1.0, counts)) for counts in self._table.counts]
        self._first = np.concatenate([[0], np.cumsum(self._count)])
        self._references = self._vectors(runs, grams, [len(idf) for idf in self._idf], len(captions))

    def score(self, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool] | None = None) -> Floats:
        """CIDEr-D of each caption against all references of its video: [M], pycocoevalcap's scale.

        `ended[i]` False means that caption i was cut off before its end token (None: all ended); it only matters if the
        document frequencies include end tokens. Raises InputError for an unknown video or lists of different lengths.
        """
        similar = self.similarities(video_ids, captions, ended)
        return np.asarray(10.0 * similar.sum(axis=1) / self._count[[self._row[video] for video in video_ids]])

    def similarities(
        self, video_ids: Sequence[str], captions: Sequence[str], ended: Sequence[bool] | None = None
    ) -> Floats:
        """Similarity of each caption to each reference of its video: [M, R], with R the largest number of references.

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
        total = np.zeros(len(self._references.length))
        for weights, norm in zip(self._references.weights, self._references.norm.T, strict=True):
            unit = weights.multiply(1 / np.where(norm > 0, norm, 1.0)[:, None]).tocsr()
            total += unit @ unit.mean(axis=0)
        return np.asarray(total / len(self._idf))

    def _similarities(self, rows: Int64s, tokens: Sequence[Sequence[str]]) -> Floats:
        captions, references = self._vectors(*self._table.look_up(tokens), len(tokens)), self._references
        columns = np.arange(self._count.max())
        pair, column = np.nonzero(columns < self._count[rows, None])  # [P]: each caption with each of its references
        other = self._first[rows[pair]] + column
        cosines = np.zeros(len(pair))
        norms = captions.norm[pair] * references.norm[other]
        for order, (own, theirs) in enumerate(zip(captions.weights, references.weights, strict=True)):
            wanted = theirs[other]
            dots = own[pair, : theirs.shape[1]].minimum(wanted).multiply(wanted).sum(axis=1)
            cosines += np.divide(dots, norms[:, order], out=np.zeros_like(dots), where=norms[:, order] > 0)
        gap = captions.length[pair] - references.length[other]
        similar = np.zeros((len(rows), len(columns)))
        similar[pair, column] = cosines / len(self._idf) * np.exp(-(gap**2) / (2 * SIGMA**2))
        return similar

    def _vectors(self, runs: TokenRuns, grams: Sequence[Int64s], sizes: Sequence[int], num_captions: int) -> Vectors:
        """Vectors of captions from the ids of their n-grams, which are below `sizes`."""
        from scipy import sparse

        weights = []
        for order, (ids, size, idf) in enumerate(zip(grams, sizes, self._idf, strict=True), start=1):
            place = runs.caption[runs.starts(order)], ids
            matrix = sparse.csr_array((np.ones(len(ids)), place), (num_captions, size))  # equal places are summed
            matrix.data *= np.append(idf, np.full(size - len(idf), self._unknown_idf))[matrix.indices]
            weights.append(matrix)
        norm = np.sqrt(np.stack([matrix.power(2).sum(axis=1) for matrix in weights], axis=1))
        return Vectors(weights, norm, np.bincount(runs.caption[runs.room >= 2], minlength=num_captions))


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

    It has the largest mean cosine to all references of all videos (CIDEr without the -D); on a tie, the first.
    """
    captions = [caption for group in references.values() for caption in group]
    return captions[int(CiderD(references, DocumentFrequencies.from_references(references)).centrality().argmax())]
