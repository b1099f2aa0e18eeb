"""`vb2 demo`: every stage in order, by the functions that the other commands call, to a served champion's caption."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from videoblip2.cli.output import emit, progress, table

if TYPE_CHECKING:
    from videoblip2.config import Config
    from videoblip2.training.evaluation import EvaluationResult
    from videoblip2.training.stage import StageResult

T = TypeVar("T")

VIDEOS = 700
LANGUAGE_MODEL_STEPS = 250
SEED = 0
FPS = 4.0
WINDOW_SECONDS = 1.0
EXPERIMENTS = Path("experiments")
REGISTERED = "videoblip2"


@dataclass
class Demo:
    """What the demo has made so far."""

    out: Path
    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, "StageResult"] = field(default_factory=dict)
    tests: dict[str, "EvaluationResult"] = field(default_factory=dict)
    trivial: float = 0.0
    version: int = 0

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.started:5.0f} s] {text}", flush=True)

    @property
    def videos(self) -> Path:
        return self.out / "toy" / "videos"

    @property
    def data(self) -> Path:
        return self.out / "data"


def run_demo(out: Path, json: bool) -> None:
    """Do the stages, print the table, three captions and what to type next."""
    import torch

    from videoblip2.cli.demo_server import served_captions

    torch.set_num_threads(1)  # small tensors: two processes use two cores better than two threads of one
    demo = Demo(out)
    write_annotations(demo)
    with beside(train_language_model, demo, load(demo, "ce")) as language_model:
        render(demo)
        extract(demo)
        demo.say("3/8 language model: a small T5 on the training captions, frozen from here on")
        language_model.result()
    with beside(train_one_modality, demo) as single:
        train_both(demo)
        demo.say("6/8 cross-entropy with video only and with audio only, beside the others since the start")
        demo.stages.update(single.result())
    crown(demo)
    with served_captions(demo.say) as ask:
        test(demo)
        served = ask(demo.videos / f"{example_ids(demo)[0]}.mp4")
    report(demo, served, json)


@contextmanager
def beside(function: Callable[..., T], *arguments: Any) -> Iterator["Future[T]"]:
    """Run `function` in a process of its own while the block goes on; leave only when it has ended."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _one_thread) as pool:
        yield pool.submit(function, *arguments)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def write_annotations(demo: Demo) -> None:
    from videoblip2.data.annotations import read_annotations
    from videoblip2.data.prepare import prepare_captions
    from videoblip2.data.top5 import select_top5
    from videoblip2.files import write_json
    from videoblip2.toy.world import write_toy_annotations

    prepare_captions(list(write_toy_annotations(demo.out / "toy", VIDEOS, SEED)), demo.data)
    videos = [asdict(video) for video in read_annotations(demo.data / "train.json")]
    write_json(demo.data / "train_top5_detail.json", select_top5(videos))


def render(demo: Demo) -> None:
    from videoblip2.features.media import write_video
    from videoblip2.toy.world import write_toy_world

    demo.say(f"1/8 toy world: {VIDEOS} videos with sound, 20 captions each → {demo.out / 'toy'}")
    write_toy_world(demo.out / "toy", VIDEOS, SEED, write_video, progress=progress)


def extract(demo: Demo) -> None:
    from videoblip2.features.encoders import load_clap, load_clip
    from videoblip2.features.extract import extract_features
    from videoblip2.features.settings import FeatureSettings
    from videoblip2.toy.encoders import build_toy_clap, build_toy_clip

    demo.say("2/8 features: CLIP [F,768] and CLAP [A,512] of every video, by small random-weight encoders")
    encoders = demo.out / "encoders"
    build_toy_clip(encoders / "clip", SEED)
    build_toy_clap(encoders / "clap", SEED)
    clip, clap = load_clip(encoders / "clip"), load_clap(encoders / "clap")
    settings = FeatureSettings(fps=FPS, window_seconds=WINDOW_SECONDS)
    videos = sorted(demo.videos.glob("*.mp4"))
    extract_features(videos, demo.out / "features", clip, clap, settings, progress)


def train_language_model(demo: Demo, config: "Config") -> None:
    from videoblip2.data.annotations import read_annotations
    from videoblip2.toy import language_model

    settings = language_model.LanguageModelConfig(steps=LANGUAGE_MODEL_STEPS, batch_size=48)
    videos = read_annotations(demo.data / "train.json")
    language_model.train_language_model(videos, [config.data.prompt], demo.out / "lm", settings)


def train_both(demo: Demo) -> None:
    from videoblip2.training.stage import run_stage

    demo.say("4/8 cross-entropy, video and audio")
    demo.stages["ce"] = run_stage("ce", load(demo, "ce", "run.name=ce"), progress)
    demo.say("5/8 self-critical training on CIDEr-D, from the cross-entropy checkpoint")
    start = demo.stages["ce"].run_id
    demo.stages["scst"] = run_stage("scst", load(demo, "scst", "run.name=scst", f"train.start_from={start}"), progress)


def train_one_modality(demo: Demo) -> dict[str, "StageResult"]:
    from videoblip2.training.stage import run_stage

    configs = {m: load(demo, "ce", f"run.name={m}-only", f"model.modalities={m}") for m in ("video", "audio")}
    return {f"{modality}_only": run_stage("ce", config) for modality, config in configs.items()}


def load(demo: Demo, stage: str, *overrides: str) -> "Config":
    """A stage's experiment file, with the paths of this demo."""
    from videoblip2.config import InputError, load_config

    path = EXPERIMENTS / f"toy_{stage}.yaml"
    if not path.exists():
        raise InputError(f"{path}: not here; run `vb2 demo` in the root of the repository")
    paths = [f"data.annotations={demo.data}", f"data.features={demo.out / 'features'}", f"run.out={demo.out / 'runs'}"]
    if stage == "ce":
        paths += [f"model.language_model={demo.out / 'lm/t5'}", f"model.qformer.bert={demo.out / 'lm/bert'}"]
    return load_config(path, [*paths, *overrides])


def crown(demo: Demo) -> None:
    """Hold the gate over the winner by validation score; an earlier champion that is no worse stays."""
    from videoblip2.captions.metrics import PRIMARY, label_of, shown
    from videoblip2.config import InputError
    from videoblip2.registry.promote import Request, promote

    best = max((demo.stages["ce"], demo.stages["scst"]), key=lambda stage: stage.metrics[PRIMARY])
    gate = promote(Request(best.model, REGISTERED, EXPERIMENTS / "toy_gate.yaml"), progress)
    failed = "; ".join(gate.verdict.failed)
    if not gate.promoted and gate.previous is None:
        raise InputError(
            f"the gate holds {best.name} back ({failed}), and there is no champion to serve; see {best.run_id}"
        )
    demo.version = gate.version if gate.promoted else int(gate.previous or 0)
    gain = f"{label_of(PRIMARY)} {shown(PRIMARY, gate.verdict.gain.difference, '+')} beside {gate.opponent}"
    demo.say(
        f"7/8 the gate: {best.name}, {gain}{f'; held back: {failed}' if failed else ''}\n"
        f"         champion: models:/{REGISTERED}/{demo.version}\n"
        "         8/8 evaluation on the test split, and serving"
    )


def test(demo: Demo) -> None:
    from videoblip2.captions import typical_caption
    from videoblip2.captions.metrics import PRIMARY, default_metrics
    from videoblip2.data.annotations import read_annotations
    from videoblip2.evaluate import evaluate
    from videoblip2.training.evaluation import evaluate_model

    for name, stage in demo.stages.items():
        metrics = default_metrics(fast=name.endswith("_only"))
        path = demo.out / f"test-{name}.jsonl"
        demo.tests[name] = evaluate_model(str(stage.run_id), "test", out=path, metrics=metrics)
    train = {video.video_id: video.captions for video in read_annotations(demo.data / "train.json")}
    references = {video.video_id: video.captions for video in read_annotations(demo.data / "test.json")}
    same = typical_caption(train)
    demo.trivial = evaluate(dict.fromkeys(references, same), references, [PRIMARY]).corpus[PRIMARY]


def example_ids(demo: Demo) -> list[str]:
    """The first three test videos."""
    from videoblip2.data.annotations import read_annotations

    return [video.video_id for video in read_annotations(demo.data / "test.json")[:3]]


def report(demo: Demo, served: dict[str, Any], json: bool) -> None:
    from videoblip2.captions.metrics import PRIMARY

    seconds = time.perf_counter() - demo.started
    result: dict[str, Any] = {
        name: {"cider": test.metrics[PRIMARY], "run_id": demo.stages[name].run_id} for name, test in demo.tests.items()
    }
    result["trivial"] = {"cider": demo.trivial, "run_id": None}
    result["seconds"] = round(seconds, 1)
    parts = [results_table(demo), *examples(demo), served_line(served), next_commands(demo), f"{seconds:.0f} seconds"]
    emit(result, json, "\n\n".join(parts))


LABELS = {
    "ce": "CE (video + audio)",
    "scst": "CE, then SCST",
    "video_only": "CE, video only",
    "audio_only": "CE, audio only",
}


def results_table(demo: Demo) -> str:
    from videoblip2.captions.metrics import PRIMARY, label_of, shown, summary_metrics

    names = summary_metrics(demo.tests["ce"].metrics)
    columns = ["model", *map(label_of, names), "run id"]
    rows = []
    for name in LABELS:
        scores = demo.tests[name].metrics
        values = [shown(key, scores[key]) if key in scores else "" for key in names]
        rows.append([LABELS[name], *values, str(demo.stages[name].run_id)])
    trivial = [shown(PRIMARY, demo.trivial) if key == PRIMARY else "" for key in names]
    rows.append(["most typical training caption", *trivial, ""])
    size = demo.tests["ce"].videos
    return table(f"Toy world, test split ({size} videos, none seen in training)", columns, rows)


def examples(demo: Demo) -> list[str]:
    texts = []
    for video_id in example_ids(demo):
        scst, ce = demo.tests["scst"].evaluation, demo.tests["ce"].evaluation
        texts.append(
            f"{demo.videos / (video_id + '.mp4')}\n"
            f"  reference  {scst.references[video_id][0]}\n"
            f"  CE         {ce.captions[video_id]}\n"
            f"  SCST       {scst.captions[video_id]}"
        )
    return texts


def served_line(served: dict[str, Any]) -> str:
    return f"served by bentoml, version {served['model_version']}: {served['caption']}"


def next_commands(demo: Demo) -> str:
    video = demo.videos / f"{example_ids(demo)[0]}.mp4"
    return "\n".join(
        [
            "Next:",
            "  mlflow ui                                       # compare the runs at http://127.0.0.1:5000",
            f"  vb2 caption models:/{REGISTERED}@champion {video}",
            "  bentoml serve                                   # then, in another terminal:",
            f"  curl -s http://127.0.0.1:3000/caption -F video=@{video}",
            "  vb2 scst experiments/toy_scst.yaml scst.baseline=leave_one_out",
        ]
    )
