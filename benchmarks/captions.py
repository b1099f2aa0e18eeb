"""Captions to numbers: this project beside pycocoevalcap (with its Java tokeniser), same captions, same run, as ratios.

    python benchmarks/captions.py [--quick] [--json]

--quick takes under a minute; --json puts one object on the last line. The captions are MSR-VTT's test captions where
its official file lies beside the project (shared/data/msrvtt), otherwise made up from a small vocabulary. All on one
core but for what Java does by itself; the best of three runs counts, of one run for what takes pycocoevalcap long.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from videoblip2.captions import CiderD, DocumentFrequencies, paired_bootstrap, tokenize

MSRVTT = Path(__file__).resolve().parents[2] / "shared" / "data" / "msrvtt" / "test_videodatainfo.json.zip"
STEP_VIDEOS, STEP_SAMPLES = 32, 6  # one SCST step: a greedy caption and five samples of each video

References = dict[str, list[str]]
Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 videos instead of 2,990")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    source, references = read_references(500 if options.quick else 2990)
    rng = random.Random(0)
    everything = list(references.values())
    captions = {video: rng.choice(rng.choice(everything)) for video in references}
    df = DocumentFrequencies.from_references(references)
    rows = [*scoring_rows(references, captions, df), *step_rows(references, df, rng), *tokenising_rows(references)]
    report = {"source": source, "videos": len(references), "rows": rows, "alone": alone(df, references)}
    print_report(report)
    if options.json:
        print(json.dumps(report))


def read_references(num_videos: int) -> tuple[str, References]:
    """References of up to `num_videos` videos, 20 each, and where they come from."""
    if MSRVTT.is_file():
        with zipfile.ZipFile(MSRVTT) as archive:
            sentences = json.loads(archive.read("test_videodatainfo.json"))["sentences"]
        references: References = {}
        for sentence in sentences:
            references.setdefault(sentence["video_id"], []).append(sentence["caption"])
        return "MSR-VTT test captions", dict(list(references.items())[:num_videos])
    rng = random.Random(0)
    vocabulary = ["a", "the", "is", "in"] * 40 + [f"word{n}" for n in range(2000)]
    made_up = {f"video{v}": [" ".join(rng.choices(vocabulary, k=9)) for _ in range(20)] for v in range(num_videos)}
    return "made-up captions", made_up


def scoring_rows(references: References, captions: dict[str, str], df: DocumentFrequencies) -> list[dict[str, Any]]:
    """CIDEr-D of one caption for each video: from raw text here, from tokens only there."""
    scorer, videos, texts = CiderD(references, df), list(references), list(captions.values())
    tokens = {video: [" ".join(tokenize(text)) for text in group] for video, group in references.items()}
    hypotheses = {video: [" ".join(tokenize(text))] for video, text in captions.items()}
    ours, scores = fastest(lambda: scorer.score(videos, texts))
    theirs, (_, expected) = fastest(lambda: Cider().compute_score(tokens, hypotheses), runs=1)
    gap = float(np.abs(np.asarray(scores) - expected).max())
    return [row("CIDEr-D, raw text against pycocoevalcap's tokens", len(texts), ours, theirs, gap)]


def step_rows(references: References, df: DocumentFrequencies, rng: random.Random) -> list[dict[str, Any]]:
    """The reward of one SCST step; loops on pycocoevalcap start Java and cook the references again for each."""
    if shutil.which("java") is None:
        return []
    scorer = CiderD(references, df)
    videos = [video for video in rng.sample(list(references), STEP_VIDEOS) for _ in range(STEP_SAMPLES)]
    texts = [rng.choice(references[rng.choice(list(references))]) for _ in videos]

    def theirs_step() -> None:
        gts = java_tokens({place: references[video] for place, video in enumerate(videos)})
        res = java_tokens({place: [text] for place, text in enumerate(texts)})
        Cider().compute_score(gts, res)

    ours, _ = fastest(lambda: scorer.score(videos, texts))
    theirs, _ = fastest(theirs_step)
    return [row(f"reward of one step, {STEP_VIDEOS} videos x {STEP_SAMPLES} captions", len(texts), ours, theirs)]


def tokenising_rows(references: References) -> list[dict[str, Any]]:
    """Tokenising a batch and the whole corpus, and whether the tokens agree."""
    if shutil.which("java") is None:
        return []
    everything = [text for group in references.values() for text in group]
    return [tokenising_row(texts) for texts in (everything[: STEP_VIDEOS * STEP_SAMPLES], everything)]


def tokenising_row(texts: list[str]) -> dict[str, Any]:
    ours, tokens = fastest(lambda: [" ".join(tokenize(text)) for text in texts])
    theirs, java = fastest(lambda: java_tokens({0: texts})[0])
    differing = sum(one != other for one, other in zip(tokens, java, strict=True))
    return row(f"tokenise {len(texts):,} captions", len(texts), ours, theirs) | {"differing": differing}


def java_tokens(captions: dict[int, list[str]]) -> dict[int, list[str]]:
    tokenizer: Any = PTBTokenizer()
    tokens: dict[int, list[str]] = tokenizer.tokenize(
        {key: [{"caption": text} for text in group] for key, group in captions.items()}
    )
    return tokens


def alone(df: DocumentFrequencies, references: References) -> dict[str, float]:
    """Seconds for what has no counterpart in pycocoevalcap."""
    with tempfile.TemporaryDirectory() as folder:
        df.save(Path(folder) / "df")
        load, _ = fastest(lambda: DocumentFrequencies.load(Path(folder) / "df"))
        size = (Path(folder) / "df").stat().st_size
    scores = np.random.default_rng(0).normal(size=2990)
    bootstrap, _ = fastest(lambda: paired_bootstrap(scores, np.zeros(2990)), runs=1)
    prepare, _ = fastest(lambda: CiderD(references, df), runs=1)
    return {
        "n-grams": sum(map(len, df.counts)),
        "file, bytes": size,
        "load document frequencies, s": load,
        "prepare references, s": prepare,
        "bootstrap 10,000 x 2,990, s": bootstrap,
    }


def fastest(call: Callable[[], Result], runs: int = 3) -> tuple[float, Result]:
    """Seconds of the fastest run, and what the last one returned; its prints are swallowed."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            result = call()
        times.append(time.perf_counter() - started)
    return min(times), result


def row(what: str, number: int, ours: float, theirs: float, gap: float | None = None) -> dict[str, Any]:
    return {
        "what": what,
        "ours_per_s": number / ours,
        "pycocoevalcap_per_s": number / theirs,
        "ratio": theirs / ours,
    } | ({} if gap is None else {"largest_difference": gap})


def print_report(report: dict[str, Any]) -> None:
    print(f"{report['source']}, {report['videos']} videos")
    print(f"{'':52}{'captions/s':>12}{'pycocoevalcap':>15}{'ratio':>8}")
    for entry in report["rows"]:
        print(
            f"{entry['what']:52}{entry['ours_per_s']:12,.0f}{entry['pycocoevalcap_per_s']:15,.0f}{entry['ratio']:7.1f}x"
            + (f"  largest difference {entry['largest_difference']:.1e}" if "largest_difference" in entry else "")
            + (f"  {entry['differing']} differ" if "differing" in entry else "")
        )
    if len(report["rows"]) == 1:
        print("the Java tokeniser is unavailable: java not found")
    for what, value in report["alone"].items():
        print(f"{what:52}{value:12,.3f}" if isinstance(value, float) else f"{what:52}{value:12,}")


if __name__ == "__main__":
    main()
