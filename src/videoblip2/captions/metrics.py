"""The field's caption metrics through pycocoevalcap, corpus-wide and per video, and the diversity of a set of captions.

Deviations from `COCOEvalCap.evaluate`, none of which changes a number: captions are tokenised in Python (same
tokens), METEOR and SPICE (Java) run beside the others, and a metric that cannot run is named with the reason where
COCOEvalCap would crash.
"""

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from videoblip2.captions.frequencies import check_references
from videoblip2.captions.rewards import bad_ending
from videoblip2.captions.tokenizer import tokenize
from videoblip2.config import InputError

BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
METRICS = (*BLEU, "METEOR", "ROUGE_L", "CIDEr", "SPICE")
NO_JAVA = "java not found"
NO_SPICE_MODELS = (
    "SPICE's model files are absent; fetch them once with network access: "
    "python -c 'from pycocoevalcap.spice.spice import Spice; Spice()'"
)

Tokenised = dict[str, list[str]]  # video id → captions, tokens joined by single spaces
Scores = dict[str, tuple[float, dict[str, float]]]  # metric → corpus value, value by video id


class CaptionMetrics(NamedTuple):
    """Scores of a set of captions, in pycocoevalcap's own scales."""

    corpus: dict[str, float]  # metric → value
    per_video: dict[str, dict[str, float]]  # video id → metric → value
    unavailable: dict[str, str]  # metric → why it could not be computed


def caption_metrics(
    references: Mapping[str, Sequence[str]], captions: Mapping[str, str], metrics: Sequence[str] | None = None
) -> CaptionMetrics:
    """Scores one caption a video as `COCOEvalCap` does.

    Args:
        references: raw reference captions by video id.
        captions: one raw caption for each of the same videos. CIDEr takes its document frequencies from these
            references.
        metrics: some of METRICS; None for all. METEOR and SPICE need Java.

    Raises InputError for an unknown metric, a video without references, and a video on one side only.
    """
    wanted = METRICS if metrics is None else tuple(metrics)
    _check(references, captions, wanted)
    refs = {video: [" ".join(tokenize(text)) for text in references[video]] for video in references}
    hyps = {video: [" ".join(tokenize(captions[video]))] for video in references}
    if not any(text for group in refs.values() for text in group):
        raise InputError(f"references of video {next(iter(refs))!r} and the others hold no word: give real captions")
    missing = _missing(wanted)
    jobs = [job for names, job in _JOBS if set(names) & set(wanted) - set(missing)]
    with ThreadPoolExecutor(max_workers=len(_JOBS)) as pool:
        outcomes = list(pool.map(lambda job: job(refs, hyps), jobs))
    scores: Scores = {}
    for scored, failed in outcomes:
        scores |= scored
        missing |= failed
    return _table(wanted, list(references), scores, missing)


def diversity(captions: Mapping[str, str] | Sequence[str]) -> dict[str, float]:
    """How varied a set of captions is.

    Returns distinct_1 and distinct_2 (distinct n-grams over all n-grams; Li et al. 2016), vocabulary (distinct
    words), mean_length (words) and bad_endings (share of captions that stop on a word such as "a" or "with"); all 0
    for no captions.
    """
    texts = list(captions.values()) if isinstance(captions, Mapping) else list(captions)
    tokens = [tokenize(text) for text in texts]
    words = [word for caption in tokens for word in caption]
    pairs = [pair for caption in tokens for pair in pairwise(caption)]
    return {
        "distinct_1": len(set(words)) / max(1, len(words)),
        "distinct_2": len(set(pairs)) / max(1, len(pairs)),
        "vocabulary": float(len(set(words))),
        "mean_length": len(words) / max(1, len(tokens)),
        "bad_endings": sum(map(bad_ending, tokens)) / max(1, len(tokens)),
    }


def _check(references: Mapping[str, Sequence[str]], captions: Mapping[str, str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in METRICS:
            raise InputError(f"unknown metric {name!r}: choose from {', '.join(METRICS)}")
    for video in captions:
        if video not in references:
            raise InputError(f"video {video!r} has a caption but no references: add them or leave the caption out")
    check_references(references)
    for video in references:
        if video not in captions:
            raise InputError(f"video {video!r} has references but no caption: add it or leave the references out")


def _missing(wanted: Sequence[str]) -> dict[str, str]:
    """Metrics that cannot run here, with the reason."""
    missing = {}
    if shutil.which("java") is None:
        missing = {name: NO_JAVA for name in ("METEOR", "SPICE") if name in wanted}
    elif "SPICE" in wanted and not spice_models_present():
        missing = {"SPICE": NO_SPICE_MODELS}
    return missing


def spice_models_present() -> bool:
    """Whether the Stanford files that SPICE needs (pycocoevalcap downloads them on first use) lie in its folder."""
    spec = importlib.util.find_spec("pycocoevalcap.spice")
    folders = (spec.submodule_search_locations or []) if spec else []
    names = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
    return any(all((Path(folder) / "lib" / name).is_file() for name in names) for folder in folders)


def _table(
    wanted: Sequence[str], videos: Sequence[str], scores: Scores, unavailable: Mapping[str, str]
) -> CaptionMetrics:
    names = [name for name in wanted if name in scores]
    return CaptionMetrics(
        {name: scores[name][0] for name in names},
        {video: {name: scores[name][1][video] for name in names} for video in videos},
        {name: unavailable[name] for name in wanted if name in unavailable},
    )


def _in_python(refs: Tokenised, hyps: Tokenised) -> tuple[Scores, dict[str, str]]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    values, each = Bleu(4).compute_score(refs, hyps, verbose=0)
    scores = {name: _named(value, list(refs), one) for name, value, one in zip(BLEU, values, each, strict=True)}
    for name, metric in (("ROUGE_L", Rouge()), ("CIDEr", Cider())):
        value, per_video = metric.compute_score(refs, hyps)
        scores[name] = _named(value, list(refs), per_video)
    return scores, {}


def _meteor(refs: Tokenised, hyps: Tokenised) -> tuple[Scores, dict[str, str]]:
    from pycocoevalcap.meteor.meteor import Meteor

    try:
        value, per_video = Meteor().compute_score(refs, hyps)
    except (OSError, ValueError) as error:  # the process did not start, died, or answered something else than numbers
        return {}, {"METEOR": f"its Java process failed: {error}"}
    return {"METEOR": _named(value, list(refs), per_video)}, {}


def _spice(refs: Tokenised, hyps: Tokenised) -> tuple[Scores, dict[str, str]]:
    import subprocess

    from pycocoevalcap.spice.spice import Spice

    try:
        value, per_video = Spice().compute_score(refs, hyps)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return {}, {"SPICE": f"its Java process failed: {error}"}
    return {"SPICE": _named(value, sorted(refs), [score["All"]["f"] for score in per_video])}, {}


def _named(value: Any, videos: Sequence[str], per_video: Sequence[Any]) -> tuple[float, dict[str, float]]:
    return float(value), {video: float(score) for video, score in zip(videos, per_video, strict=True)}


_JOBS: tuple[tuple[tuple[str, ...], Callable[[Tokenised, Tokenised], tuple[Scores, dict[str, str]]]], ...] = (
    (("METEOR",), _meteor),
    (("SPICE",), _spice),
    ((*BLEU, "ROUGE_L", "CIDEr"), _in_python),
)
