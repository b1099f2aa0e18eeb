"""Document frequencies: in how many videos' references each n-gram occurs (Vedantam et al. 2015), frozen and saved.

CIDEr-D is comparable between runs only if these counts are computed once from the training references: pycocoevalcap
takes them from each batch, so they change with it. The file is safetensors: the words as UTF-8 lines and, per order,
the keys of `captions.ngrams` in compressed rows (where the n-grams of each prefix start, and their last words) with
their counts, each array in the smallest integer type that fits.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from videoblip2.captions.ngrams import (
    ORDERS,
    Int64s,
    NgramTable,
    empty_table,
    extend_table,
    join_key,
    split_key,
    starts,
)
from videoblip2.captions.tokenizer import words
from videoblip2.config import InputError
from videoblip2.files import atomic

END_TOKEN = "<eos>"
_FORMAT = "videoblip2-document-frequencies-1"


def cook(captions: Sequence[str], end_token: bool, ended: Sequence[bool] | None = None) -> list[list[str]]:
    """Tokens of each caption, followed by the end token if `end_token` is set and the caption ended."""
    if not end_token:
        return [words(caption) for caption in captions]
    tail = [END_TOKEN]
    if ended is None:
        return [words(caption) + tail for caption in captions]
    return [words(caption) + tail if end else words(caption) for caption, end in zip(captions, ended, strict=True)]


def check_references(references: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError for no videos, or for a video with no references or with a string instead of a list."""
    if not references:
        raise InputError("no references: the mapping of video ids to captions is empty; give at least one video")
    for video, captions in references.items():
        if isinstance(captions, str):
            raise InputError(f"references of video {video!r} are one string: give a list of captions")
        if not captions:
            raise InputError(f"video {video!r} has no references: give it at least one caption or leave the video out")


@dataclass(frozen=True, eq=False)
class DocumentFrequencies:
    """Frozen document frequencies of the n-grams (orders 1 to 4) of a reference corpus."""

    table: NgramTable
    num_documents: int  # videos
    end_token: bool  # whether references were counted with an end token

    @classmethod
    def from_references(
        cls, references: Mapping[str, Sequence[str]], *, end_token: bool = False
    ) -> "DocumentFrequencies":
        """Count the videos (not captions) that contain each n-gram; `references` is raw text by video id.

        Raises InputError for a video without references.
        """
        check_references(references)
        captions = [caption for group in references.values() for caption in group]
        video = np.repeat(np.arange(len(references)), [len(group) for group in references.values()])
        table, runs, grams = extend_table(empty_table(), cook(captions, end_token))
        counts = []
        for order, ids in enumerate(grams, start=1):
            size = len(table.counts[order - 1])
            pairs = np.unique(video[runs.caption[starts(runs, order)]] * size + ids)
            counts.append(np.bincount(pairs % size, minlength=size) if size else ids)
        return cls(replace(table, counts=tuple(counts)), len(references), end_token)

    def count(self, ngram: Sequence[str]) -> int:
        """In how many videos this n-gram of 1 to 4 tokens occurs."""
        here = self.table.words.get(ngram[0], -1)
        for keys, word in zip(self.table.keys, ngram[1:], strict=False):
            key = (here << 32) | self.table.words.get(word, -1)
            place = int(np.searchsorted(keys, key)) if here >= 0 and word in self.table.words else len(keys)
            here = place if place < len(keys) and keys[place] == key else -1
        return int(self.table.counts[len(ngram) - 1][here]) if here >= 0 else 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically."""
        arrays = {"words": np.frombuffer("\n".join(self.table.words).encode(errors="surrogatepass"), np.uint8)}
        for order in range(2, ORDERS + 1):
            prefix, last = split_key(self.table.keys[order - 2])
            rows = np.searchsorted(prefix, np.arange(len(self.table.counts[order - 2]) + 1))
            arrays[f"rows{order}"], arrays[f"last{order}"] = _smallest(rows), _smallest(last)
        arrays |= {f"counts{order}": _smallest(counts) for order, counts in enumerate(self.table.counts, start=1)}
        head = {"format": _FORMAT, "num_documents": str(self.num_documents), "end_token": str(int(self.end_token))}
        with atomic(Path(path)) as file:
            file.write(save(arrays, metadata=head))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DocumentFrequencies":
        """Read what `save` wrote. Raises InputError if the file is absent or of another kind."""
        try:
            with safe_open(path, framework="numpy") as file:
                head = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"document frequencies {path}: {error}; make the file with DocumentFrequencies.save"
            ) from None
        if head.get("format") != _FORMAT:
            raise InputError(f"document frequencies {path}: not such a file; make one with DocumentFrequencies.save")
        return cls(_read_table(arrays), int(head["num_documents"]), head["end_token"] == "1")


def _read_table(arrays: dict[str, np.ndarray]) -> NgramTable:
    text = arrays["words"].tobytes().decode(errors="surrogatepass")
    words = {word: place for place, word in enumerate(text.split("\n"))} if text else {}
    keys = []
    for order in range(2, ORDERS + 1):
        rows = arrays[f"rows{order}"].astype(np.int64)
        keys.append(
            join_key(np.repeat(np.arange(len(rows) - 1), np.diff(rows)), arrays[f"last{order}"].astype(np.int64))
        )
    counts = tuple(arrays[f"counts{order}"].astype(np.int64) for order in range(1, ORDERS + 1))
    return NgramTable(words, tuple(keys), counts)


def _smallest(values: Int64s) -> np.ndarray:
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
