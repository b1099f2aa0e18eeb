"""What a training stage works with: network, tokenizers, data, document frequencies."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import yaml

from videoblip2.captioner import Captioner, pick_device
from videoblip2.captions import DocumentFrequencies
from videoblip2.captions.predictions import Kind
from videoblip2.config import Config, InputError, ModelConfig
from videoblip2.data.annotations import VideoAnnotation, read_annotations
from videoblip2.data.batches import Batches, BatchMaker, CachedFeatures
from videoblip2.features.check import refuse_other_encoders, refuse_other_widths, refuse_unnoted
from videoblip2.features.store import FeatureStore
from videoblip2.model.build import build_model
from videoblip2.model.checkpoint import load_checkpoint
from videoblip2.model.network import VideoBlip2
from videoblip2.model.qformer.weight_report import WeightReport
from videoblip2.model.tokenizers import Tokenizers
from videoblip2.tracking import local_model
from videoblip2.training.tasks import CAPTIONS, Entries, batches_of, read_split, tasks_of


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
    parent: str | None = None

    @property
    def train_videos(self) -> Sequence[VideoAnnotation]:
        """The videos whose captions are taught; none where the task has no captions."""
        return self.train.get(CAPTIONS.kind, ())

    @cached_property
    def features(self) -> CachedFeatures:
        return CachedFeatures(self.store)

    @cached_property
    def batches(self) -> Batches:
        """What `data.task` teaches, step by step."""
        config, positions = self.config, self.model.config.max_positions
        maker = BatchMaker(self.features, self.tokenizers, config.data, config.train.batch_size, config.seed, positions)
        return batches_of(config, self.train, maker)

    @property
    def inputs(self) -> list[tuple[str, str, list[str]]]:
        """(split, annotation file, ids of its videos) of everything that this training reads."""
        splits = (("train", self.train), ("val", self.val))
        return [
            (split, task.file(self.config.data, split), sorted({entry.video_id for entry in entries[task.kind]}))
            for task in tasks_of(self.config)
            for split, entries in splits
        ]

    @cached_property
    def all_references(self) -> dict[str, tuple[str, ...]]:
        """Every caption of every training video, also where `data.train` is a selection."""
        path = Path(self.config.data.annotations) / self.config.scst.all_references
        videos = read_annotations(path) if path.exists() else self.train_videos
        return {video.video_id: video.captions for video in videos}

    @cached_property
    def document_frequencies(self) -> DocumentFrequencies:
        """Of the complete training references, always."""
        return DocumentFrequencies.from_references(self.all_references, end_token=self.config.scst.end_token)

    @property
    def captioner(self) -> Captioner:
        """The network as it is now."""
        return Captioner(self.model, self.tokenizers, name=str(self.config.run.name))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        enabled = self.config.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            yield


def open_workspace(config: Config) -> Workspace:
    """Read data, build or load the network, move it to its device. Raises InputError for what the user must fix."""
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    store = FeatureStore(Path(config.data.features), config.model.modality_names)
    refuse_other_widths(store, config.model)
    train, val = (read_split(config, split, store) for split in ("train", "val"))
    entries = (entry for split in (train, val) for each in split.values() for entry in each)
    refuse_unnoted(store, [entry.video_id for entry in entries])
    model, tokenizers, reports = _network(config, store)
    model.compiled_decoding = config.decode.compile
    return Workspace(config, device, model.to(device), tokenizers, store, train, val, reports, config.train.start_from)


def start_copy(work: Workspace) -> VideoBlip2 | None:
    """The network as it is now, for the KL term; None where `scst.kl_weight` is 0. Frozen weights are shared."""
    if not work.config.scst.kl_weight:
        return None
    shared = {id(weight): weight for weight in work.model.parameters() if not weight.requires_grad}
    start: VideoBlip2 = copy.deepcopy(work.model, shared)
    start.requires_grad_(False).eval()
    return start


def _network(config: Config, store: FeatureStore) -> tuple[VideoBlip2, Tokenizers, Mapping[str, WeightReport]]:
    if config.train.start_from is None:
        return build_model(config.model, config.data.prompt)
    folder = local_model(config.train.start_from)
    checkpoint = load_checkpoint(folder)
    if checkpoint.model.config.lora_merged:
        raise InputError(
            f"train.start_from={config.train.start_from}: its LoRA is merged, so the language model could not train; "
            "start from the checkpoint that was merged"
        )
    refuse_other_encoders(store, checkpoint.provenance.features, config.train.start_from)
    _check_same_network(config.model, checkpoint.config.get("model", {}), config.train.start_from)
    checkpoint.model.config.prompt = config.data.prompt
    return checkpoint.model, checkpoint.tokenizers, {}


def inherit_model(config: Config) -> Config:
    """With `train.start_from`, the network is the checkpoint's: take its `model` section, refuse one that differs."""
    if config.train.start_from is None:
        return config
    path = local_model(config.train.start_from) / "config.yaml"
    saved = yaml.safe_load(path.read_text(encoding="utf-8")).get("model", {})
    _check_same_network(config.model, saved, config.train.start_from)
    return config.model_copy(update={"model": ModelConfig.model_validate(saved)})


def _check_same_network(wanted: ModelConfig, saved: Mapping[str, object], source: str) -> None:
    """Only what the user set counts; sources of first weights do not, since the checkpoint holds the weights."""
    said = _leaves(wanted.model_dump(mode="json", exclude_unset=True))
    has = _leaves(saved)
    sources = {"language_model", "qformer.weights", "qformer.bert", "qformer.bert_weights"}
    for key, value in said.items():
        if key not in sources and key in has and has[key] != value:
            raise InputError(
                f"model.{key}={value!r}: checkpoint {source} was trained with {has[key]!r}; "
                f"leave model.{key} out or start from another checkpoint"
            )


def _leaves(node: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in node.items():
        flat.update(_leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
