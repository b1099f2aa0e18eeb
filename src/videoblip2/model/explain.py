"""How much each word of a caption depends on the sound and on the picture: its log-probability with and without them.

Letters: N captions · T tokens · V vocabulary · W words.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from videoblip2.modality import ExplainedWord
from videoblip2.model.network import VideoBlip2
from videoblip2.model.tokenizers import Tokenizers


@torch.inference_mode()
def explain(
    model: VideoBlip2, tokenizers: Tokenizers, inputs: Mapping[str, Any], captions: Sequence[str]
) -> list[tuple[ExplainedWord, ...]]:
    """Explain the words of N captions, one per video.

    A modality is withheld by giving the network its learned state for a missing modality, so for a video without sound
    the effect of sound is exactly 0. The end token belongs to no word.

    Args:
        inputs: the arguments of `VideoBlip2.encode`.
    """
    labels, places, words = tokenizers.words(captions)
    labels, places = labels.to(model.device), places.to(model.device)

    def log_probs(withheld: str = "") -> Tensor:
        """[N,W]: the sum over the tokens of each word; the last column is for tokens of no word."""
        masks = {name: mask * (name != withheld) for name, mask in inputs["masks"].items()}
        logits = model(labels, **{**inputs, "masks": masks}).double()  # [N,T,V]
        chosen = torch.log_softmax(logits, dim=-1).gather(2, labels.clamp(min=0)[..., None]).squeeze(2)
        return chosen.new_zeros(len(labels), int(places.max()) + 1).scatter_add_(1, places, chosen)

    with_all = log_probs()
    falls = {name: (with_all - log_probs(name)).round(decimals=6).tolist() for name in model.config.modality_names}
    nothing = torch.zeros_like(with_all).tolist()
    rows = zip(words, falls.get("audio", nothing), falls.get("video", nothing), strict=True)
    return [tuple(map(ExplainedWord, texts, sound, picture)) for texts, sound, picture in rows]
