"""The two vocabularies of the model: BERT word pieces for the Q-Formers, T5's pieces for the language model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizerFast

from videoblip2.config import InputError
from videoblip2.errors import first_line

QFORMER_FOLDER = "qformer_tokenizer"


@dataclass(frozen=True)
class Tokenizers:
    """`t5` for prompts and captions, `bert` for the prompt beside the queries.

    For several threads: a tokenizer keeps the length to cut at, and threads without a lock get each other's.
    """

    t5: Any
    bert: Any
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[type["Tokenizers"], tuple[Any, Any]]:
        return Tokenizers, (self.t5, self.bert)

    def prompts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """B prompts → qformer_ids, qformer_mask [B,P] and prompt_ids, prompt_mask [B,P']."""
        with self._lock:
            bert = self.bert(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
            t5 = self.t5(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
        return {
            "qformer_ids": bert.input_ids,
            "qformer_mask": bert.attention_mask,
            "prompt_ids": t5.input_ids,
            "prompt_mask": t5.attention_mask,
        }

    def labels(self, captions: Sequence[str], max_tokens: int) -> Tensor:
        """N captions → [N,T], each ends with the end token; -100 = padding."""
        with self._lock:
            encoded = self.t5(list(captions), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        labels: Tensor = encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)
        return labels

    def texts(self, ids: Tensor) -> list[str]:
        """[N,T] → N captions without special tokens."""
        with self._lock:
            texts = self.t5.batch_decode(torch.clamp(ids, min=0), skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def save(self, folder: Path) -> None:
        """T5's files into `folder`, BERT's into its subfolder."""
        self.t5.save_pretrained(folder)
        self.bert.save_pretrained(folder / QFORMER_FOLDER)


def load_tokenizers(t5: str | Path, bert: str | Path) -> Tokenizers:
    """From folders or hub names."""
    return Tokenizers(t5=_load(AutoTokenizer, t5), bert=_load(BertTokenizerFast, bert))


def _load(kind: Any, source: str | Path) -> Any:
    try:
        return kind.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise InputError(
            f"tokenizer {source}: {first_line(error)}; give a folder with its files, or a hub name online"
        ) from error
