"""CIDEr-D equals pycocoevalcap's on small corpora, generated ones and MSR-VTT's test videos."""

import gc
import json
import random
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider

from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.captions.frequencies import cook
from videoblip2.config import InputError

MSRVTT = Path(__file__).resolve().parents[3] / "shared" / "data" / "msrvtt"
REFERENCES = {
    "video0": ["A man runs.", "a man is running", "the man runs fast down 1 1/2 streets"],
    "video1": ["a dog runs", "a dog", "A dog's bowl"],
    "video2": ["", "cooking"],
    "video3": ["a man is cooking in a kitchen with a dog"],
}
CAPTION = st.lists(st.sampled_from(["a", "man", "dog", "runs", "the", "runs a"]), max_size=7).map(" ".join)
CORPUS = st.dictionaries(st.integers(0, 9).map(str), st.lists(CAPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def pycocoevalcap_scores(references, captions, end_token=False, ended=None):
    """Scores of one caption for each video, document frequencies from the same references."""
    ended = ended or [True] * len(captions)
    joined = {video: [" ".join(tokens) for tokens in cook(group, end_token)] for video, group in references.items()}
    hypotheses = dict(zip(references, ([" ".join(t)] for t in cook(captions, end_token, ended)), strict=True))
    return Cider().compute_score(joined, hypotheses)[1]


def scorer_of(references, end_token=False):
    return CiderD(references, DocumentFrequencies.from_references(references, end_token=end_token))


@given(CORPUS, st.booleans(), st.data())
@settings(max_examples=80, deadline=None)
def test_any_corpus_scores_as_in_pycocoevalcap(references, end_token, data):
    captions = [data.draw(CAPTION) for _ in references]
    ended = [data.draw(st.booleans()) for _ in references]
    ours = scorer_of(references, end_token).score(list(references), captions, ended)
    if not any(cook([text], end_token)[0] for group in references.values() for text in group):
        assert not ours.any()  # pycocoevalcap fails on a corpus without a word
        return
    theirs = pycocoevalcap_scores(references, captions, end_token, ended)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "caption",
    ["", "...", "a man\nruns", "\U0001f600 dog", "a 1 1/2 cup", "zebra zebra zebra", "a man " * 5_000, "cooking"],
)
def test_odd_captions_score_as_in_pycocoevalcap(caption):
    captions = [caption] * len(REFERENCES)
    ours = scorer_of(REFERENCES).score(list(REFERENCES), captions)
    np.testing.assert_allclose(ours, pycocoevalcap_scores(REFERENCES, captions), rtol=0, atol=1e-12)


def test_a_caption_scores_the_same_alone_and_in_a_batch():
    scorer = scorer_of(REFERENCES)
    videos = [video for video in REFERENCES for _ in range(3)] * 300
    captions = ["a man runs", "a zebra runs", "the dog's bowl"] * 1200
    batch = scorer.score(videos, captions)
    assert batch.dtype == np.float64
    for place in (0, 5, 7, 2500, 3599):
        assert scorer.score([videos[place]], [captions[place]])[0] == batch[place]


def test_frequencies_are_those_given_not_those_of_the_references():
    few = {"video0": REFERENCES["video0"]}
    whole = scorer_of(REFERENCES).score(["video0"], ["a man runs"])
    frozen = CiderD(few, DocumentFrequencies.from_references(REFERENCES)).score(["video0"], ["a man runs"])
    own = scorer_of(few).score(["video0"], ["a man runs"])
    assert frozen == whole
    assert own == 0.0  # one document: every n-gram is in all of them


def test_references_outside_the_frequencies_weigh_as_the_rarest():
    df = DocumentFrequencies.from_references(REFERENCES)
    scorer = CiderD({"new": ["a giraffe eats", "giraffe"]}, df)
    assert scorer.score(["new"], ["a giraffe eats"])[0] > scorer.score(["new"], ["a"])[0]


def test_a_caption_without_its_end_scores_lower():
    scorer = scorer_of(REFERENCES, end_token=True)
    ended, cut = scorer.score(["video1"] * 2, ["a dog runs"] * 2, [True, False])
    assert ended > cut
    assert scorer.score(["video1"], ["a dog runs"])[0] == ended


def test_no_captions_give_no_scores():
    assert scorer_of(REFERENCES).score([], []).shape == (0,)


def test_memory_does_not_grow_with_calls():
    scorer, rng = scorer_of(REFERENCES), random.Random(0)

    def calls():
        for _ in range(10):
            scorer.score(["video0"] * 20, [f"a w{rng.random()} man" for _ in range(20)])
        gc.collect()
        ours = [tracemalloc.Filter(True, "*/videoblip2/captions/*")]  # other threads of the tests allocate as well
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)

    tracemalloc.start()
    calls()
    before, after = calls(), calls()
    tracemalloc.stop()
    assert after - before < 7_000


def test_mistakes_are_named():
    scorer = scorer_of(REFERENCES)
    with pytest.raises(InputError, match="video9"):
        scorer.score(["video9"], ["a dog"])
    with pytest.raises(InputError, match="2 video ids, 1 captions"):
        scorer.score(["video0", "video1"], ["a dog"])
    with pytest.raises(InputError, match="end marks"):
        scorer.score(["video0"], ["a dog"], [True, False])
    with pytest.raises(InputError, match="video5"):
        CiderD({"video5": []}, DocumentFrequencies.from_references(REFERENCES))


@pytest.fixture(scope="module")
def msrvtt_test():
    """References of 300 test videos and a caption for each: its own, its own and a word, or another video's."""
    if not MSRVTT.is_dir():
        pytest.skip("shared/data/msrvtt is absent")
    with zipfile.ZipFile(MSRVTT / "test_videodatainfo.json.zip") as archive:
        sentences = json.loads(archive.read("test_videodatainfo.json"))["sentences"]
    references = {}
    for sentence in sentences:
        references.setdefault(sentence["video_id"], []).append(sentence["caption"])
    rng = random.Random(0)
    references = {video: references[video] for video in rng.sample(list(references), 300)}
    others = list(references.values())
    choices = [lambda group: rng.choice(group) + " today", lambda _: rng.choice(rng.choice(others)), rng.choice]
    return references, [rng.choice(choices)(group) for group in others]


@pytest.mark.shared_data
def test_msrvtt_videos_score_as_in_pycocoevalcap_and_far_faster(msrvtt_test):
    references, captions = msrvtt_test
    ended = [place % 5 > 0 for place in range(len(captions))]
    scorer, videos = scorer_of(references, end_token=True), list(references)
    started = time.process_time()
    ours = scorer.score(videos, captions, ended)
    took = time.process_time() - started
    started = time.process_time()
    theirs = pycocoevalcap_scores(references, captions, True, ended)
    assert (time.process_time() - started) / took > 15
    assert np.abs(ours - theirs).max() <= 1e-9
