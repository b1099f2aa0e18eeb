"""Document frequencies: how many videos' references contain each n-gram (Vedantam et al. 2015), frozen and saved.

CIDEr-D is comparable between runs only if these counts are computed once, from the training references. N-grams are
integers in a trie of sorted arrays, so counting and lookup take a few numpy calls.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from videoblip2.captions.tokenizer import words
from videoblip2.config import InputError
from videoblip2.errors import refused
from videoblip2.files import atomic

ORDERS = 4
END_TOKEN = "<eos>"
Int64s = NDArray[np.int64]
References = Mapping[str, Sequence[str]]  # raw reference captions by video id
_FORMAT = "videoblip2-document-frequencies-1"
_BASE = 1 << 32


class TokenRuns(NamedTuple):
    """Tokens of several captions, end to end."""

    words: Int64s  # [T] word ids
    caption: Int64s  # [T] index of the token's caption
    room: Int64s  # [T] tokens from here to the end of the caption, inclusive

    def starts(self, order: int) -> Int64s:
        """Tokens at which an n-gram of this order starts."""
        return np.flatnonzero(self.room >= order)

    def keys(self, shorter: Int64s, order: int) -> Int64s:
        """Keys of the n-grams of this order, given the ids of those one word shorter."""
        prefix = shorter[self.room[self.starts(order - 1)] >= order]
        return np.asarray(prefix * _BASE + self.words[self.starts(order) + order - 1])


@dataclass(frozen=True, eq=False)
class DocumentFrequencies:
    """Frozen document frequencies of the n-grams (orders 1 to 4) of a reference corpus.

    The id of a word is its index in `words`; that of a longer n-gram is the index of its key among the sorted keys of
    its order. A key is the id of the first n-1 words times 2^32 plus the id of the last.
    """

    words: Mapping[str, int]
    keys: tuple[Int64s, ...]  # of orders 2 to ORDERS
    counts: tuple[Int64s, ...]  # documents that contain each n-gram, of orders 1 to ORDERS
    num_documents: int  # videos
    end_token: bool  # whether references include an end token

    def extended(self, captions: Sequence[Sequence[str]]) -> tuple["DocumentFrequencies", TokenRuns, list[Int64s]]:
        """These frequencies extended by the captions' n-grams (count 0 if new), the captions end to end and, per order,
        the ids of the n-grams at its `starts`."""
        runs, vocabulary = _lay_out(captions, self.words)
        moved = np.arange(len(self.words))  # old id → new id, order by order
        keys, grams = [], [runs.words]
        counts = [np.append(self.counts[0], np.zeros(len(vocabulary) - len(moved), np.int64))]
        for order in range(2, ORDERS + 1):
            prefix, last = np.divmod(self.keys[order - 2], _BASE)
            old, new = moved[prefix] * _BASE + last, runs.keys(grams[-1], order)
            keys.append(np.union1d(old, new))
            moved = np.searchsorted(keys[-1], old)
            counts.append(np.zeros(len(keys[-1]), np.int64))
            counts[-1][moved] = self.counts[order - 1]
            grams.append(np.searchsorted(keys[-1], new))
        return replace(self, words=vocabulary, keys=tuple(keys), counts=tuple(counts)), runs, grams

    def look_up(self, captions: Sequence[Sequence[str]]) -> tuple[TokenRuns, list[Int64s], list[int]]:
        """The captions end to end and, per order, the ids of their n-grams and the number of ids.

        Changes nothing: unknown n-grams get ids after the known ones, equal n-grams the same id.
        """
        runs, vocabulary = _lay_out(captions, self.words)
        grams, sizes = [runs.words], [len(vocabulary)]
        for order, known in enumerate(self.keys, start=2):
            keys = runs.keys(grams[-1], order)
            ids = np.searchsorted(known, keys)
            new = known.take(ids, mode="clip") != keys if len(known) else np.ones(len(keys), bool)
            unknown, ids[new] = np.unique(keys[new], return_inverse=True)
            ids[new] += len(known)
            grams.append(ids)
            sizes.append(len(known) + len(unknown))
        return runs, grams, sizes

    @classmethod
    def from_references(cls, references: References, *, end_token: bool = False) -> "DocumentFrequencies":
        """Count the videos (not captions) that contain each n-gram; `references` is raw text by video id.

        Raises InputError for a video without references.
        """
        check_references(references)
        captions = [caption for group in references.values() for caption in group]
        video = np.repeat(np.arange(len(references)), [len(group) for group in references.values()])
        nothing = (np.zeros(0, np.int64),) * ORDERS
        empty = cls({}, nothing[1:], nothing, len(references), end_token)
        table, runs, grams = empty.extended(cook(captions, end_token))
        counts = []
        for order, ids in enumerate(grams, start=1):
            size = len(table.counts[order - 1])
            pairs = np.unique(video[runs.caption[runs.starts(order)]] * size + ids)
            counts.append(np.bincount(pairs % size, minlength=size) if size else ids)
        return replace(table, counts=tuple(counts))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically: words as UTF-8 lines; per order, keys as compressed rows, with their counts."""
        arrays = {"words": np.frombuffer("\n".join(self.words).encode(errors="surrogatepass"), np.uint8)}
        for order in range(2, ORDERS + 1):
            prefix, last = np.divmod(self.keys[order - 2], _BASE)
            rows = np.searchsorted(prefix, np.arange(len(self.counts[order - 2]) + 1))
            arrays[f"rows{order}"], arrays[f"last{order}"] = _smallest(rows), _smallest(last)
        arrays |= {f"counts{order}": _smallest(counts) for order, counts in enumerate(self.counts, start=1)}
        head = {"format": _FORMAT, "num_documents": str(self.num_documents), "end_token": str(int(self.end_token))}
        with atomic(Path(path)) as file:
            file.write(save(arrays, metadata=head))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DocumentFrequencies":
        """Read what `save` wrote. Raises InputError if the file is missing or malformed."""
        fault, remedy = f"document frequencies {path}: cannot be read", "make the file with DocumentFrequencies.save"
        with refused(fault, remedy, OSError, SafetensorError):
            with safe_open(path, framework="numpy") as file:
                head = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if head.get("format") != _FORMAT:
                raise OSError("is in another format")
        text = arrays.pop("words").tobytes().decode(errors="surrogatepass")
        vocabulary = {word: place for place, word in enumerate(text.split("\n"))} if text else {}
        stored = {name: array.astype(np.int64) for name, array in arrays.items()}
        keys = []
        for order in range(2, ORDERS + 1):
            rows = stored[f"rows{order}"]
            keys.append(np.repeat(np.arange(len(rows) - 1), np.diff(rows)) * _BASE + stored[f"last{order}"])
        counts = tuple(stored[f"counts{order}"] for order in range(1, ORDERS + 1))
        return cls(vocabulary, tuple(keys), counts, int(head["num_documents"]), head["end_token"] == "1")


def cook(captions: Sequence[str], end_token: bool, ended: Sequence[bool] | None = None) -> list[list[str]]:
    """Tokens of each caption, followed by the end token if `end_token` is set and the caption ended."""
    ends = [end_token] * len(captions) if ended is None else [end_token and bool(end) for end in ended]
    return [words(caption) + [END_TOKEN] * end for caption, end in zip(captions, ends, strict=True)]


def check_references(references: References) -> None:
    """Raise InputError for no videos, or for a video with no references or with a string instead of a list."""
    if not references:
        raise InputError("no references: the mapping of video ids to captions is empty; give at least one video")
    for video, captions in references.items():
        if isinstance(captions, str):
            raise InputError(f"references of video {video!r} are one string: give a list of captions")
        if not captions:
            raise InputError(f"video {video!r} has no references: give it at least one caption or leave the video out")


def _lay_out(captions: Sequence[Sequence[str]], known: Mapping[str, int]) -> tuple[TokenRuns, dict[str, int]]:
    """Tokenized captions end to end, and the vocabulary with their words."""
    ids = dict(known)
    lengths = np.fromiter((len(caption) for caption in captions), np.int64, len(captions))
    total = int(lengths.sum())
    tokens = np.fromiter((ids.setdefault(word, len(ids)) for caption in captions for word in caption), np.int64, total)
    room = np.repeat(np.cumsum(lengths), lengths) - np.arange(total)
    return TokenRuns(tokens, np.repeat(np.arange(len(captions)), lengths), room), ids


def _smallest(values: Int64s) -> np.ndarray:
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
