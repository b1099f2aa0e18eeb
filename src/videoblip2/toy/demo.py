"""The whole path on generated videos, offline: features, a language model, both stages, the gate, a served caption.

Every step calls the function of the command of the same name. A second process trains and tests the single-modality
models: the tensors are small, and two processes with one thread use two cores better than one with two threads.
"""

import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import httpx
import torch

from videoblip2.captions import typical_caption
from videoblip2.captions.metrics import PRIMARY, default_metrics, label_of, shown
from videoblip2.config import Config, InputError, load_config
from videoblip2.data.annotations import read_annotations
from videoblip2.data.prepare import prepare_captions
from videoblip2.data.top5 import select_top5
from videoblip2.errors import Progress
from videoblip2.evaluate import evaluate
from videoblip2.features.encoders import load_clap, load_clip
from videoblip2.features.extract import ExtractionRun, extract_features
from videoblip2.features.media_features import Encoders
from videoblip2.files import free_port, server_command, server_environment, write_json
from videoblip2.registry.promote import Request, promote
from videoblip2.toy import networks
from videoblip2.toy.world import write_toy_annotations, write_toy_world
from videoblip2.tracking.compare import RunComparison
from videoblip2.tracking.reports import compare_runs
from videoblip2.training.evaluation import EvaluationResult, evaluate_model
from videoblip2.training.stage import run_stage
from videoblip2.training.state import StageResult

SEED = 0
REGISTERED = "videoblip2"
START_SECONDS = 120  # for the server to be ready


@dataclass(frozen=True)
class DemoSize:
    """The amounts of data and training in the demo."""

    videos: int = 700
    more_tests: int = 140  # extra test videos, for narrower intervals
    language_model_steps: int = 250
    overrides: tuple[str, ...] = ()
    forced: bool = False  # too small to pass the gate, so the winner is promoted by force


FULL = DemoSize()
#: Half a minute, to check that everything works; its scores mean nothing.
QUICK = DemoSize(40, 0, 5, ("train.steps=4", "train.validate_every=2", "optim.warmup_steps=1"), forced=True)


@dataclass
class Demo:
    """The results of the demo so far."""

    out: Path
    size: DemoSize
    progress: Progress
    print: Callable[[str], None]
    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, StageResult] = field(default_factory=dict)
    tests: dict[str, EvaluationResult] = field(default_factory=dict)  # of `stages`, on the test split
    gains: dict[str, RunComparison] = field(default_factory=dict)  # other stages minus "ce", on the same videos
    trivial: float = 0.0  # CIDEr of the most typical training caption for every test video
    served: str = ""  # the service's answer, and its model version

    def say(self, text: str) -> None:
        """Print a line with the elapsed time."""
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
        return [video.video_id for video in read_annotations(self.data / "test.json")[:3]]


def run_demo(out: Path, size: DemoSize, progress: Progress, say: Callable[[str], None]) -> Demo:
    """Run every step; `say` prints a line about each."""
    torch.set_num_threads(1)
    demo = Demo(out, size, progress, say)
    prepare_captions(write_toy_annotations(out / "toy", size.videos, SEED, size.more_tests), demo.data)
    videos = [asdict(video) for video in read_annotations(demo.data / "train.json")]
    write_json(demo.data / "train_top5_detail.json", select_top5(videos).videos)
    with second_process() as second:
        world = out / "toy", size.videos, SEED
        helped = second.submit(write_toy_world, *world, more_tests=size.more_tests, backwards=True)
        settings = networks.LanguageModelConfig(steps=size.language_model_steps, batch_size=48)
        taught = read_annotations(demo.data / "train.json"), [load_config("toy_ce").data.prompt]
        language_model = second.submit(networks.train_language_model, *taught, out / "lm", settings)
        demo.say(f"1/8 toy world: {size.videos + size.more_tests} videos with sound, 20 captions each → {out / 'toy'}")
        write_toy_world(*world, progress, size.more_tests)
        helped.result()  # the last video is complete
        extract(demo)
        demo.say("3/8 language model: a small T5 trained on the training captions, frozen from here on")
        language_model.result()
        alone = [load(demo, "ce", f"run.name={kind}-only", f"model.modalities={kind}") for kind in ("video", "audio")]
        singles = [second.submit(train_and_test, config, out) for config in alone]
        demo.say("4/8 cross-entropy, video and audio; at the same time, video only and audio only")
        demo.stages["ce"] = run_stage("ce", load(demo, "ce", "run.name=ce"), progress)
        tested = {"ce": second.submit(test, "ce", demo.stages["ce"], out)}
        demo.say("5/8 self-critical training on CIDEr-D, from the cross-entropy checkpoint")
        config = load(demo, "scst", "run.name=scst", f"train.start_from={demo.stages['ce'].run_id}")
        demo.stages["scst"] = run_stage("scst", config, progress)
        tested["scst"] = second.submit(test, "scst", demo.stages["scst"], out)
        crown(demo)
        with served_captions() as ask:
            demo.say("7/8 evaluation on the test split, which no model has seen")
            demo.trivial = score_of_typical_caption(demo.data)
            for name, single in zip(("video_only", "audio_only"), singles, strict=True):
                demo.stages[name], demo.tests[name] = single.result()
            demo.tests |= {name: future.result() for name, future in tested.items()}
            ce, *others = (str(stage.run_id) for stage in demo.stages.values())
            compared = (compare_runs([ce, other], "test") for other in others)
            demo.gains = dict(zip(list(demo.stages)[1:], compared, strict=True))
            demo.say("8/8 serving")
            demo.served = ask(demo.videos / f"{demo.example_videos()[0]}.mp4")
    return demo


@contextmanager
def second_process() -> Iterator[ProcessPoolExecutor]:
    """A second process, which ends at once if this one fails or is stopped."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        try:
            yield pool
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def extract(demo: Demo) -> None:
    """Extract features with the toy world's encoders."""
    demo.say("2/8 features: CLIP [F,768] and CLAP [A,512] of every video, from small encoders with random weights")
    clip = load_clip(networks.build_toy_clip(demo.out / "encoders" / "clip", SEED))
    clap = load_clap(networks.build_toy_clap(demo.out / "encoders" / "clap", SEED))
    videos, encoders = sorted(demo.videos.glob("*.mp4")), Encoders(clip, clap, networks.TOY_SETTINGS)
    one = ExtractionRun(workers=1)  # in a fixed order, so that each batch has the same rows, and rounding, every time
    extract_features(videos, demo.out / "features", encoders, one, demo.progress)


def train_and_test(config: Config, out: Path) -> tuple[StageResult, EvaluationResult]:
    """Cross-entropy with one modality, and its evaluation by the metrics that need no Java."""
    stage = run_stage("ce", config)
    return stage, test(f"{config.model.modalities}_only", stage, out, default_metrics(fast=True))


def test(name: str, stage: StageResult, out: Path, metrics: Sequence[str] | None = None) -> EvaluationResult:
    """Evaluate a stage's best checkpoint on the test split."""
    return evaluate_model(str(stage.run_id), "test", out=out / f"test-{name}.jsonl", metrics=metrics)


def load(demo: Demo, stage: str, *overrides: str) -> Config:
    """A stage's experiment file, with the paths and size of this demo."""
    paths = [f"data.annotations={demo.data}", f"data.features={demo.out / 'features'}", f"run.out={demo.out / 'runs'}"]
    if stage == "ce":
        paths += [f"model.language_model={demo.out / 'lm/t5'}", f"model.qformer.bert={demo.out / 'lm/bert'}"]
    return load_config(f"toy_{stage}", [*paths, *demo.size.overrides, *overrides])


def crown(demo: Demo) -> None:
    """Send the winner by validation score through the gate; an earlier champion that is no worse stays."""
    best = max((demo.stages["ce"], demo.stages["scst"]), key=lambda stage: stage.metrics[PRIMARY])
    reason = "a quick demo is too small to pass the gate" if demo.size.forced else ""
    gate = promote(Request(best.model, REGISTERED, Path("toy_gate"), reason=reason), demo.progress)
    failed = "; ".join(gate.verdict.failed)
    if not gate.promoted and gate.previous is None:
        raise InputError(f"the gate rejects {best.name} ({failed}), and no champion can serve; see run {best.run_id}")
    gain = f"{label_of(PRIMARY)} {shown(PRIMARY, gate.verdict.gain.difference, '+')} compared with {gate.opponent}"
    outcome = f"; {'promoted by force' if gate.forced else 'rejected'}: {failed}" if gate.forced or failed else ""
    demo.say(f"6/8 the gate: {best.name}, {gain}{outcome}")
    demo.say(f"    champion: models:/{REGISTERED}/{gate.version if gate.promoted else gate.previous}")


def score_of_typical_caption(data: Path) -> float:
    """CIDEr of the most typical training caption, used for every test video."""
    files = (data / "train.json", data / "test.json")
    train, references = ({video.video_id: video.captions for video in read_annotations(file)} for file in files)
    return evaluate(dict.fromkeys(references, typical_caption(train)), references, [PRIMARY]).corpus[PRIMARY]


@contextmanager
def served_captions() -> Iterator[Callable[[Path], str]]:
    """Start a server; yield a function that returns the caption of a media file, once the server is ready."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as log:
        # At its start BentoML deletes all metrics in its home, perhaps of another server.
        environment = server_environment({"BENTOML_HOME": home})
        server = subprocess.Popen(server_command("127.0.0.1", port), stdout=log, stderr=log, env=environment)
        try:
            yield lambda video: _ask(server, f"http://127.0.0.1:{port}", video, log)
        finally:
            server.terminate()
            server.wait(timeout=30)


def _ask(server: "subprocess.Popen[bytes]", address: str, video: Path, log: IO[bytes]) -> str:
    deadline, ready = time.monotonic() + START_SECONDS, False
    with httpx.Client(base_url=address, trust_env=False) as client:  # a call without one reads all certificates first
        while not ready:
            if server.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise InputError(f"bentoml serve did not start: {log.read().decode(errors='replace').strip()[-400:]}")
            time.sleep(0.2)
            with suppress(httpx.HTTPError):
                ready = client.get("/readyz", timeout=2).is_success
        files = {"video": (video.name, video.read_bytes(), "video/mp4")}
        answer = client.post("/caption", files=files, timeout=60).raise_for_status().json()
    return f"version {answer['model_version']}: {answer['caption']}"
