"""The top-5-detail subset: of each video's captions, those that others agree with, that say much, and that differ.

Two stages (docs/decisions/0002): the half of the captions with the highest leave-one-out CIDEr-D passes the gate, which
keeps out what only one annotator saw; among those, captions are taken one by one for their length and the words that
they add to the ones taken before, and near-repetitions are passed over.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from videoblip2.captions import DocumentFrequencies, leave_one_out, tokenize
from videoblip2.config import InputError

# Jaccard overlap of two captions' words above which the second says nothing new, and above which it says the same.
TOO_ALIKE, THE_SAME = 0.7, 0.999

DETAIL = "detail"  # through the gate, for its length and new words
CONSENSUS = "consensus"  # too few captions differ that much: the next by consensus that is not the same
REPETITION = "repetition"  # the video has too few different captions


def select_top5(
    videos: Sequence[Mapping[str, Any]], df: DocumentFrequencies | None = None, keep: int = 5
) -> list[dict[str, Any]]:
    """Selects `keep` captions of each video, most detailed first.

    Args:
        videos: `{"video_id": …, "category": …, "captions": […]}`; a video with at most `keep` captions keeps them all.
        df: document frequencies for the consensus; None counts them in these captions.

    Returns the same with fewer captions and, caption by caption, `scores` (leave-one-out CIDEr-D against all captions
    of the video, pycocoevalcap's scale) and `selected_by` (DETAIL, CONSENSUS or REPETITION).
    Raises InputError for a video without captions and for keep < 1.
    """
    if keep < 1:
        raise InputError(f"keep={keep} captions a video: give at least 1")
    references = {str(video["video_id"]): [str(text) for text in video["captions"]] for video in videos}
    consensus = leave_one_out(references, df or DocumentFrequencies.from_references(references))
    return [_selected(video, consensus[str(video["video_id"])].tolist(), keep) for video in videos]


def _selected(video: Mapping[str, Any], scores: list[float], keep: int) -> dict[str, Any]:
    captions = list(video["captions"])
    chosen = _choose([tokenize(text) for text in captions], scores, keep)
    return {
        **video,
        "captions": [captions[place] for place, _ in chosen],
        "scores": [scores[place] for place, _ in chosen],
        "selected_by": [reason for _, reason in chosen],
    }


def _choose(tokens: list[list[str]], scores: list[float], keep: int) -> list[tuple[int, str]]:
    """Places of the chosen captions with the reason for each."""
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
    """Greedily the captions with the most words, each new word counted twice; the consensus decides between equals."""
    chosen: list[int] = []
    said: set[str] = set()
    waiting = list(gate)
    while waiting and len(chosen) < keep:
        best = max(waiting, key=lambda place: (len(tokens[place]) + len(set(tokens[place]) - said), scores[place]))
        waiting.remove(best)
        if not _repeats(tokens, best, chosen, TOO_ALIKE):
            chosen.append(best)
            said.update(tokens[best])
    return chosen


def _repeats(tokens: list[list[str]], place: int, chosen: Sequence[int], limit: float) -> bool:
    """Whether a caption shares more than `limit` of its words with one of the chosen."""
    own = set(tokens[place])
    return any(len(own & set(tokens[other])) > limit * len(own | set(tokens[other])) for other in chosen)
