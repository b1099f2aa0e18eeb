"""A small T5 for machines without a pre-trained one: tokenizers and a text model, trained on captions only.

It learns to paraphrase: its input is a caption with words left out, its target another caption of the same video or
(`denoise`) the complete one. The stages freeze it, as they do Flan-T5.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import Metaspace
from transformers import BertTokenizerFast, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from videoblip2.data.annotations import VideoAnnotation
from videoblip2.errors import Progress, Steps, no_progress, validated
from videoblip2.imports import quiet_transformers
from videoblip2.model.language_model import separate_lm_head
from videoblip2.training.update import schedule


class LanguageModelConfig(BaseModel):
    """Sizes and schedule; encoder and decoder are equally deep.

    denoise: share of the pairs whose target is the complete source. Captions of real videos share few words, and this
    is what teaches a small model to attend to its encoder. pool: the pairs of this many batches are sorted by length
    before one batch is taken, which reduces padding. tied_start: `lm_head` starts as a scaled copy of `shared`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    videos: Sequence[VideoAnnotation],
    prompts: Sequence[str],
    out: Path,
    config: LanguageModelConfig,
    progress: Progress = no_progress,
) -> tuple[Path, Path]:
    """Write `out/t5` (model and tokenizer) and `out/bert` (word pieces); returns both folders."""
    texts = [caption for video in videos for caption in video.captions]
    t5_tokenizer = train_t5_tokenizer([*texts, *prompts], config.vocab_size)
    bert_tokenizer = train_bert_tokenizer([*texts, *prompts], config.vocab_size)
    model = build_t5(len(t5_tokenizer), config)
    _fit(model, t5_tokenizer, videos, config, progress)
    with quiet_transformers():
        model.save_pretrained(out / "t5")
    t5_tokenizer.save_pretrained(out / "t5")
    bert_tokenizer.save_pretrained(out / "bert")
    return out / "t5", out / "bert"


def train_t5_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-pair pieces with T5's special tokens and their ids: <pad> 0, </s> 1, <unk> 2; </s> ends every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def train_bert_tokenizer(texts: Sequence[str], vocab_size: int) -> BertTokenizerFast:
    """Lower-case word pieces with BERT's special tokens and their ids."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return BertTokenizerFast(vocab=tokenizer.get_vocab(), do_lower_case=True, model_max_length=512)


def build_t5(vocab_size: int, config: LanguageModelConfig) -> T5ForConditionalGeneration:
    """A fresh T5 v1.1, like Flan-T5: gated GELU, unscaled output, `lm_head` separate from `shared`."""
    torch.manual_seed(config.seed)
    sizes = config.model_dump(include={"d_model", "d_ff", "num_layers", "num_heads"})
    sizes |= {"vocab_size": vocab_size, "d_kv": config.d_model // config.num_heads, "dropout_rate": config.dropout}
    kind = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(**sizes, **kind))
    separate_lm_head(model)
    # T5's own initialisation is made for pre-training with Adafactor; here logits start near zero.
    with torch.no_grad():
        model.shared.weight.normal_(std=1.0)
        model.lm_head.weight.normal_(std=config.d_model**-0.5)
        if config.tied_start:
            model.lm_head.weight.copy_(model.shared.weight * config.d_model**-0.5)
    return model


def _fit(
    model: Any, tokenizer: Any, videos: Sequence[VideoAnnotation], config: LanguageModelConfig, progress: Progress
) -> None:
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


def _pairs(
    videos: Sequence[VideoAnnotation], config: LanguageModelConfig, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Two captions each of random videos; the first loses some of its words."""
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


def parse_settings(words: Sequence[str]) -> LanguageModelConfig:
    """["steps=500", …] → settings; InputError names the unknown one."""
    return validated(LanguageModelConfig, dict(word.partition("=")[::2] for word in words), "setting")
