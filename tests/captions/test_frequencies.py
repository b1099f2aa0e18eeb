"""Document frequencies: counts against a plain count, the file, and its refusals."""

import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videoblip2.captions import DocumentFrequencies
from videoblip2.captions.frequencies import END_TOKEN, words
from videoblip2.config import InputError

REFERENCES = {
    "video0": ["A man runs.", "a man is running", "the man runs fast"],
    "video1": ["a dog runs", "a dog"],
    "video2": ["", "cooking"],
}
VOCABULARY = st.sampled_from(["a", "man", "dog", "runs", "the"])
CORPUS = st.dictionaries(
    st.integers(0, 9).map(str),
    st.lists(st.lists(VOCABULARY, max_size=6).map(" ".join), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def count(df, ngram):
    """Videos with an n-gram; 0 for one outside the table."""
    counts, (place,) = df.counts[len(ngram) - 1], df.look_up([ngram])[1][len(ngram) - 1]
    return int(counts[place]) if place < len(counts) else 0


def plain_counts(references, end_token):
    """Videos that hold each n-gram, counted the obvious way."""
    counts = Counter()
    for captions in references.values():
        tokens = [words(caption) + [END_TOKEN] * end_token for caption in captions]
        counts.update({tuple(t[i : i + n]) for t in tokens for n in range(1, 5) for i in range(len(t) - n + 1)})
    return counts


@given(CORPUS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_counts_equal_a_plain_count(references, end_token):
    df = DocumentFrequencies.from_references(references, end_token=end_token)
    counts = plain_counts(references, end_token)
    assert df.num_documents == len(references)
    assert sum(map(len, df.counts)) == len(counts)
    assert {ngram: count(df, ngram) for ngram in counts} == dict(counts)


def test_unknown_ngrams_count_zero():
    df = DocumentFrequencies.from_references(REFERENCES)
    assert count(df, ["a", "man"]) == 1
    assert count(df, ["a"]) == 2
    assert count(df, ["man", "a"]) == count(df, ["giraffe"]) == count(df, ["a", "giraffe"]) == 0


def test_the_end_token_is_counted_only_on_request():
    assert count(DocumentFrequencies.from_references(REFERENCES), [END_TOKEN]) == 0
    df = DocumentFrequencies.from_references(REFERENCES, end_token=True)
    assert count(df, [END_TOKEN]) == 3
    assert count(df, ["runs", END_TOKEN]) == 2


@pytest.mark.parametrize("end_token", [False, True])
def test_a_saved_file_gives_the_same_frequencies(tmp_path, end_token):
    df = DocumentFrequencies.from_references(REFERENCES, end_token=end_token)
    df.save(tmp_path / "deep" / "document_frequencies")
    again = DocumentFrequencies.load(tmp_path / "deep" / "document_frequencies")
    assert (again.num_documents, again.end_token) == (3, end_token)
    assert again.words == df.words
    for one, other in zip(again.keys + again.counts, df.keys + df.counts, strict=True):
        assert np.array_equal(one, other)


def test_a_large_file_is_small(tmp_path):
    rng = np.random.default_rng(0)
    references = {str(v): [" ".join(f"w{w}" for w in rng.integers(0, 9000, 12))] for v in range(1_500)}
    df = DocumentFrequencies.from_references(references)
    df.save(tmp_path / "df")
    ngrams = sum(map(len, df.counts))
    assert ngrams > 45_000
    assert (tmp_path / "df").stat().st_size < 10 * ngrams


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "df"
    path.write_bytes(b"old")

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        DocumentFrequencies.from_references(REFERENCES).save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_file_is_refused_by_name(tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "text").write_text("hello")
    save_file({"x": np.zeros(1)}, tmp_path / "other")
    for name in ("absent", "text", "other"):
        with pytest.raises(InputError, match=name) as caught:
            DocumentFrequencies.load(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("references", "named"), [({}, "no references"), ({"video7": []}, "video7"), ({"video8": "a dog"}, "video8")]
)
def test_malformed_references_are_refused(references, named):
    with pytest.raises(InputError, match=named):
        DocumentFrequencies.from_references(references)
