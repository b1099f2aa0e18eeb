"""What decoding gives: captions as tokens.

Letters: N captions · T caption tokens.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Decoded:
    """Captions as tokens.

    ids: [N,T], the start token left out, the padding token after the end.
    ended: [N], whether the caption came to its end token within T.
    log_probs: [N,T], log-probability of each token under the distribution it was drawn from; 0 after the end.
    end: the end token.
    """

    ids: Tensor
    ended: Tensor
    log_probs: Tensor
    end: int = 1

    @property
    def mask(self) -> Tensor:
        """[N,T]: 1 up to and with the first end token, 0 after it."""
        hits = (self.ids == self.end).long()
        return (hits.cumsum(dim=1) - hits == 0).to(self.ids.dtype)

    def rows(self, chosen: slice) -> "Decoded":
        """Some of the captions, cut to the longest of them."""
        length = int(self.mask[chosen].sum(dim=1).max())
        return Decoded(self.ids[chosen, :length], self.ended[chosen], self.log_probs[chosen, :length], self.end)
