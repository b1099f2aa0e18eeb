"""One modality: a ragged sequence of features in, a fixed number of queries out.

Letters: B videos · F features (frames or audio windows) · C their width · Q queries · D Q-Former width ·
P prompt pieces.
"""

import copy
from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

from videoblip2.modality import MODALITIES
from videoblip2.model.configuration import VideoBlip2Config

QFormer = tuple[InstructBlipQFormerModel, nn.Parameter]


class ModalityBranch(nn.Module):
    """LayerNorm → temporal embedding → (adapter) → Q-Former, with a learned state for a missing modality.

    A Q-Former reads its features as a set, so only the temporal embedding shows the order of frames
    (Video-LLaMA, Zhang et al. 2023, sec. 3.1). A video whose feature mask is empty, such as one without an audio
    stream, gets one learned feature, `absent`: padding is never attended to.

    Args:
        config: of the whole network.
        given: a Q-Former with its query tokens [1,Q,D]; None creates fresh ones. An adapter is added if widths differ.
    """

    def __init__(self, config: VideoBlip2Config, modality: str, given: QFormer | None = None) -> None:
        super().__init__()
        qformer_config = getattr(config, f"{modality}_qformer_config")
        qformer, query_tokens = given or fresh_qformer(qformer_config, config.num_queries)
        width = config.upscaled_dim if MODALITIES[modality].upscaled else config.widths[modality]
        reads: int = qformer.config.encoder_hidden_size
        adapter = FeatureAdapter(width, reads) if reads != width else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.positions = nn.Embedding(config.max_positions, width) if config.temporal_embedding else None
        self.absent = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.adapter, self.query_tokens, self.qformer = adapter, query_tokens, qformer
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, features: Tensor, mask: Tensor, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """[B,F,C], [B,F] (1 = real), [B,P], [B,P] → [B,Q,D]."""
        features = self.norm(features)
        if self.positions is not None:
            features = features + self.positions.weight[: features.shape[1]]  # [F,C] on [B,F,C]
        empty = mask.sum(dim=1, keepdim=True) == 0  # [B,1]: no features, so the first one is the learned one
        first = torch.where(empty, self.absent.to(features.dtype), features[:, 0])  # [B,C]
        features = torch.cat([first[:, None], features[:, 1:]], dim=1)
        mask = torch.cat([mask[:, :1] | empty.to(mask.dtype), mask[:, 1:]], dim=1)
        queries = self.query_tokens.expand(len(features), -1, -1)  # [B,Q,D]
        seen = torch.cat([mask.new_ones(queries.shape[:2]), prompt_mask], dim=1)  # [B,Q+P]
        output = self.qformer(
            input_ids=prompt_ids,
            attention_mask=seen,
            query_embeds=queries,
            encoder_hidden_states=self.adapter(features),
            encoder_attention_mask=mask,
        )
        return cast(Tensor, output.last_hidden_state[:, : queries.shape[1]])  # [B,Q,D]

    def attention(self, features: Tensor, mask: Tensor, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """Cross-attention for the arguments of `forward`, averaged over its layers, heads and queries: [B,F].

        Computed by a copy that shares the weights, in a backend that returns attention: thread-safe.
        """
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        twin, seen = copy.deepcopy(self, shared).eval(), []
        twin.qformer.config._attn_implementation = "eager"
        for layer in twin.qformer.encoder.layer:
            if layer.has_cross_attention:
                layer.crossattention.attention.register_forward_hook(lambda _, __, output: seen.append(output[1]))
        twin(features, mask, prompt_ids, prompt_mask)
        layers = torch.stack([weights.float().mean(dim=(1, 2)) for weights in seen])  # [layers,B,F] of [B,heads,Q,F]
        return layers.mean(dim=0) * mask  # the first weight of an empty row is for `absent`


def fresh_qformer(config: InstructBlipQFormerConfig, num_queries: int) -> QFormer:
    """A Q-Former with fresh weights, and its query tokens [1,Q,D]."""
    qformer = InstructBlipQFormerModel(config)
    return qformer, nn.Parameter(torch.empty(1, num_queries, config.hidden_size).normal_(std=0.02))


class FeatureAdapter(nn.Sequential):
    """LayerNorm over the features, then Linear to the width that the pre-trained key and value weights expect.

    Those were trained on unit variance (`ln_vision`): the Linear, initially a scaled isometry, keeps that, and angles.
    """

    def __init__(self, feature_dim: int, width: int) -> None:
        linear = nn.Linear(feature_dim, width)
        nn.init.orthogonal_(linear.weight, gain=max(1.0, (width / feature_dim) ** 0.5))
        nn.init.zeros_(linear.bias)
        super().__init__(OrderedDict(layernorm=nn.LayerNorm(feature_dim), linear=linear))
