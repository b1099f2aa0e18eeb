"""Typed, frozen configuration: the only place where a setting has its default.

A configuration is a YAML file of `experiments/`; `key=value` pairs override it (`optim.lr=1e-5`). Unknown keys and
wrong types are refused by name. Defaults are the design's full size: 32 + 32 queries, Flan-T5-base, LoRA r=16 on q, v.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from videoblip2.errors import InputError as InputError
from videoblip2.errors import validated
from videoblip2.files import expand, plain_name
from videoblip2.modality import BOTH, MODALITIES, modality_names, modality_setting
from videoblip2.overrides import overridden, read_yaml

QUESTION_PROMPT = "question: {} answer:"
#: A file or folder (or another name where a field allows it): `~` and `$HOME` are replaced.
PathText = Annotated[str, AfterValidator(expand)]
NameText = Annotated[str, AfterValidator(plain_name)]
ModalityNames = Annotated[str | tuple[str, ...], AfterValidator(modality_setting)]


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class DataConfig(Section):
    annotations: PathText = Field("data/msrvtt", description="folder with train.json, val.json, test.json")
    features: PathText = Field("features/msrvtt", description="feature store: a folder, or one packed file")
    train: str = Field("train.json", description="training annotations, a file name in `annotations`")
    prompt: str = Field("a video of", description="text prompt of the Q-Formers and the language model")
    max_caption_tokens: int = Field(32, ge=2, description="longest caption in tokens, end token included")
    captions_per_video: int = Field(1, ge=1, description="captions per video in one training batch")
    task: Literal["caption", "qa", "mixed"] = Field("caption", description="captions, answers to questions, or both")
    train_qa: str = Field("train_qa.json", description="training questions, a file in `annotations` beside val_qa.json")
    qa_share: float = Field(0.5, gt=0, lt=1, description="share of steps that train on answers, with task=mixed")


class QFormerConfig(Section):
    weights: PathText | None = Field(None, description="BLIP-2 checkpoint that both Q-Formers start from; none = fresh")
    bert: PathText = Field("bert-base-uncased", description="folder or hub name: word pieces, and text-side weights")
    bert_weights: bool = Field(True, description="initialize the text side from `bert` (no: word pieces only)")
    cross_attention: Literal["reinit", "adapt"] = Field("reinit", description="what to do with keys of another width")
    num_queries: int = Field(32, ge=1, description="learned queries of each Q-Former")
    hidden_size: int = Field(768, ge=1, description="width of both Q-Formers")
    num_hidden_layers: int = Field(12, ge=1, description="layers of each Q-Former")
    num_attention_heads: int = Field(12, ge=1, validate_default=True, description="attention heads of each layer")
    intermediate_size: int = Field(3072, ge=1, description="width inside the feed-forward layers")
    cross_attention_frequency: int = Field(2, ge=1, description="every N-th layer attends to the features")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in both Q-Formers")

    @field_validator("num_attention_heads")
    @classmethod
    def _of_equal_width(cls, heads: int, others: ValidationInfo) -> int:
        if (width := others.data.get("hidden_size", heads)) % heads and not others.data.get("weights"):
            raise ValueError(f"does not divide model.qformer.hidden_size={width}; change one of them")
        return heads


class LoraConfig(Section):
    r: int = Field(16, ge=1, description="rank of LoRA's matrices")
    alpha: float = Field(32, gt=0, description="LoRA's update is scaled by alpha / r")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout before LoRA's matrices")
    target_modules: tuple[str, ...] = Field(("q", "v"), description="attention projections (q, k, v, o) that get LoRA")


class ModelConfig(Section):
    language_model: PathText = Field("google/flan-t5-base", description="folder or hub name of a T5, BART or similar")
    qformer: QFormerConfig = QFormerConfig()
    finetune: Literal["lora", "full"] = Field("lora", description="full: train the whole language model, without LoRA")
    lora: LoraConfig = LoraConfig()
    modalities: ModalityNames = Field(BOTH, description="both (video and audio), one name, or a list of names")
    video_dim: int = Field(768, ge=1, description="width of the frame features")
    audio_dim: int = Field(512, ge=1, description="width of the audio features, before the upscaler")
    widths: dict[str, int] = Field({}, description="feature widths of other modalities, such as {flow: 256}")
    temporal_embedding: bool = Field(True, description="without it a Q-Former cannot tell the order of frames")
    max_positions: int = Field(256, ge=1, description="longest feature sequence; longer ones are thinned evenly")

    @field_validator("widths")
    @classmethod
    def _without_a_key_of_their_own(cls, widths: dict[str, int]) -> dict[str, int]:
        for name in widths:
            if f"{name}_dim" in cls.model_fields or name not in MODALITIES:
                raise ValueError(f"{name!r} is not another modality; video and audio have model.{{video,audio}}_dim")
        return widths

    @property
    def modality_names(self) -> tuple[str, ...]:
        """The modalities that the network reads, in the table's order."""
        return modality_names(self.modalities)

    def width(self, modality: str) -> int:
        """Width of one modality's features."""
        width: int = getattr(self, f"{modality}_dim", None) or self.widths.get(modality, MODALITIES[modality].width)
        return width

    def width_key(self, modality: str) -> str:
        """The key that sets that width."""
        return f"model.{modality}_dim" if f"{modality}_dim" in type(self).model_fields else f"model.widths.{modality}"


class OptimConfig(Section):
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    lr_scale_projections: float = Field(1.0, gt=0, description="factor on lr for projections, norms, queries")
    lr_scale_lora: float = Field(1.0, gt=0, description="factor on lr for LoRA, or for the full language model")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's weight decay; none on norms and biases")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's running averages")
    warmup_steps: int = Field(1000, ge=0, description="steps of linear warm-up to lr")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    final_lr: float = Field(0.1, ge=0, le=1, description="learning rate at the end of the cosine, as a share of lr")


class TrainConfig(Section):
    steps: int = Field(20_000, ge=1, description="optimizer steps")
    batch_size: int = Field(32, ge=1, description="videos per step")
    accumulate: int = Field(1, ge=1, description="micro-batches that a step's videos are split into, to save memory")
    checkpointing: bool = Field(False, description="keep only each layer's input and recompute the rest: slower")
    shard: bool = Field(False, description="with model.finetune=full, processes share the language model (FSDP2)")
    dropout: bool = Field(True, description="off: none; then the number of processes does not change the result")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the cross-entropy on captions")
    validate_every: int = Field(1000, ge=1, description="steps between validations on generated captions")
    log_every: int = Field(20, ge=1, description="steps between logged training metrics")
    save_every: int = Field(500, ge=1, description="steps between saves of the training state, OUT/NAME/state")
    start_from: PathText | None = Field(None, description="MODEL to start from: folder, run id, models:/…")
    resume: PathText | None = Field(None, description="run id or OUT/NAME to resume; auto = this run's own, if started")
    probe_videos: int = Field(200, ge=0, le=200, description="validation videos in the table of captions of each run")


class RewardConfig(Section):
    """Weights of the reward's terms; a term with weight 0 is not computed."""

    cider: float = Field(1.0, ge=0, description="CIDEr-D of the caption")
    bleu: float = Field(0.0, ge=0, description="BLEU-4 of the caption, 0 to 1")
    repetition: float = Field(0.0, ge=0, description="penalty on the share of repeated bigrams")
    bad_ending: float = Field(0.0, ge=0, description="penalty on captions that end with `a`, `of`, `is` …")
    terms: dict[str, float] = Field({}, description="weights of other terms: answers, or module:function (docs/how-to)")

    @model_validator(mode="after")
    def _once_and_some(self) -> "RewardConfig":
        if twice := sorted(self.terms.keys() & type(self).model_fields.keys()):
            raise ValueError(f"give the weight of {twice[0]} as scst.reward.{twice[0]}")
        if not self.weights:
            raise ValueError("every weight is 0, so no caption earns a reward; give a term a weight")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The terms with a nonzero weight, and that weight."""
        fixed = {name: weight for name, weight in self if name != "terms"}
        return {name: weight for name, weight in {**fixed, **self.terms}.items() if weight}


class WatchConfig(Section):
    """Allowed ranges of the monitors that reveal a gamed reward; warn outside. "Start" is the first interval."""

    length: tuple[float, float] = Field((0.6, 1.6), description="words per caption, relative to the references' mean")
    ended: float = Field(0.1, ge=0, description="largest drop below the start of the share of ended captions")
    bad_endings: float = Field(0.1, ge=0, description="largest rise of their share above start and references")
    distinct_2: float = Field(0.5, ge=0, le=1, description="lowest value, as a share of the start")
    repetition: float = Field(0.05, ge=0, description="largest rise above the start")
    zero_advantage: float = Field(0.9, ge=0, le=1, description="largest share of samples with zero advantage")
    sample_minus_greedy: float = Field(2.0, ge=1, description="largest gap, as a multiple of the start")


Baseline = Literal["greedy", "leave_one_out", "batch_mean", "none"]


class ScstConfig(Section):
    """Self-critical training; used by `vb2 scst` only."""

    samples: int = Field(5, ge=1, description="sampled captions per video")
    baseline: Baseline = Field("greedy", description="what a sample's reward is compared with")
    references: Literal["selected", "all"] = Field("selected", description="reward against the top-5 file or all")
    all_references: str = Field("train.json", description="all training annotations, a file in data.annotations")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    end_token: bool = Field(True, description="count the end of the sentence in the reward's n-grams")
    mask_unended: bool = Field(False, description="leave samples without an end token out of the loss")
    dropout: bool = Field(False, description="off: the sampling and the gradient pass use the same policy")
    log_prob_tolerance: float | None = Field(None, gt=0, description="largest gap of both passes; none=0.001, bf16 0.5")
    cross_entropy_weight: float = Field(0.0, ge=0, description="weight of stage 1's loss beside the reward")
    kl_weight: float = Field(0.0, ge=0, description="weight of KL(policy || network at the start)")
    entropy_weight: float = Field(0.0, ge=0, description="weight of the entropy bonus, nats per token")
    reuse: int = Field(1, ge=1, description="updates from the same samples; all but the first are clipped")
    clip: float = Field(0.2, gt=0, description="bound on the change of a token's probability when samples are reused")
    reward: RewardConfig = RewardConfig()
    watch: WatchConfig = WatchConfig()


@dataclass(frozen=True)
class Decoding:
    """How captions are decoded: greedily, by beam search (`num_beams` > 1), or `sampled` at a temperature.

    length_penalty: exponent of a beam's length in its score; above 1 favors long captions. consensus: compare this
    many samples and the greedy or beam caption; keep the one with the highest mean CIDEr-D against the others.
    """

    num_beams: int = 1
    max_new_tokens: int = 32
    length_penalty: float = 1.0
    temperature: float = 1.0
    sampled: bool = False
    consensus: int = 0

    def __post_init__(self) -> None:
        if self.sampled and self.num_beams > 1:
            raise InputError(f"num_beams={self.num_beams}: beam search takes no samples and no seed; leave one out")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature={self.temperature}: give a positive number")
        if not math.isfinite(self.length_penalty):
            raise InputError(f"length_penalty={self.length_penalty}: give a finite number")

    def but(self, sampled: bool = False, **given: Any) -> Self:
        """The same with the values that are not None; `sampled`: drawn at temperature 1, unless one is given."""
        own = replace(self, num_beams=1, temperature=1.0, sampled=True, consensus=0) if sampled else self
        return replace(own, **{name: value for name, value in given.items() if value is not None})

    @property
    def rows(self) -> int:
        """Captions decoded at once for each video."""
        return max(self.num_beams, self.consensus, 1)


GREEDY = Decoding()


class DecodeConfig(Section):
    num_beams: int = Field(Decoding.num_beams, ge=1, le=100, description="beam width; 1 is greedy")
    max_new_tokens: int = Field(Decoding.max_new_tokens, ge=1, le=1000, description="longest generated text, in tokens")
    length_penalty: float = Field(Decoding.length_penalty, description="beams: score / length to this power")
    strategy: Literal["search", "consensus"] = Field("search", description="greedy or beams / what samples agree on")
    samples: int = Field(50, ge=2, le=1000, description="number of samples, with strategy=consensus")
    # The default is the best of 0.5, 0.7 and 1.0 on the toy world's validation videos (experiments/README.md).
    temperature: float = Field(0.7, gt=0, description="sampling temperature, with strategy=consensus")
    batch_size: int = Field(64, ge=1, description="videos decoded at once")
    compile: bool = Field(False, description="for GPUs, not measured yet: fixed-shape steps, each one CUDA graph")

    @property
    def decoding(self) -> Decoding:
        """The options that one batch is decoded with."""
        voters = self.samples if self.strategy == "consensus" else 0
        return Decoding(self.num_beams, self.max_new_tokens, self.length_penalty, self.temperature, consensus=voters)


class RunConfig(Section):
    experiment: str = Field("videoblip2", description="MLflow experiment")
    name: NameText | None = Field(None, description="name of the run; null = built from the keys that differ")
    out: PathText = Field("runs", description="checkpoints go to OUT/NAME")
    tracking: bool = Field(True, description="off: no MLflow, files only")


class Config(Section):
    seed: int = Field(0, description="seed of weights, batches, samples and dropout")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 …")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast, with frozen layers stored in bf16")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    scst: ScstConfig = ScstConfig()
    decode: DecodeConfig = DecodeConfig()
    run: RunConfig = RunConfig()


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply `key=value` overrides in order. Raises InputError naming the wrong key or value."""
    return parse_config(read_yaml(path), overrides, source=str(path))


def parse_config(content: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "config") -> Config:
    """Build a Config from mappings and `key=value` overrides; an error that needs no override names `source`."""
    try:
        return validated(Config, overridden(content, overrides, Config))
    except InputError as error:
        try:
            validated(Config, overridden(content, (), Config))
        except InputError as alone:
            if str(alone) == str(error):
                raise InputError(f"{source}: {error}") from error
        raise


def flatten(config: BaseModel | Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Dotted keys and plain values, such as {"optim.lr": 1e-05, ...}; none stays None."""
    flat: dict[str, object] = {}
    for key, value in (config.model_dump(mode="json") if isinstance(config, BaseModel) else config).items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
