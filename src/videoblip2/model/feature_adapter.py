"""The layer in front of a pre-trained cross-attention whose width is not that of our features."""

import torch
from torch import nn


class FeatureAdapter(nn.Module):
    """LayerNorm over the features, then Linear to the width the pre-trained key and value weights expect.

    In BLIP-2 those weights see features that `ln_vision` has normalised: about unit variance. The Linear starts as a
    scaled isometry, so the adapted features keep that variance and the angles between frames until training moves it.
    """

    def __init__(self, feature_dim: int, width: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(feature_dim)
        self.linear = nn.Linear(feature_dim, width)
        nn.init.orthogonal_(self.linear.weight, gain=max(1.0, (width / feature_dim) ** 0.5))
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features [B, F, feature_dim] -> [B, F, width]."""
        adapted: torch.Tensor = self.linear(self.layernorm(features))
        return adapted
