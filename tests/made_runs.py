"""Runs with captions, made without training: what a comparison reads back."""

from videoblip2.captions.metrics import default_metrics
from videoblip2.config import flatten, parse_config
from videoblip2.evaluate import evaluate
from videoblip2.tracking import RunSpec, open_run
from videoblip2.training.record import log_predictions

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "star", "ring")
MOVES = ("moves left", "moves right", "jumps", "stands still")


def made_references(videos=24):
    """video id → three captions that name color, shape and move."""
    references = {}
    for n in range(videos):
        color, shape, move = COLORS[n % 6], SHAPES[n // 6 % 4], MOVES[(n + n // 6) % 4]
        references[f"video{n}"] = (
            f"a {color} {shape} {move} slowly",
            f"the {color} {shape} {move}",
            f"there is a {shape} that {move}",
        )
    return references


def made_captions(references, right):
    """The first reference where `right(n)`, else a caption with the wrong shape and color."""
    return {
        video: texts[0] if right(n) else f"a black cube {texts[0].split(' ', 3)[3]}"
        for n, (video, texts) in enumerate(references.items())
    }


def made_evaluation(right, references=None):
    references = references or made_references()
    categories = {video: n % 3 for n, video in enumerate(references)}
    return evaluate(made_captions(references, right), references, default_metrics(fast=True), categories)


def make_run(folder, name, right, *overrides, stage="ce", references=None, tags=None, split="val", curve=()):
    """Log a run with configuration, scores and captions; return its id."""
    result = made_evaluation(right, references)
    with open_run(RunSpec(stage, name, "toy")) as tracker:
        tracker.log_config(flatten(parse_config({}, overrides)))
        tracker.set_tags({"seed": "0", **(tags or {})})
        tracker.log_data(f"toy/{split}.json", "ab" * 6, split)
        for step, value in curve:
            tracker.log_metrics({"val/CIDEr": value}, step)
        tracker.log_best({f"val/{key}": value for key, value in result.corpus.items()})
        log_predictions({"captions": folder / f"{name}.jsonl"}, split, result, 200, tracker)
    return tracker.run_id
