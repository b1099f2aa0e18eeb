"""From encoder states to captions: greedy, sampled, beam search."""

from torch import Tensor

from videoblip2.config import Decoding
from videoblip2.model.decode.beam_search import beam
from videoblip2.model.decode.sampling import Generators, Sampling, TokenWatch, greedy, greedy_and_sample, sample
from videoblip2.model.decode.stepper import Decoded
from videoblip2.model.language_model import LanguageModel

__all__ = ["Decoded", "Sampling", "beam", "generate", "greedy", "greedy_and_sample", "sample"]


def generate(
    language_model: LanguageModel,
    encoded: tuple[Tensor, Tensor],
    decoding: Decoding,
    generator: Generators = None,
    watch: TokenWatch | None = None,
) -> tuple[Decoded, Tensor]:
    """Encoder states [B,S,E] and their mask [B,S] → captions, and the score of each.

    The score is the mean log-probability of a caption's tokens, or a beam's length-normalized one. A `generator` needs
    `sampled`, as for the samples of a consensus; beams cannot be watched.
    """
    if decoding.num_beams > 1:
        return beam(language_model, *encoded, decoding.max_new_tokens, decoding.num_beams, decoding.length_penalty)
    if decoding.sampled:
        sampling = Sampling(max(1, decoding.consensus), decoding.temperature, generator)
        out = sample(language_model, *encoded, decoding.max_new_tokens, sampling, watch)
    else:
        out = greedy(language_model, *encoded, decoding.max_new_tokens, watch)
    return out, out.log_probs.sum(dim=1) / out.mask.sum(dim=1)
