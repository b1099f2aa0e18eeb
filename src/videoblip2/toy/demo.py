"""The whole path on generated videos, offline: features, a language model, both stages, the gate, a served caption.

Every step calls the function that the command of the same name calls.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from videoblip2.progress import Progress

if TYPE_CHECKING:
    from videoblip2.config import Config
    from videoblip2.toy.served import ServedCaption
    from videoblip2.training.evaluation import EvaluationResult
    from videoblip2.training.stage import StageResult

T = TypeVar("T")
Say = Callable[[str], None]

SEED = 0
REGISTERED = "videoblip2"


@dataclass(frozen=True)
class DemoSize:
    """How much the demo makes and trains. `forced`: too small to pass the gate, so its winner is promoted by force."""

    videos: int = 700
    language_model_steps: int = 250
    overrides: tuple[str, ...] = ()
    forced: bool = False


FULL = DemoSize()
#: Half a minute, to see whether everything works; its scores mean nothing.
QUICK = DemoSize(40, 5, ("train.steps=4", "train.validate_every=2", "optim.warmup_steps=1"), forced=True)


@dataclass
class Demo:
    """What the demo has made so far; `tests` are the evaluations of `stages` on the test split."""

    out: Path
    size: DemoSize
    progress: Progress
    print: Say
    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, "StageResult"] = field(default_factory=dict)
    tests: dict[str, "EvaluationResult"] = field(default_factory=dict)
    trivial: float = 0.0  # CIDEr of the most typical training caption, given for every test video
    served: "ServedCaption | None" = None

    def say(self, text: str) -> None:
        self.print(f"[{self.seconds:5.0f} s] {text}")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @property
    def videos(self) -> Path:
        return self.out / "toy" / "videos"

    @property
    def data(self) -> Path:
        return self.out / "data"

    def example_videos(self) -> list[str]:
        """The ids of the first three test videos."""
        from videoblip2.data.annotations import read_annotations

        return [video.video_id for video in read_annotations(self.data / "test.json")[:3]]


def run_demo(out: Path, size: DemoSize, progress: Progress, say: Say) -> Demo:
    """Do every step; `say` gets a line about each."""
    import torch

    from videoblip2.toy.served import served_captions

    torch.set_num_threads(1)  # small tensors: two processes use two cores better than two threads of one
    demo = Demo(out, size, progress, say)
    write_annotations(demo)
    with beside(train_language_model, demo.data, out / "lm", size.language_model_steps) as language_model:
        render(demo)
        extract(demo)
        demo.say("3/8 language model: a small T5 on the training captions, frozen from here on")
        language_model.result()
    with beside(train_one_modality, *one_modality_configs(demo)) as single:
        train_both(demo)
        demo.say("6/8 cross-entropy with video only and with audio only, beside the others since the start")
        demo.stages.update(single.result())
    crown(demo)
    with served_captions() as ask:
        test(demo)
        demo.served = ask(demo.videos / f"{demo.example_videos()[0]}.mp4")
    return demo


@contextmanager
def beside(function: Callable[..., T], *arguments: object) -> Iterator["Future[T]"]:
    """Run `function` in another process while the block runs; leave only when both have ended."""
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

    prepare_captions(list(write_toy_annotations(demo.out / "toy", demo.size.videos, SEED)), demo.data)
    videos = [asdict(video) for video in read_annotations(demo.data / "train.json")]
    write_json(demo.data / "train_top5_detail.json", select_top5(videos).videos)


def render(demo: Demo) -> None:
    from videoblip2.features.media import write_video
    from videoblip2.toy.world import write_toy_world

    demo.say(f"1/8 toy world: {demo.size.videos} videos with sound, 20 captions each → {demo.out / 'toy'}")
    write_toy_world(demo.out / "toy", demo.size.videos, SEED, write_video, progress=demo.progress)


def extract(demo: Demo) -> None:
    from videoblip2.features.encoders import load_clap, load_clip
    from videoblip2.features.extract import extract_features
    from videoblip2.features.media_features import Encoders
    from videoblip2.toy.encoders import TOY_SETTINGS, build_toy_clap, build_toy_clip

    demo.say("2/8 features: CLIP [F,768] and CLAP [A,512] of every video, by small random-weight encoders")
    clip = load_clip(build_toy_clip(demo.out / "encoders" / "clip", SEED))
    clap = load_clap(build_toy_clap(demo.out / "encoders" / "clap", SEED))
    videos, encoders = sorted(demo.videos.glob("*.mp4")), Encoders(clip, clap, TOY_SETTINGS)
    extract_features(videos, demo.out / "features", encoders, progress=demo.progress)


def train_language_model(data: Path, out: Path, steps: int) -> None:
    from videoblip2.config import load_config
    from videoblip2.data.annotations import read_annotations
    from videoblip2.toy import small_t5

    settings = small_t5.LanguageModelConfig(steps=steps, batch_size=48)
    prompt = load_config("toy_ce").data.prompt
    small_t5.train_language_model(read_annotations(data / "train.json"), [prompt], out, settings)


def train_both(demo: Demo) -> None:
    from videoblip2.training.stage import run_stage

    demo.say("4/8 cross-entropy, video and audio")
    demo.stages["ce"] = run_stage("ce", load(demo, "ce", "run.name=ce"), demo.progress)
    demo.say("5/8 self-critical training on CIDEr-D, from the cross-entropy checkpoint")
    config = load(demo, "scst", "run.name=scst", f"train.start_from={demo.stages['ce'].run_id}")
    demo.stages["scst"] = run_stage("scst", config, demo.progress)


def one_modality_configs(demo: Demo) -> list["Config"]:
    return [load(demo, "ce", f"run.name={m}-only", f"model.modalities={m}") for m in ("video", "audio")]


def train_one_modality(*configs: "Config") -> dict[str, "StageResult"]:
    from videoblip2.training.stage import run_stage

    return {f"{config.model.modalities}_only": run_stage("ce", config) for config in configs}


def load(demo: Demo, stage: str, *overrides: str) -> "Config":
    """A stage's experiment file, with the paths and the size of this demo."""
    from videoblip2.config import load_config

    paths = [f"data.annotations={demo.data}", f"data.features={demo.out / 'features'}", f"run.out={demo.out / 'runs'}"]
    if stage == "ce":
        paths += [f"model.language_model={demo.out / 'lm/t5'}", f"model.qformer.bert={demo.out / 'lm/bert'}"]
    return load_config(f"toy_{stage}", [*paths, *demo.size.overrides, *overrides])


def crown(demo: Demo) -> None:
    """Put the winner by validation score through the gate; an earlier champion that is no worse stays."""
    from videoblip2.captions.metrics import PRIMARY, label_of, shown
    from videoblip2.config import InputError
    from videoblip2.registry.promote import Request, promote

    best = max((demo.stages["ce"], demo.stages["scst"]), key=lambda stage: stage.metrics[PRIMARY])
    reason = "a quick demo is too small to pass the gate" if demo.size.forced else ""
    gate = promote(Request(best.model, REGISTERED, Path("toy_gate"), reason=reason), demo.progress)
    failed = "; ".join(gate.verdict.failed)
    if not gate.promoted and gate.previous is None:
        raise InputError(
            f"the gate rejects {best.name} ({failed}), and there is no champion to serve; see run {best.run_id}"
        )
    gain = f"{label_of(PRIMARY)} {shown(PRIMARY, gate.verdict.gain.difference, '+')} compared with {gate.opponent}"
    outcome = f"; promoted by force: {failed}" if gate.forced else f"; rejected: {failed}" if failed else ""
    demo.say(f"7/8 the gate: {best.name}, {gain}{outcome}")
    demo.say(f"    champion: models:/{REGISTERED}/{gate.version if gate.promoted else gate.previous}")
    demo.say("8/8 evaluation on the test split, and serving")


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
