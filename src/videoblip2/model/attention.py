"""Where the Q-Formers look: their cross-attention over time, as one weight a row of features.

Letters: B videos · L rows of a modality · P prompt pieces.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from videoblip2.model.branch import ModalityBranch
from videoblip2.model.network import VideoBlip2


@torch.inference_mode()
def cross_attention(
    model: VideoBlip2,
    features: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    qformer_ids: Tensor,
    qformer_mask: Tensor,
) -> dict[str, Tensor]:
    """Cross-attention, averaged over the layers that have one, over heads and queries.

    The arguments are those of `VideoBlip2.encode`. The model itself stays as it is, its attention backend included, so
    another thread may use it meanwhile.

    Returns:
        [B,L] of each modality that the model reads: each row sums to 1, padding gets exactly 0, and the row of a video
        without that modality is all 0.
    """
    return {
        name: _branch_weights(
            model.branch(name), model.upscaled(name, features[name]), masks[name], qformer_ids, qformer_mask
        )
        for name in model.config.modality_names
    }


def _branch_weights(branch: ModalityBranch, features: Tensor, mask: Tensor, ids: Tensor, ids_mask: Tensor) -> Tensor:
    twin, seen = _eager_twin(branch), []
    for layer in twin.qformer.encoder.layer:
        if layer.has_cross_attention:
            layer.crossattention.attention.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    twin(features, mask, ids, ids_mask)
    layers = torch.stack([weights.float().mean(dim=(1, 2)) for weights in seen])  # [layers,B,L] of [B,heads,Q,L]
    return layers.mean(dim=0) * mask  # an empty row shows the learned absent state in its first place


def _eager_twin(branch: ModalityBranch) -> ModalityBranch:
    """The same branch on the same weights with the attention that gives its weights; nothing large is copied."""
    shared = {id(tensor): tensor for tensor in (*branch.parameters(), *branch.buffers())}
    twin = copy.deepcopy(branch, shared).eval()
    twin.qformer.config._attn_implementation = "eager"
    return twin
