"""Does CIDEr-D want bad endings? What cutting and lengthening captions earns, with and without the end token.

    python tools/endings.py DATA PREDICTIONS

DATA: a folder with train.json and val.json (`vb2 data prepare`). PREDICTIONS: a run's val_predictions.jsonl.

Without the end token in the reward, captions are said to learn to end on "in a" (Rennie et al. 2017, appendix E). The
gradient goes that way only where such an ending earns more than the caption itself: this measures how often it does.
"""

import sys
from pathlib import Path

import numpy as np

from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.captions.predictions import read_rows
from videoblip2.data.annotations import read_annotations

TAILS = ("a", "in", "on", "with", "in a", "on a", "with a", "of a", "to a", "and a", "in the", "on the")
BAD = frozenset("a the in on of with and to at for from is".split())  # noqa: SIM905


def main(data: Path, predictions: Path) -> None:
    references, training = (
        {video.video_id: list(video.captions) for video in read_annotations(data / f"{split}.json")}
        for split in ("val", "train")
    )
    rows = read_rows(predictions, "captions")
    ids, captions = [row.video_id for row in rows], [row.text for row in rows]
    for end_token in (True, False):
        scorer = CiderD(references, DocumentFrequencies.from_references(training, end_token=end_token))
        report("with" if end_token else "without", scorer, ids, captions)


def report(name: str, scorer: CiderD, ids: list[str], captions: list[str]) -> None:
    """One line: mean changes in CIDEr-D times 100, and how often there is a gain."""

    def score(texts: list[str]) -> np.ndarray:
        return 100 * np.asarray(scorer.score(ids, texts, ended=[True] * len(ids)))

    own = score(captions)
    longer = np.stack([score([f"{caption} {tail}" for caption in captions]) - own for tail in TAILS])
    words = [caption.split() for caption in captions]
    cut = score([" ".join(some[:-1]) or "a" for some in words]) - own
    bad = np.array([len(some) > 2 and some[-2] in BAD for some in words])
    best = int(longer.mean(axis=1).argmax())
    print(
        f"{name} the end token: captions {own.mean():.1f}; with '{TAILS[best]}' behind, the best of {len(TAILS)}, "
        f"{longer[best].mean():+.1f}; some tail gains for {(longer.max(axis=0) > 0).mean():.0%}; last word cut where "
        f"that ends badly ({bad.sum()} of {len(bad)}): {cut[bad].mean():+.1f}, a gain for {(cut[bad] > 0).mean():.0%}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
