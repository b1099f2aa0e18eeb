"""Where the Q-Formers look: their cross-attention over time, as one weight a frame and one an audio window.

Letters: B videos · F frames · A audio windows · P prompt pieces.
"""

import copy

import torch
from torch import Tensor

from videoblip2.model.branch import ModalityBranch
from videoblip2.model.network import VideoBlip2


@torch.inference_mode()
def cross_attention(
    model: VideoBlip2,
    video: Tensor,
    video_mask: Tensor,
    audio: Tensor,
    audio_mask: Tensor,
    qformer_ids: Tensor,
    qformer_mask: Tensor,
) -> dict[str, Tensor]:
    """Cross-attention, averaged over the layers that have one, over heads and queries.

    The arguments are those of `VideoBlip2.encode`. The model itself is left as it is, its attention backend included,
    so another thread may use it meanwhile.

    Returns:
        "video" [B,F] and "audio" [B,A], as far as the model has that branch: each row sums to 1, padding gets exactly
        0, and the row of a video without that modality is all 0.
    """
    prompt = qformer_ids, qformer_mask
    weights = {}
    if "video" in model.config.modality_names:
        weights["video"] = _branch_weights(model.video_branch, video, video_mask, *prompt)
    if "audio" in model.config.modality_names:
        weights["audio"] = _branch_weights(model.audio_branch, model.audio_upscaler(audio), audio_mask, *prompt)
    return weights


def _branch_weights(branch: ModalityBranch, features: Tensor, mask: Tensor, ids: Tensor, ids_mask: Tensor) -> Tensor:
    twin, seen = _eager_twin(branch), []
    for layer in twin.qformer.encoder.layer:
        if layer.has_cross_attention:
            layer.crossattention.attention.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    twin(features, mask, ids, ids_mask)
    layers = torch.stack([weights.float().mean(dim=(1, 2)) for weights in seen])  # [layers,B,F] of [B,heads,Q,F]
    return layers.mean(dim=0) * mask  # the learned "there is none" stands in the first place of an empty row


def _eager_twin(branch: ModalityBranch) -> ModalityBranch:
    """The same branch on the same weights with the attention that gives its weights; nothing large is copied."""
    shared = {id(tensor): tensor for tensor in (*branch.parameters(), *branch.buffers())}
    twin = copy.deepcopy(branch, shared).eval()
    twin.qformer.config._attn_implementation = "eager"
    return twin
