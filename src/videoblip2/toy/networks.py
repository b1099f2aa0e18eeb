"""The toy world's models, in the real classes: CLIP and CLAP with random weights, and a T5 trained on captions.

With the usual initialization (std 0.02) a random transformer returns nearly the same vector for every input. Larger
weights, kernels for shape and color, and a calibrated output preserve the toy world's content.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import BertWordPieceTokenizer, SentencePieceBPETokenizer, Tokenizer, normalizers, processors
from torch import nn

from videoblip2.config import Section
from videoblip2.data.annotations import VideoAnnotation
from videoblip2.errors import Progress, Steps, no_progress
from videoblip2.features.media import SAMPLING_RATE
from videoblip2.features.media_features import FeatureSettings
from videoblip2.imports import quiet_transformers
from videoblip2.modality import MODALITIES
from videoblip2.model.language_model import separate_lm_head
from videoblip2.training.update import schedule

Videos = Sequence[VideoAnnotation]
TOY_SETTINGS = FeatureSettings(fps=4.0, window_seconds=1.0)  # toy videos last 2 to 3 s

IMAGE_SIZE, PATCH = 64, 16  # pixels
POSITION_STD = 3.0
GREY_KERNELS = 0.7  # share of the patch kernels
SMOOTHING = 5  # pixels
MEL_BINS, SPECTROGRAM = 64, 64  # HTSAT's input side; 1 s of audio makes 51 columns, which it stretches to 64
CALIBRATION = 256  # random pictures or sounds


def build_toy_clip(folder: str | Path, seed: int) -> Path:
    """Write a random `CLIPVisionModelWithProjection` (64 px, projection 768) and its image processor to `folder`.

    Its patch kernels are smooth, like pictures; most are gray, and respond to shape regardless of color.
    """
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"image_size": IMAGE_SIZE, "patch_size": PATCH, "projection_dim": MODALITIES["video"].width}
    config = transformers.CLIPVisionConfig(**sizes)
    model = _random_model(transformers.CLIPVisionModelWithProjection, config, seed, gain=1.0)
    _shape_kernels(model.vision_model.embeddings.patch_embedding.weight)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side)
    pixels = processor(images=list(_random_pictures(seed)), return_tensors="pt")["pixel_values"]
    _calibrate(model.vision_model.post_layernorm, lambda: model(pixel_values=pixels))
    return _save(folder, model, processor)


def build_toy_clap(folder: str | Path, seed: int) -> Path:
    """Write a random `ClapAudioModelWithProjection` (1 s windows, projection 512) and its extractor to `folder`.

    HTSAT has no absolute positions: its first batch norm gets a random scale and shift for each mel bin instead. Its
    patch norm, which would remove loudness, is off.
    """
    sizes = {"num_mel_bins": MEL_BINS, "spec_size": SPECTROGRAM, "window_size": 4, "patch_size": 8}
    sizes |= {"patch_embeds_hidden_size": 64, "hidden_size": 128, "num_hidden_layers": 2}
    sizes |= {"projection_dim": MODALITIES["audio"].width, "enable_patch_layer_norm": False}
    config = transformers.ClapAudioConfig(**sizes, patch_stride=(8, 8), depths=(2, 2), num_attention_heads=(4, 4))
    model = _random_model(transformers.ClapAudioModelWithProjection, config, seed, gain=1.5)
    norm, generator = model.audio_model.audio_encoder.batch_norm, torch.Generator().manual_seed(seed)
    with torch.no_grad():  # decibels (about -100 … 40) to unit scale, then a random scale and shift for each mel bin
        norm.running_mean.fill_(-30)
        norm.running_var.fill_(900)
        norm.weight.normal_(0, 1, generator=generator)
        norm.bias.normal_(0, 1, generator=generator)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=MEL_BINS, hop_length=960, max_length_s=1, truncation="rand_trunc"
    )
    mels = extractor(list(_random_sounds(seed)), sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"]
    _calibrate(model.audio_projection.linear1, lambda: model(input_features=mels.float()))
    return _save(folder, model, extractor)


def _save(folder: str | Path, model: Any, preprocessor: Any) -> Path:
    folder = Path(folder)
    with quiet_transformers():
        model.save_pretrained(folder)
        preprocessor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _random_model(kind: Any, config: Any, seed: int, gain: float) -> Any:
    """std gain / sqrt(fan in); positions are stronger than patches, so that the pooled vector encodes what is where."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # for tensors not drawn below, such as the class token
        torch.manual_seed(seed)
        model = kind(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, gain / math.sqrt(fan_in), generator=generator)
            if module.bias is not None:
                module.bias.normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, POSITION_STD, generator=generator)
    return model


@torch.no_grad()
def _shape_kernels(weight: torch.Tensor) -> None:
    """Smooth kernels [D,3,P,P]; make the last `GREY_KERNELS` of them gray, with the same energy."""
    grey = weight[-int(GREY_KERNELS * len(weight)) :]
    grey.copy_((grey.mean(1, keepdim=True) * math.sqrt(3)).expand_as(grey))
    weight.copy_(nn.functional.avg_pool2d(weight, SMOOTHING, stride=1, padding=SMOOTHING // 2) * SMOOTHING)


@torch.no_grad()
def _calibrate(module: nn.LayerNorm | nn.Linear, run: Callable[[], object]) -> None:
    """Give a module's outputs while `run` runs mean 0 and variance 1, as in LSUV (Mishkin & Matas 2016)."""
    seen: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    run()
    hook.remove()
    outputs = torch.cat(seen).flatten(0, -2)
    scale = 1 / (outputs.std(0) + 1e-3)
    module.weight.mul_(scale[:, None] if isinstance(module, nn.Linear) else scale)
    module.bias.copy_((module.bias - outputs.mean(0)) * scale)


def _random_pictures(seed: int) -> NDArray[np.uint8]:
    """uint8 [256, 64, 64, 3]: each has one rectangle of random place, size and color on a dark background."""
    rng = np.random.default_rng([seed, 0])
    pictures = np.empty((CALIBRATION, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for picture in pictures:
        picture[:] = rng.integers(20, 80, 3)
        (x, y), (width, height) = rng.integers(0, 48, 2), rng.integers(10, 30, 2)
        picture[y : y + height, x : x + width] = rng.integers(0, 256, 3)
    return pictures


def _random_sounds(seed: int) -> list[NDArray[np.float32]]:
    """256 sounds of one second: each is a tone of random pitch and loudness in noise of random loudness."""
    rng = np.random.default_rng([seed, 1])
    time = np.arange(SAMPLING_RATE) / SAMPLING_RATE
    sounds = []
    for _ in range(CALIBRATION):
        pitch = np.exp(rng.uniform(np.log(80), np.log(8000)))
        loudness, noise = rng.random(), 10 ** rng.uniform(-4, -0.5)
        sound = loudness * np.sin(2 * np.pi * pitch * time) + noise * rng.normal(size=len(time))
        sounds.append(sound.astype(np.float32))
    return sounds


class LanguageModelConfig(Section):
    """Sizes and schedule; encoder and decoder are equally deep.

    denoise: share of the pairs whose target is the complete source. Captions of real videos share few words, so a
    small model needs this to learn to attend to its encoder. pool: the pairs of this many batches are sorted by length
    before one batch is taken, which reduces padding. tied_start: `lm_head` starts as a scaled copy of `shared`.
    """

    vocab_size: int = 1000
    d_model: int = 128
    d_ff: int = 256
    num_layers: int = 2
    num_heads: int = 4
    dropout: float = 0.0
    steps: int = 500
    batch_size: int = 64
    lr: float = 3e-3
    word_dropout: float = 0.3
    denoise: float = Field(0.0, ge=0, le=1)
    pool: int = Field(1, ge=1)
    tied_start: bool = False
    max_tokens: int = 32
    seed: int = 0


def train_language_model(
    videos: Videos, prompts: Sequence[str], out: Path, config: LanguageModelConfig, progress: Progress = no_progress
) -> tuple[Path, Path]:
    """Write `out/t5` (model and tokenizer) and `out/bert` (word pieces); returns both folders.

    The T5 learns to paraphrase: its input is a caption with words dropped, its target another caption of the same
    video or (`denoise`) the complete one. The stages freeze it, as they do Flan-T5.
    """
    texts = [caption for video in videos for caption in video.captions]
    t5_tokenizer = train_t5_tokenizer([*texts, *prompts], config.vocab_size)
    bert_tokenizer = train_bert_tokenizer([*texts, *prompts], config.vocab_size)
    model = build_t5(len(t5_tokenizer), config)
    _fit(model, t5_tokenizer, videos, config, progress)
    bert_tokenizer.save_pretrained(out / "bert")
    return _save(out / "t5", model, t5_tokenizer), out / "bert"


def train_t5_tokenizer(texts: Sequence[str], vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """Byte-pair pieces with T5's special tokens and their ids: <pad> 0, </s> 1, <unk> 2; </s> ends every text."""
    trained, special = SentencePieceBPETokenizer(), ["<pad>", "</s>", "<unk>"]
    trained.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    trained.train_from_iterator(texts, vocab_size, min_frequency=0, special_tokens=special, show_progress=False)
    tokenizer = Tokenizer.from_str(trained.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def train_bert_tokenizer(texts: Sequence[str], vocab_size: int) -> transformers.BertTokenizerFast:
    """Lower-case word pieces with BERT's special tokens and their ids.

    The same texts give the same pieces, and every character is one. The trainer breaks ties by id, and numbers `##a` …
    at random unless they are in a list.
    """
    trained, special = BertWordPieceTokenizer(), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = (word for text in texts for word, _ in trained.pre_tokenizer.pre_tokenize_str(trained.normalize(text)))
    named = [*special, *(f"##{letter}" for letter in sorted({letter for word in words for letter in word[1:]}))]
    options = {"min_frequency": 0, "limit_alphabet": sys.maxunicode, "show_progress": False}
    trained.train_from_iterator(texts, vocab_size, special_tokens=named, **options)
    return transformers.BertTokenizerFast(vocab=trained.get_vocab(), do_lower_case=True, model_max_length=512)


def build_t5(vocab_size: int, config: LanguageModelConfig) -> transformers.T5ForConditionalGeneration:
    """A fresh T5 v1.1, like Flan-T5: gated GELU, unscaled output, `lm_head` separate from `shared`."""
    torch.manual_seed(config.seed)
    sizes = config.model_dump(include={"d_model", "d_ff", "num_layers", "num_heads"})
    sizes |= {"vocab_size": vocab_size, "d_kv": config.d_model // config.num_heads, "dropout_rate": config.dropout}
    kind = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **kind))
    separate_lm_head(model)
    # T5's own initialization is for pre-training with Adafactor; here logits start near zero.
    with torch.no_grad():
        model.shared.weight.normal_(std=1.0)
        model.lm_head.weight.normal_(std=config.d_model**-0.5)
        if config.tied_start:
            model.lm_head.weight.copy_(model.shared.weight * config.d_model**-0.5)
    return model


def _fit(model: Any, tokenizer: Any, videos: Videos, config: LanguageModelConfig, progress: Progress) -> None:
    rng = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01)
    model.train()
    steps = Steps(range(config.steps))
    padded = {"padding": True, "truncation": True, "max_length": config.max_tokens, "return_tensors": "pt"}
    for step in progress(steps, config.steps, "language model"):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule(step, config.steps, config.steps // 10, 0.05)
        inputs, labels = (tokenizer(texts, **padded) for texts in _pairs(videos, config, rng))
        ids = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
        loss = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps.note = f"loss {loss.item():.3f}"
    model.eval()


def _pairs(videos: Videos, config: LanguageModelConfig, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Two captions each of random videos; the first has words dropped."""
    pairs = []
    for index in rng.integers(len(videos), size=config.batch_size * config.pool):
        captions = videos[index].captions
        first, second = rng.integers(len(captions), size=2)
        words = captions[first].split()
        kept = [word for word in words if rng.random() >= config.word_dropout]
        same = config.denoise > 0 and rng.random() < config.denoise
        pairs.append((" ".join(kept), captions[first if same else second]))
    if config.pool > 1:
        pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        start = int(rng.integers(config.pool)) * config.batch_size
        pairs = pairs[start : start + config.batch_size]
    return [source for source, _ in pairs], [target for _, target in pairs]
