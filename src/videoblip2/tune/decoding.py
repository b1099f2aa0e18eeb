"""One trial of decoding: the model captions the validation videos with other settings, without training.

Every video's CIDEr-D is reported by the video's number, in the same shuffled order in all trials, so that the Wilcoxon
test pairs a trial with the best one on the videos they share, and stops it part of the way.
"""

import json
import random
from dataclasses import dataclass

import optuna

from videoblip2.captioner import Captioner
from videoblip2.captions import CiderD, DocumentFrequencies
from videoblip2.captions.metrics import PRIMARY
from videoblip2.config import Config, flatten
from videoblip2.data.annotations import read_annotations, require_features
from videoblip2.data.batches import CachedFeatures
from videoblip2.predict import open_model
from videoblip2.progress import Progress
from videoblip2.tracking import RunSpec, Tracker, open_run
from videoblip2.tune.plan import Plan
from videoblip2.tune.study import name_of
from videoblip2.tune.trials import Runner, Score, Watcher

#: Settings of the study that replace those of the tuned model's checkpoint.
OF_STUDY = ("data.annotations", "data.features", "device", "decode.compile")


@dataclass(frozen=True)
class Bench:
    """A loaded model with the validation videos. order: video ids as they are captioned."""

    captioner: Captioner
    features: CachedFeatures
    references: dict[str, tuple[str, ...]]
    order: list[str]
    scorer: CiderD


def open_bench(plan: Plan) -> Bench:
    """Load model and data, once for all trials of a process."""
    settings = flatten(plan.base)
    opened = open_model(str(plan.tuning.tuned_model), [f"{key}={json.dumps(settings[key])}" for key in OF_STUDY])
    videos = require_features(read_annotations(opened.annotations("val.json")), opened.store, "val.json")
    references = {video.video_id: video.captions for video in videos}
    order = sorted(references)
    random.Random(0).shuffle(order)
    scorer = CiderD(references, DocumentFrequencies.from_references(references))
    return Bench(opened.captioner, CachedFeatures(opened.store), references, order, scorer)


def decoding_runner(plan: Plan) -> Runner:
    """Trials that caption with `plan`'s model."""
    bench = open_bench(plan)

    def run(trial: optuna.Trial, watcher: Watcher, progress: Progress) -> Score:
        config = plan.config_of(trial.params)
        enabled, experiment = config.run.tracking, config.run.experiment
        name, parent = name_of(trial), watcher.parent_run_id
        with open_run(RunSpec("decode", name, experiment, enabled, watcher.run_id, parent_run_id=parent)) as tracker:
            watcher.opened(tracker)
            return decode_trial(bench, config, watcher, tracker, str(plan.tuning.tuned_model), progress)

    return run


def decode_trial(
    bench: Bench, config: Config, watcher: Watcher, tracker: Tracker, model: str, progress: Progress
) -> Score:
    """Caption video by video, report each score, ask the pruner after each batch."""
    tracker.set_tags({"model": model})
    tracker.log_config({key: value for key, value in flatten(config).items() if key.startswith("decode.")})
    scores: dict[str, float] = {}
    rows = []
    stream = bench.captioner.caption_videos(bench.order, bench.features, config.decode)
    for number, (video_id, caption) in enumerate(
        progress(stream, len(bench.order), watcher.tracker.run_id or "decode")
    ):
        scores[video_id] = float(bench.scorer.score([video_id], [caption.text])[0])
        rows.append({"video_id": video_id, "caption": caption.text, PRIMARY: round(scores[video_id], 4)})
        watcher.report(number, scores[video_id])
        if (number + 1) % config.decode.batch_size == 0 and number + 1 < len(bench.order):
            watcher.stop_if_pruned(number)
    cider = sum(scores.values()) / len(scores)
    tracker.log_best({f"val/{PRIMARY}": cider})
    tracker.log_table("predictions", sorted(rows, key=lambda row: str(row["video_id"])))
    return Score(cider, [round(scores[video_id], 5) for video_id in sorted(scores)], model)
