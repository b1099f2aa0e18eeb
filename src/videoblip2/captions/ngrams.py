"""N-grams of words as integers: a trie of sorted arrays, so that counting and lookup take a few numpy calls.

The id of a word is its index in `words`; the id of a longer n-gram is the index of `(id of its first n-1 words, id of
its last word)` among the sorted keys of its order. Ids are exact (no hashing), and all arrays are int64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDERS = 4
Int64s = NDArray[np.int64]
_WORD_BITS = 32


class TokenRuns(NamedTuple):
    """Tokens of several captions laid end to end."""

    words: Int64s  # [T] word ids
    caption: Int64s  # [T] index of the token's caption
    room: Int64s  # [T] tokens from here to the end of the caption, inclusive


def lay_out(captions: Sequence[Sequence[str]], words: dict[str, int]) -> TokenRuns:
    """Lay tokenised captions end to end; unknown words are added to `words`."""
    lengths = np.fromiter((len(caption) for caption in captions), np.int64, len(captions))
    total = int(lengths.sum())
    ids = np.fromiter((words.setdefault(word, len(words)) for caption in captions for word in caption), np.int64, total)
    ends = np.cumsum(lengths)
    return TokenRuns(ids, np.repeat(np.arange(len(captions)), lengths), np.repeat(ends, lengths) - np.arange(total))


def join_key(prefix: Int64s, word: Int64s) -> Int64s:
    """The key of an n-gram: the id of its first n-1 words and the id of its last word in one integer."""
    return (prefix << _WORD_BITS) | word


def split_key(keys: Int64s) -> tuple[Int64s, Int64s]:
    """The inverse of `join_key`."""
    return keys >> _WORD_BITS, keys & ((1 << _WORD_BITS) - 1)


def find(keys: Int64s, among: Int64s) -> tuple[Int64s, NDArray[np.bool_]]:
    """Indices of `keys` in the sorted `among`, and whether each was found (if not, its index is meaningless)."""
    if not len(among):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    places = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return places, among[places] == keys


@dataclass(frozen=True, eq=False)
class NgramTable:
    """Every n-gram of a corpus with its document frequency.

    `keys[k]` are the sorted keys of the (k+2)-grams, `counts[k]` the number of documents that contain each (k+1)-gram.
    """

    words: Mapping[str, int]
    keys: tuple[Int64s, ...]  # ORDERS - 1 arrays
    counts: tuple[Int64s, ...]  # ORDERS arrays

    @property
    def num_ngrams(self) -> int:
        """N-grams of all orders."""
        return sum(len(counts) for counts in self.counts)


def empty_table() -> NgramTable:
    """A table without n-grams."""
    nothing = np.zeros(0, np.int64)
    return NgramTable({}, (nothing,) * (ORDERS - 1), (nothing,) * ORDERS)


def extend_table(table: NgramTable, captions: Sequence[Sequence[str]]) -> tuple[NgramTable, TokenRuns, list[Int64s]]:
    """Add the n-grams of tokenised captions, with count 0 if new; existing counts are kept.

    Returns the larger table, the captions laid end to end and, per order, the id of the n-gram at each of its `starts`.
    """
    words = dict(table.words)
    runs = lay_out(captions, words)
    moved = np.arange(len(table.words))  # old id → new id, order by order
    here = runs.words
    keys: list[Int64s] = []
    counts = [_place(table.counts[0], moved, len(words))]
    grams = [here]
    for order in range(2, ORDERS + 1):
        old_prefix, old_word = split_key(table.keys[order - 2])
        old = join_key(moved[old_prefix], old_word)
        new = join_key(here[runs.room[runs.room >= order - 1] >= order], runs.words[starts(runs, order) + order - 1])
        merged = np.union1d(old, new)
        moved, here = np.searchsorted(merged, old), np.searchsorted(merged, new)
        keys.append(merged)
        counts.append(_place(table.counts[order - 1], moved, len(merged)))
        grams.append(here)
    return NgramTable(words, tuple(keys), tuple(counts)), runs, grams


def starts(runs: TokenRuns, order: int) -> Int64s:
    """Tokens at which an n-gram of this order starts."""
    return np.flatnonzero(runs.room >= order)


def _place(values: Int64s, at: Int64s, size: int) -> Int64s:
    placed = np.zeros(size, np.int64)
    placed[at] = values
    return placed


def look_up(table: NgramTable, runs: TokenRuns) -> tuple[list[Int64s], list[int]]:
    """Ids of the n-grams of `runs`, order by order, without changing the table.

    N-grams outside the table get ids from the table's size upwards; equal n-grams get equal ids. Returns the ids and,
    per order, one more than the largest id.
    """
    here = runs.words
    grams, sizes = [here], [max(len(table.words), int(here.max(initial=-1)) + 1)]
    for order in range(2, ORDERS + 1):
        keys = join_key(here[runs.room[runs.room >= order - 1] >= order], runs.words[starts(runs, order) + order - 1])
        here, known = find(keys, table.keys[order - 2])
        unknown, inverse = np.unique(keys[~known], return_inverse=True)
        size = len(table.keys[order - 2])
        here[~known] = size + inverse
        grams.append(here)
        sizes.append(size + len(unknown))
    return grams, sizes
