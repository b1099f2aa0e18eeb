"""Cross-attention on the encoder's states themselves: key and value weights moved over to the query and the result.

    for one head:  q · (W_k s) = (W_kᵀ q) · s      and      Σ a_s (W_v s) = W_v (Σ a_s s)

No keys and values are computed, and all layers read the same states, where caches of keys and values are 2·L times as
large. Each token costs more arithmetic instead, so this pays for a few dozen tokens with one caption a video: at B = 32
of T5-base on two cores, three fifths of cross-attention's time at 16 tokens, the same at 32 (decision 0005). The
rearrangement is DeepSeek-V2's "absorption" (2024, section 2.1).

Letters: B videos · S encoder places · E width · H heads · d width of a head.
"""

import torch
from torch import Tensor

#: Fewer videos, or more tokens, and reading the weights at each token costs more than keys and values do.
VIDEOS, TOKENS = 8, 32


def pays(states: Tensor, rows: int, max_tokens: int) -> bool:
    """Whether this is quicker for states [B,S,E] and `rows` captions of at most `max_tokens`."""
    fits = states.device.type == "cpu" and states.dtype == torch.float32
    return fits and rows == len(states) >= VIDEOS and max_tokens <= TOKENS


def attend(query: Tensor, key_value: Tensor, states: Tensor, bias: Tensor) -> Tensor:
    """query [B,H·d], weights [2,H,d,E], states [B,S,E], bias [B,1,S] → what each caption sees, [B,H·d]."""
    key_weight, value_weight = key_value
    heads, width, _ = key_weight.shape
    query = query.view(-1, heads, width).transpose(0, 1)  # [H,B,d]
    asked = torch.bmm(query, key_weight).transpose(0, 1)  # [B,H,E]
    weights = (torch.bmm(asked, states.transpose(1, 2)) + bias).softmax(dim=-1)  # [B,H,S]
    seen = torch.bmm(weights, states).transpose(0, 1)  # [H,B,E]
    return torch.bmm(seen, value_weight.transpose(1, 2)).transpose(0, 1).reshape(-1, heads * width)
