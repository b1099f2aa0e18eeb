"""Plan the device memory that training needs, without a device: run its passes on tensors with sizes but no data.

FakeTensorMode simulates the device, so the real passes run. A storage counts from its allocation until nothing refers
to it. Weights are never loaded, and data are read if present.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, PreTrainedConfig, T5Config
from transformers.modeling_layers import GradientCheckpointingLayer

from videoblip2.captioner import pick_device
from videoblip2.config import Config, InputError, parse_config
from videoblip2.data.batches import Batch, BatchMaker, free_memory
from videoblip2.errors import Progress, first_line, no_progress
from videoblip2.features.store import FeatureStore
from videoblip2.imports import LightMeta, hub_answers
from videoblip2.model.build import fresh_qformers, network_config
from videoblip2.model.decode import Decoded
from videoblip2.model.decode.cpu_kernels import ROWS, layout_pays
from videoblip2.model.decode.stepper import start
from videoblip2.model.network import VideoBlip2
from videoblip2.model.tokenizers import load_tokenizers
from videoblip2.training.ce import ce_step
from videoblip2.training.meters import Allocations
from videoblip2.training.rollout import Rollout
from videoblip2.training.scst import Encoded, Objective, encode, total
from videoblip2.training.tasks import batches_of, read_split
from videoblip2.training.update import cut, take
from videoblip2.training.workspace import Workspace

#: d_model, d_ff, layers, heads of Flan-T5, used without its config.json. Each head is 64 wide.
FLAN_T5 = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}
BERT_PIECES = 30_522
#: Number of batches examined; the largest counts.
BATCHES = 16


class _Everywhere(Allocations):
    """Treat every token as live, since fake tensors have no values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            func, kwargs = torch.ops.aten.new_empty.default, {"dtype": torch.int64}
            args = args[0], [args[0].numel(), 1]
        return super().__torch_dispatch__(func, types, args, kwargs)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one process needs: of each kind, and at the peak of each phase of a step, besides weights and
    optimizer. sizes: the sources of the sizes of the network and of the batch.
    """

    weights: int
    gradients: int
    optimizer: int
    phases: Mapping[str, int]
    sizes: tuple[str, str]

    @property
    def peak(self) -> int:
        """Total bytes at the peak."""
        return self.weights + self.optimizer + max(self.phases.values())

    def sharded(self, away: int) -> "MemoryPlan":
        """With `away` bytes of weights, and as many of gradients, in other processes, gathered outside training."""
        phases = {name: size + (-away if name == "training" else away) for name, size in self.phases.items()}
        kept = self.weights - away, self.gradients - away, self.optimizer - 2 * away
        return MemoryPlan(*kept, phases, self.sizes)


def plan(kind: str, config: Config, gpus: int = 1) -> MemoryPlan:
    """Memory of a step of stage `ce` or `scst` in steady state; each process has its share of the batch."""
    config = changed(config, f"train.batch_size={-(-config.train.batch_size // gpus)}")
    device = pick_device(config.device)
    text, of_text = text_config(config.model.language_model)
    example, of_batch, pieces = _example(config, text.vocab_size)
    model = _network(config, text, pieces)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device=device).tie_weights()
        work = Workspace(config, device, model, cast(Any, None), cast(Any, None), {}, {})
        with _Everywhere() as allocations:
            batch = example.map(lambda tensor: torch.empty_like(tensor, device=device))
            passes = _Passes(work, batch, allocations)
            (passes.ce if kind == "ce" else passes.scst)()
            passes.validation()
        trained = sum(map(_bytes, model.trainable().values()))
        frozen = sum(map(_bytes, (*model.parameters(), *model.buffers()))) - trained
    copies = 1 + (kind == "scst" and config.scst.kl_weight > 0)  # KL's reference is a copy of the trained weights
    weights = frozen + copies * trained + _laid_out(work)
    made = MemoryPlan(weights, trained, 2 * trained, passes.peaks, (of_text, of_batch))
    return made.sharded(_elsewhere(work, gpus)) if config.train.shard and config.model.finetune == "full" else made


def changed(config: Config, *words: str) -> Config:
    """The configuration with `key=value` overrides."""
    return parse_config(config.model_dump(mode="json"), words)


def changes(kind: str, config: Config, gpus: int, on_gpu: bool) -> Iterator[str]:
    """Overrides that save memory, in order: first those that keep the result, then those that change it."""
    train, share = config.train, config.train.batch_size // gpus
    if not train.checkpointing:
        yield "train.checkpointing=true"
    if on_gpu and config.precision == "fp32":
        yield "precision=bf16"
    yield from (f"train.accumulate={n}" for n in sorted({4, 16, 64, share}) if train.accumulate < n <= share)
    if config.model.finetune == "full" and gpus > 1 and not (train.shard or config.scst.kl_weight):
        yield "train.shard=true"
    if kind == "scst" and config.scst.samples > 2:
        yield "scst.samples=2"
    if kind == "ce" and config.data.captions_per_video > 1:
        yield "data.captions_per_video=1"
    if kind == "scst":  # it decodes all videos of a batch at once
        yield from (f"train.batch_size={gpus * n}" for n in (64, 16, 4, 1) if n < share)
    if config.model.finetune == "full":
        yield "model.finetune=lora"


def free(config: Config) -> int:
    """Bytes of free memory on the configuration's device."""
    device = pick_device(config.device)
    return free_memory() if device.type == "cpu" else int(torch.cuda.mem_get_info(device)[0])


def fitting(
    kind: str, config: Config, gpus: int, memory: float, progress: Progress = no_progress
) -> tuple[list[str], int]:
    """The first of `changes` that suffice for `memory` bytes, or all of them, and the resulting peak."""
    words = [*changes(kind, config, gpus, pick_device(config.device).type != "cpu")]
    peak = cache(lambda count: plan(kind, changed(config, *words[:count]), gpus).peak)
    low, high, tries = 1, len(words), len(words).bit_length()  # bisection, since peaks fall
    for _ in progress(range(tries), tries, f"{kind}: keys that make it fit"):
        middle = (low + high) // 2
        low, high = (low, middle) if peak(middle) <= memory else (middle + 1, high)
    count = min(low, len(words))
    return words[:count], peak(count)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _network(config: Config, text: PreTrainedConfig, pieces: int) -> VideoBlip2:
    with LightMeta(), torch.device("meta"):
        own_head = not getattr(text, "scale_decoder_outputs", True)  # T5 v1.1 and Flan-T5
        qformers = fresh_qformers(config.model, pieces)
        model = VideoBlip2(network_config(config.model, config.data.prompt, text, qformers, own_head))
    if config.precision == "bf16":
        model.text.halve()
    model.checkpointing = config.train.checkpointing
    return model


def _elsewhere(work: Workspace, gpus: int) -> int:
    """Bytes of sharded layers held by other processes; one layer is gathered while it runs, and the next one ahead."""
    layers = [layer for layer in work.model.language_model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    sizes = [sum(map(_bytes, layer.parameters())) for layer in layers]
    return max(0, sum(sizes) - sum(sizes) // gpus - 2 * max(sizes))


def _laid_out(work: Workspace) -> int:
    """Bytes of frozen weights that decoding on a CPU stores a second time (`decode.cpu_kernels`)."""
    decoder, head = work.model.language_model.get_decoder(), work.model.language_model.get_output_embeddings()
    kept = {f".{name}" for name in ("EncDecAttention.k", "EncDecAttention.v", "SelfAttention.q", "SelfAttention.k")}
    linear = [head, *(m for name, m in decoder.named_modules() if not name.endswith((*kept, "SelfAttention.v")))]
    frozen = [m.weight for m in linear if type(m) is nn.Linear and not m.weight.requires_grad]
    return sum(_bytes(weight) for weight in frozen if layout_pays(weight, ROWS))


def _example(config: Config, vocabulary: int) -> tuple[Batch, str, int]:
    """The longest of some batches, or the longest possible one; its description; and the number of word pieces."""
    data, model, pieces, size = config.data, config.model, BERT_PIECES, config.train.batch_size
    try:
        store = FeatureStore(Path(data.features), model.modality_names)
        tokenizers = load_tokenizers(model.language_model, model.qformer.bert)
        pieces = len(tokenizers.bert)
        maker = BatchMaker(store, tokenizers, data, size, config.seed, model.max_positions)
        batches = batches_of(config, read_split(config, "train", store), maker)
        made = map(batches, range(min(BATCHES, config.train.steps)))
        longest = max(made, key=lambda batch: sum(batch.lengths))
        return longest, f"the longest of {BATCHES} batches of {data.annotations}", pieces
    except (InputError, OSError):
        shapes = {name: (size, model.max_positions, model.width(name)) for name in model.modality_names}
        features = {name: torch.zeros(shape) for name, shape in shapes.items()}
        masks = {name: torch.ones(shape[:2], dtype=torch.int64) for name, shape in shapes.items()}
        text = torch.ones(size, 2 + len(data.prompt.split()), dtype=torch.int64)
        labels = torch.ones(size * data.captions_per_video, data.max_caption_tokens, dtype=torch.int64)
        lengths = (data.max_caption_tokens,) * len(labels)
        batch = Batch(("",) * size, features, masks, text, text, text, text, labels, lengths)
        return batch, "the longest possible, since the data are not here", pieces


@dataclass(frozen=True)
class _Passes:
    work: Workspace
    batch: Batch
    allocations: Allocations
    peaks: dict[str, int] = field(default_factory=dict)

    def ce(self) -> None:
        with self.allocations.phase(self.peaks, "training"):
            for part in islice(ce_step(self.work, self.batch, 0), 2):  # the second has the first one's gradients
                part.loss.backward()

    def scst(self) -> None:
        work, settings = self.work, self.work.config.scst
        slices = cut(len(self.batch.video_ids), work.config.train.accumulate)
        dropout = settings.dropout and work.config.train.dropout
        shared = len(slices) == 1 and not dropout
        with self.allocations.phase(self.peaks, "decoding"):
            encoded = encode(work, self.batch, dropout=False, gradient=shared)
            self._decode(encoded, settings.samples + 1)
        count, longest = len(self.batch.video_ids) * settings.samples, work.config.decode.max_new_tokens
        ids, ended = torch.zeros(count, longest, dtype=torch.int64), torch.ones(count, dtype=torch.bool)
        rewards = torch.zeros(count).view(-1, settings.samples)
        sampled = Decoded(ids, ended, ids.float())
        rollout = Rollout(sampled, [], [], rewards, rewards[:, 0], rewards, ids, {})
        objective = Objective(work, work.model, ended.sum(), ended.sum())
        with self.allocations.phase(self.peaks, "training"):
            for videos in slices[:2]:
                some = take(self.batch, videos)
                states = encoded if shared else encode(work, some, dropout)
                terms, _ = objective(some, rollout.of(videos), states, None)
                total(terms, settings).backward()

    @torch.no_grad()
    def validation(self) -> None:
        self.work.model.eval().zero_grad()
        size, decoding = self.work.config.decode.batch_size, self.work.config.decode.decoding
        batch = replace(self.batch, labels=None).map(lambda tensor: tensor[:1].expand(size, *tensor.shape[1:]) + 0)
        with self.allocations.phase(self.peaks, "validation"):
            self._decode(encode(self.work, batch, dropout=False, gradient=False), decoding.rows)

    @torch.no_grad()
    def _decode(self, encoded: Encoded, rows: int) -> None:
        """Decode two tokens: later ones need no more. With rows=0 the stepper lays no weights out."""
        states, before = encoded[0].detach(), self.allocations.now
        with self.work.autocast():
            stepper = start(self.work.model.text, states, encoded[1], self.work.config.decode.max_new_tokens, 0)
            logits = stepper.step(torch.zeros(len(states), dtype=torch.int64))
            stepper.repeat(rows)
            self.peaks["decoding caches"] = max(self.peaks.get("decoding caches", 0), self.allocations.now - before)
            logits = stepper.step(torch.zeros(len(states) * rows, dtype=torch.int64))
            log_probs = torch.log_softmax(logits / 1.0, dim=-1)
            log_probs.exp().cumsum(dim=-1)


def text_config(name: str) -> tuple[PreTrainedConfig, str]:
    """The language model's configuration, from its config.json or the table of Flan-T5, and its source."""
    size = name.removeprefix("google/flan-t5-")
    here = size in FLAN_T5 or not hub_answers(name)
    try:
        return AutoConfig.from_pretrained(name, local_files_only=here), f"{name}: its config.json"
    except (OSError, ValueError) as error:
        if size not in FLAN_T5:
            remedy = "give a folder with its config.json, or a hub name online"
            raise InputError(f"model.language_model={name}: {first_line(error)}; {remedy}") from error
        width, inner, layers, heads = FLAN_T5[size]
        sizes = {"d_model": width, "d_ff": inner, "num_layers": layers, "num_heads": heads, "vocab_size": 32_128}
        other = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
        return T5Config(**sizes, **other), f"{name}: published sizes (its config.json is not here)"
