"""The top-5-detail subset: captions of each video that agree with the others, are detailed, and differ from each other.

The half with the highest leave-one-out CIDEr-D passes a gate; among those, captions are chosen one by one for their
length and the new words they add; near-duplicates are skipped (docs/decisions/0002).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from videoblip2.captions import DocumentFrequencies, leave_one_out, tokenize
from videoblip2.errors import Progress, no_progress

# Jaccard overlaps of two captions' words above which the second adds nothing new, and above which it is the same.
TOO_ALIKE, THE_SAME = 0.7, 0.999
DETAIL = "detail"  # passed the gate, chosen for its length and new words
CONSENSUS = "consensus"  # too few captions differ enough: the next distinct one by consensus
REPETITION = "repetition"  # the video has too few distinct captions
BLOCK = 1024  # videos scored at once; each block copies the table of n-grams
OUTLIER = 0.1  # captions with a lower consensus are outliers (pycocoevalcap's scale)


@dataclass
class Selection:
    """Videos with their chosen captions, the count of each reason, and means over videos of all and chosen captions.

    `words` per caption, `consensus` (leave-one-out CIDEr-D, pycocoevalcap's scale), `outliers` (share with a consensus
    below 0.1), `different captions` and `different words` per video, `overlap` of two captions' words (Jaccard).
    """

    videos: list[dict[str, Any]] = field(default_factory=list)  # entries of an annotation file, with all their keys
    all_captions: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


def select_top5(videos: Sequence[Mapping[str, Any]], keep: int = 5, progress: Progress = no_progress) -> Selection:
    """Select `keep` captions of each video (all, if there are fewer), most detailed first.

    videos: entries of an annotation file, extended by `scores` (the consensus of each caption) and `selected_by`.
    """
    references = {str(video["video_id"]): [str(text) for text in video["captions"]] for video in videos}
    df = DocumentFrequencies.from_references(references)
    selection, whole, part = Selection(), Counter[str](), Counter[str]()
    blocks = range(0, len(videos), BLOCK)
    for start in progress(blocks, len(blocks), "top 5"):
        block = videos[start : start + BLOCK]
        names = [str(video["video_id"]) for video in block]
        consensus = leave_one_out({name: references[name] for name in names}, df)
        for name, video in zip(names, block, strict=True):
            tokens, scores = [tokenize(text) for text in references[name]], consensus[name].tolist()
            chosen = _choose(tokens, scores, keep)
            kept = {
                "captions": [video["captions"][place] for place, _ in chosen],
                "scores": [scores[place] for place, _ in chosen],
                "selected_by": [reason for _, reason in chosen],
            }
            selection.videos.append({**video, **kept})
            whole.update(_statistics(tokens, scores))
            part.update(_statistics([tokens[place] for place, _ in chosen], kept["scores"]))
    count = max(1, len(videos))
    selection.all_captions, selection.chosen = ({n: v / count for n, v in sums.items()} for sums in (whole, part))
    selection.reasons = dict(Counter(reason for video in selection.videos for reason in video["selected_by"]))
    return selection


def _statistics(tokens: list[list[str]], scores: list[float]) -> dict[str, float]:
    words = [frozenset(caption) for caption in tokens]
    shared = [len(one & two) / max(1, len(one | two)) for one, two in combinations(words, 2)]
    return {
        "words": sum(map(len, tokens)) / len(tokens),
        "consensus": sum(scores) / len(scores),
        "outliers": sum(score < OUTLIER for score in scores) / len(scores),
        "different captions": len({tuple(caption) for caption in tokens}),
        "different words": len(frozenset().union(*words)),
        "overlap": sum(shared) / max(1, len(shared)),
    }


def _choose(tokens: list[list[str]], scores: list[float], keep: int) -> list[tuple[int, str]]:
    ranked = sorted(range(len(tokens)), key=lambda place: -scores[place])
    gate = max(keep, (len(tokens) + 1) // 2)
    chosen = [(place, DETAIL) for place in _detailed(ranked[:gate], tokens, scores, keep)]
    for reason, limit in ((CONSENSUS, THE_SAME), (REPETITION, 1.0)):
        for place in ranked:
            taken = [other for other, _ in chosen]
            if len(taken) < keep and place not in taken and not _repeats(tokens, place, taken, limit):
                chosen.append((place, reason))
    return chosen


def _detailed(gate: Sequence[int], tokens: list[list[str]], scores: list[float], keep: int) -> list[int]:
    """Greedily choose captions with the most words, counting new words twice; the consensus breaks ties."""
    chosen: list[int] = []
    said, waiting = set[str](), list(gate)
    while waiting and len(chosen) < keep:
        best = max(waiting, key=lambda place: (len(tokens[place]) + len(set(tokens[place]) - said), scores[place]))
        waiting.remove(best)
        if not _repeats(tokens, best, chosen, TOO_ALIKE):
            chosen.append(best)
            said.update(tokens[best])
    return chosen


def _repeats(tokens: list[list[str]], place: int, chosen: Sequence[int], limit: float) -> bool:
    """Whether a caption's words overlap by more than `limit` with those of a chosen one."""
    own = set(tokens[place])
    return any(len(own & set(tokens[other])) > limit * len(own | set(tokens[other])) for other in chosen)
