"""Leave-one-out consensus of references, and the caption that says the same of every video."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_frequencies import count

from videoblip2.captions import CiderD, DocumentFrequencies, leave_one_out, typical_caption
from videoblip2.config import InputError

REFERENCES = {
    "video0": ["a man is running", "a man runs", "the man is running fast", "a recipe for soup"],
    "video1": ["a dog runs", "a dog runs", "cats"],
    "video2": ["someone is cooking soup"],
}
CAPTION = st.lists(st.sampled_from(["a", "man", "dog", "runs", "the"]), max_size=6).map(" ".join)
CORPUS = st.dictionaries(st.integers(0, 9).map(str), st.lists(CAPTION, min_size=2, max_size=5), min_size=1, max_size=4)


@given(CORPUS, st.booleans())
@settings(max_examples=50, deadline=None)
def test_each_caption_scores_against_the_others(references, end_token):
    df = DocumentFrequencies.from_references(references, end_token=end_token)
    consensus = leave_one_out(references, df)
    assert list(consensus) == list(references)
    for video, captions in references.items():
        for place, caption in enumerate(captions):
            others = {video: captions[:place] + captions[place + 1 :]}
            expected = CiderD(others, df).score([video], [caption])[0]
            assert consensus[video][place] == pytest.approx(expected, abs=1e-12)


def test_an_outlier_has_the_lowest_consensus():
    consensus = leave_one_out(REFERENCES, DocumentFrequencies.from_references(REFERENCES))
    assert consensus["video0"].argmin() == 3
    assert consensus["video1"].argmin() == 2
    assert consensus["video1"][0] == consensus["video1"][1] > 1


def test_a_caption_alone_has_no_consensus():
    consensus = leave_one_out(REFERENCES, DocumentFrequencies.from_references(REFERENCES))
    assert consensus["video2"].tolist() == [0.0]


def test_many_videos_are_scored_as_few_are():
    many = {f"{video}-{copy}": captions for copy in range(100) for video, captions in REFERENCES.items()}
    df = DocumentFrequencies.from_references(REFERENCES)
    few, consensus = leave_one_out(REFERENCES, df), leave_one_out(many, df)
    for video in REFERENCES:
        np.testing.assert_allclose(consensus[f"{video}-99"], few[video])


def test_a_video_without_references_is_named():
    with pytest.raises(InputError, match="video5"):
        leave_one_out({"video5": []}, DocumentFrequencies.from_references(REFERENCES))


def cider_cosines(references):
    """Mean over all references of the tf-idf cosines, n-gram order by order, counted the obvious way."""
    df = DocumentFrequencies.from_references(references)
    captions = [caption.split() for group in references.values() for caption in group]

    def vector(tokens, order):
        grams = [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]
        return {gram: grams.count(gram) * np.log(df.num_documents / max(1, count(df, gram))) for gram in grams}

    def cosine(one, other):
        norms = np.sqrt(sum(v**2 for v in one.values()) * sum(v**2 for v in other.values()))
        return sum(weight * other.get(gram, 0.0) for gram, weight in one.items()) / norms if norms else 0.0

    vectors = [[vector(tokens, order) for order in range(1, 5)] for tokens in captions]
    return [np.mean([[cosine(a, b) for a, b in zip(one, other, strict=True)] for other in vectors]) for one in vectors]


@given(CORPUS.filter(lambda corpus: len(corpus) > 1))
@settings(max_examples=40, deadline=None)
def test_centrality_is_the_mean_cosine_to_every_reference(references):
    scorer = CiderD(references, DocumentFrequencies.from_references(references))
    np.testing.assert_allclose(scorer.centrality(), cider_cosines(references), atol=1e-12)


def test_the_typical_caption_is_the_one_most_like_all_others():
    references = {
        "video0": ["a man is cooking", "two dogs bark"],
        "video1": ["a man is cooking food", "zebra"],
        "video2": ["a man is talking", "a man is cooking rice"],
        "video3": ["rain falls"],
    }
    assert typical_caption(references) == "a man is cooking"
