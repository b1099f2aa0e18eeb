"""From encoder states to captions: greedy, sampled, beam search."""

from videoblip2.model.decode.beam_search import beam
from videoblip2.model.decode.decoded import Decoded
from videoblip2.model.decode.sampling import Sampling, greedy, greedy_and_sample, sample

__all__ = ["Decoded", "Sampling", "beam", "greedy", "greedy_and_sample", "sample"]
