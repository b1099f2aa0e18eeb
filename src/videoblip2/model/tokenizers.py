"""The two vocabularies of the model: BERT word pieces for the Q-Formers, the language model's own pieces."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizerFast

from videoblip2.config import InputError
from videoblip2.errors import first_line
from videoblip2.imports import hub_answers

QFORMER_FOLDER = "qformer_tokenizer"
_LOCK = Lock()  # a tokenizer stores its truncation length, so threads need a lock


@dataclass(frozen=True)
class Tokenizers:
    """`text` for prompts and captions, `bert` for the prompt beside the queries; thread-safe."""

    text: Any
    bert: Any

    def prompts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """B prompts → qformer_ids, qformer_mask [B,P] and prompt_ids, prompt_mask [B,P']."""
        pieces: dict[str, Tensor] = {}
        with _LOCK:
            for kind, tokenizer in (("qformer", self.bert), ("prompt", self.text)):
                batch = tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
                pieces |= {f"{kind}_ids": batch.input_ids, f"{kind}_mask": batch.attention_mask}
        return pieces

    def labels(self, captions: Sequence[str], max_tokens: int) -> Tensor:
        """N captions → [N,T], -100 = padding. Each ends with the end token, unless it is cut to `max_tokens`."""
        with _LOCK:
            encoded = self.text(list(captions), padding=True, return_tensors="pt")
        return cast(Tensor, encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)[:, :max_tokens])

    def pieces(self, captions: Sequence[str]) -> list[list[int]]:
        """The pieces of each caption, uncut, with the end token."""
        with _LOCK:
            return list(self.text(list(captions)).input_ids)

    def words(self, captions: Sequence[str]) -> tuple[Tensor, Tensor, list[list[str]]]:
        """N captions → labels [N,T] as `labels` gives them, uncut, the index of each token's word, and the words.

        A token of no word, such as the end token, has an index after the last word of any caption.
        """
        options = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        with _LOCK:
            encoded = self.text(list(captions), padding=True, return_tensors="pt", **options)
        labels = encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)
        found = [list(re.finditer(r"\S+", caption)) for caption in captions]
        places = torch.full_like(labels, max(map(len, found), default=0))
        for row, words in enumerate(found):
            ends = [word.end() for word in words]
            for at, (begin, _) in enumerate(encoded.offset_mapping[row].tolist()):
                if words and not encoded.special_tokens_mask[row, at]:
                    # A piece may begin with the space before its word.
                    places[row, at] = min(bisect_right(ends, begin), len(words) - 1)
        return labels, places, [[word[0] for word in words] for words in found]

    def texts(self, ids: Tensor) -> list[str]:
        """[N,T] → N captions without special tokens."""
        with _LOCK:
            texts = self.text.batch_decode(torch.clamp(ids, min=0), skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def save(self, folder: Path) -> None:
        """The language model's files into `folder`, BERT's into its subfolder."""
        self.text.save_pretrained(folder)
        self.bert.save_pretrained(folder / QFORMER_FOLDER)


def load_tokenizers(
    text: str | Path, bert: str | Path, settings: tuple[str, str] = ("model.language_model", "model.qformer.bert")
) -> Tokenizers:
    """From folders or hub names; `settings`, which gave them, are named in errors."""
    both = Tokenizers(text=_load(AutoTokenizer, settings[0], text), bert=_load(BertTokenizerFast, settings[1], bert))
    # Of another vocabulary, or of no files at all, transformers makes one with its special tokens added.
    if not both.bert.cls_token_id < both.bert.vocab_size > len(both.bert.all_special_ids):
        fault = f"{settings[1]}={bert}: has no BERT word pieces"
        raise InputError(f"{fault}; give a folder with BERT's tokenizer files, or a hub name online")
    return both


def _load(kind: Any, setting: str, source: str | Path) -> Any:
    try:
        return kind.from_pretrained(str(source), local_files_only=not hub_answers(str(source)))
    except (OSError, ValueError, ImportError) as error:
        reason, remedy = first_line(error), "give a folder with its files, or a hub name online"
        if "tiktoken" in str(error):  # transformers' fallback for a SentencePiece model it cannot read
            reason = "it has a SentencePiece model (spiece.model) and no tokenizer.json, and the model cannot be read"
            missing = find_spec("sentencepiece") is None
            remedy = "run `pip install sentencepiece`" if missing else "the model is damaged: copy or download it again"
        raise InputError(f"{setting}={source}: no tokenizer: {reason}; {remedy}") from error
