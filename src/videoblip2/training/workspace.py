"""The inputs of a training stage: network, tokenizers, data, document frequencies; and validation."""

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from videoblip2.captioner import Captioner, pick_device
from videoblip2.captions import DocumentFrequencies
from videoblip2.captions.predictions import Kind
from videoblip2.config import Config, InputError, ModelConfig, flatten
from videoblip2.data.annotations import VideoAnnotation, read_annotations
from videoblip2.data.batches import Batch, Batches, BatchMaker, CachedFeatures
from videoblip2.errors import Progress, no_progress, warn
from videoblip2.features.store import FeatureStore, refuse_other_encoders, refuse_other_widths, refuse_unnoted
from videoblip2.model.build import build_model
from videoblip2.model.checkpoint import load_checkpoint
from videoblip2.model.load_weights import WeightReport
from videoblip2.model.network import VideoBlip2
from videoblip2.model.tokenizers import Tokenizers
from videoblip2.overrides import read_yaml
from videoblip2.tracking import FoundModel
from videoblip2.training.distributed import World, find_together, join
from videoblip2.training.sharding import shard, unsharded
from videoblip2.training.tasks import CAPTIONS, Entries, Task, Texts, batches_of, read_split, say_all, tasks_of

#: Keys that name the source of first weights.
SOURCES = ("model.language_model", "model.qformer.weights", "model.qformer.bert", "model.qformer.bert_weights")

#: Processor flags for bf16 arithmetic.
BF16 = ("avx512_bf16", "amx_bf16", "bf16")
#: Shares of unknown pieces in training texts: the first warns, the second refuses.
FEW_UNKNOWN, MANY_UNKNOWN = 0.001, 0.25
#: Numbers of training texts, and of videos with features, that are checked before training, spread evenly.
MOST_TEXTS, MOST_VIDEOS = 10_000, 1_000
#: With a report on the loaded weights of each Q-Former, by modality.
Built = tuple[VideoBlip2, Tokenizers, Mapping[str, WeightReport]]


@dataclass
class Workspace:
    """Everything a stage needs, built once from a configuration."""

    config: Config
    device: torch.device
    model: VideoBlip2
    tokenizers: Tokenizers
    store: FeatureStore
    train: Mapping[Kind, Entries]
    val: Mapping[Kind, Entries]
    reports: Mapping[str, WeightReport] = field(default_factory=dict)
    parent: FoundModel | None = None  # the checkpoint of `train.start_from`
    world: World = field(default_factory=World)
    captions_only: bool = False  # train on no answers, even if `data.task` has them

    @property
    def train_videos(self) -> Sequence[VideoAnnotation]:
        """The videos whose captions are trained on; none if the task has no captions."""
        return self.train.get(CAPTIONS.kind, ())

    @cached_property
    def features(self) -> CachedFeatures:
        return CachedFeatures(self.store)

    @cached_property
    def batches(self) -> Batches:
        """The training batches of `data.task`, by step."""
        config, longest, size = self.config, self.model.config.max_positions, self.config.train.batch_size
        share = self.world.share(size)
        maker = BatchMaker(self.features, self.tokenizers, config.data, size, config.seed, longest, share)
        entries = {CAPTIONS.kind: self.train[CAPTIONS.kind]} if self.captions_only else self.train
        return batches_of(config, entries, maker)

    def place(self, batch: Batch) -> tuple[int, int]:
        """The number of videos in the whole batch before this process's share, and in all."""
        if self.world.size == 1:
            return 0, len(batch.video_ids)
        whole = self.config.train.batch_size
        return self.world.share(whole).start, whole

    @cached_property
    def all_references(self) -> dict[str, tuple[str, ...]]:
        """Every caption of every training video, even if `data.train` is a selection."""
        path = Path(self.config.data.annotations) / self.config.scst.all_references
        videos = read_annotations(path) if path.exists() else self.train_videos
        return {video.video_id: video.captions for video in videos}

    @cached_property
    def document_frequencies(self) -> DocumentFrequencies:
        """Document frequencies of all training references."""
        return DocumentFrequencies.from_references(self.all_references, end_token=self.config.scst.end_token)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    @cached_property
    def _scorers(self) -> list[tuple[Task, Callable[[Texts], float]]]:
        return [(task, task.scorer(self.val[task.kind])) for task in tasks_of(self.config)]

    def judge(self, step: int) -> "Validation":
        """Validate the current network on the entries of every task."""
        texts: dict[Kind, Texts] = {}
        metrics: dict[str, float] = {}
        captioner = Captioner(self.model.eval(), self.tokenizers, frequencies=lambda: self.document_frequencies)
        for task, score in self._scorers:
            with self.autocast(), unsharded(self.model):
                entries = self.val[task.kind]
                texts[task.kind] = say_all(task, captioner, entries, self.features, self.config.decode, self.world)
            metrics[task.metric] = score(texts[task.kind])
        return Validation(step, metrics, texts)


@dataclass(frozen=True)
class Validation:
    """A validation at one step. metrics: the score of each task. texts: kind → texts by video or question id."""

    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[Kind, Texts] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The score that selects the best: CIDEr, accuracy, or their sum (both about 0.5 on MSR-VTT)."""
        return sum(self.metrics.values()) if self.metrics else -math.inf


def open_workspace(config: Config, progress: Progress = no_progress, parent: FoundModel | None = None) -> Workspace:
    """Read data, build or load the network, move it to its device. Raises InputError for what the user must fix.

    Args:
        parent: the checkpoint of `train.start_from` if it is found already, since an alias may move.
    """
    torch.manual_seed(config.seed)
    device, world = pick_device(config.device), join()
    if config.precision == "bf16" and device.type == "cpu":
        has = torch.cpu.get_capabilities()
        if not any(map(has.get, BF16)):
            warn("precision=bf16: this processor has no bf16 arithmetic and emulates it slowly; use precision=fp32")
    if (size := config.train.batch_size) < world.size:
        fault = f"train.batch_size={size}: fewer videos than the {world.size} processes"
        raise InputError(f"{fault}; start at most {size} processes or raise it")
    store = FeatureStore(Path(config.data.features), config.model.modality_names)
    refuse_other_widths(store, config.model)
    train, val = (read_split(config, split, store) for split in ("train", "val"))
    videos = {entry.video_id for split in (train, val) for entries in split.values() for entry in entries}
    refuse_unnoted(store, sorted(videos))
    if parent is None and config.train.start_from:
        parent = find_together(config.train.start_from)
    model, tokenizers, reports = _network(config, store, parent)
    model.compiled_decoding, model.checkpointing = config.decode.compile, config.train.checkpointing
    if config.precision == "bf16":
        model.text.halve()
    work = Workspace(config, device, model.to(device), tokenizers, store, train, val, reports, parent, world)
    if config.train.shard and world.size > 1:
        shard(model, config, world, device)
    check_features(work.features, videos, progress)
    if not any(score({entry.key: entry.texts[0] for entry in val[task.kind]}) for task, score in work._scorers):
        file = CAPTIONS.file(config.data, "val")
        raise InputError(f"{file}: {no_cider(val[CAPTIONS.kind])}, so no checkpoint could be chosen; add videos")
    return work


def check_features(source: CachedFeatures, videos: Collection[str], progress: Progress) -> None:
    """Check the features of at most MOST_VIDEOS videos. Raises InputError with the number of unusable ones."""
    problems, some = [], sorted(videos)[:: 1 + (len(videos) - 1) // MOST_VIDEOS]
    for video in progress(some, len(some), "features"):
        try:
            source.features(video)
        except (InputError, RuntimeError) as error:
            problems.append(str(error))
    if problems:
        fault = f"{len(problems)} of {len(some)} videos have features that cannot be used: {problems[0]}"
        raise InputError(f"{fault}; `vb2 features check` lists all")


def no_cider(videos: Sized) -> str:
    """Explain why CIDEr, which counts only what distinguishes videos, is always 0 here."""
    count = len(videos)
    return f"the CIDEr of {'one video' if count == 1 else f'{count} videos with the same captions'} is 0 by definition"


def check_texts(work: Workspace, taught: bool) -> None:
    """Warn of training texts that cannot be learned in full. Raises InputError if most cannot be represented.

    Args:
        taught: whether their tokens are trained on, not only rewarded.
    """
    for task in tasks_of(work.config):
        texts = [text for entry in work.train[task.kind] for text in entry.texts]
        file = task.file(work.config.data, "train")
        pieces = work.tokenizers.pieces(texts[:: 1 + len(texts) // MOST_TEXTS])
        unknown = sum(ids.count(work.tokenizers.text.unk_token_id) for ids in pieces)
        share, longest = unknown / max(1, sum(map(len, pieces))), work.config.data.max_caption_tokens
        unknown_to = f"unknown to the tokenizer of {work.config.model.language_model}"
        line = f"{file}: {100 * share:.1f} % of the pieces are {unknown_to}, and can be neither learned nor generated"
        if share >= MANY_UNKNOWN:
            remedy = "set model.language_model to a model that knows this language, or translate the texts"
            raise InputError(f"{line}; {remedy}")
        if share >= FEW_UNKNOWN:
            warn(line)
        if taught and (cut := sum(len(ids) > longest for ids in pieces)):
            fault = f"{file}: {cut} of {len(pieces)} texts are longer than data.max_caption_tokens={longest}"
            needs = max(map(len, pieces))
            warn(f"{fault}; they are cut, and their ends are not learned (the longest needs {needs})")


def start_copy(work: Workspace) -> VideoBlip2 | None:
    """A copy of the current network, for the KL term and to read captions; None if neither is needed.

    Frozen weights are shared.
    """
    if not work.config.scst.kl_weight and "answers" not in work.config.scst.reward.weights:
        return None
    shared = {id(weight): weight for weight in work.model.parameters() if not weight.requires_grad}
    start: VideoBlip2 = copy.deepcopy(work.model, shared)
    start.requires_grad_(False).eval()
    return start


def _network(config: Config, store: FeatureStore, parent: FoundModel | None) -> Built:
    if parent is None:
        return build_model(config.model, config.data.prompt)
    source, checkpoint = str(config.train.start_from), load_checkpoint(parent.folder)
    if checkpoint.model.config.lora_merged:
        fault = f"train.start_from={source}: its LoRA is merged, so the language model cannot be trained"
        raise InputError(f"{fault}; start from the checkpoint that was merged")
    refuse_other_encoders(store, checkpoint.provenance.features, source)
    checkpoint.model.config.prompt = config.data.prompt
    return checkpoint.model, checkpoint.tokenizers, {}


def inherit_model(config: Config, parent: FoundModel | None = None) -> Config:
    """With `train.start_from`, the network is that of the checkpoint: take its `model` section.

    parent: see `open_workspace`. Raises InputError for a key set differently; sources of first weights are exempt.
    """
    source = config.train.start_from
    if source is None:
        return config
    content = read_yaml((parent or find_together(source)).folder / "config.yaml").get("model", {})
    inherited = ModelConfig.model_validate(content)
    had = flatten(inherited, "model.")
    for key, value in flatten(config.model.model_dump(mode="json", exclude_unset=True), "model.").items():
        if key not in SOURCES and value != had.get(key):
            fault = f"{key}={value!r}: checkpoint {source} was trained with {had.get(key)!r}"
            raise InputError(f"{fault}; leave {key} out or start from another checkpoint")
    return config.model_copy(update={"model": inherited})
