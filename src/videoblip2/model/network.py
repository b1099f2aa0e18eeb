"""VideoBlip2: one Q-Former per modality in front of a frozen language model (BLIP-2, Li et al. 2023) with LoRA.

Letters: B videos · N captions per video · M modalities · L rows of one, C their width · Q queries · D Q-Former width ·
E language-model width · P prompt pieces · T caption tokens · V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from videoblip2.config import GREEDY
from videoblip2.modality import MODALITIES
from videoblip2.model import decode
from videoblip2.model.branch import ModalityBranch
from videoblip2.model.configuration import VideoBlip2Config
from videoblip2.model.fused import fuse
from videoblip2.model.language_model import LanguageModel, fresh_language_model, recomputed, separate_lm_head


class VideoBlip2(PreTrainedModel):
    """The language model reads `[queries of each modality, prompt]`. It is frozen, with LoRA on its attention.

    With `finetune="full"` the whole language model is trained, without LoRA.

    Modules passed in are used as they are; the others are built from the configuration with fresh weights.
    """

    config_class = VideoBlip2Config
    config: VideoBlip2Config
    base_model_prefix = "videoblip2"
    main_input_name = "features"
    decoding = GREEDY  # by default; of a loaded checkpoint its own, which `vb2 evaluate` measures
    compiled_decoding = False  # see `LanguageModel.compiled`
    checkpointing = False  # see `recomputed`
    _supports_sdpa = True
    _no_split_modules = ["InstructBlipQFormerLayer"]  # noqa: RUF012

    def __init__(
        self,
        config: VideoBlip2Config,
        language_model: PreTrainedModel | None = None,
        branches: Mapping[str, ModalityBranch] | None = None,
    ) -> None:
        super().__init__(config)
        width: int = config.text_config.hidden_size  # type: ignore[union-attr]
        for name in config.modality_names:
            if MODALITIES[name].upscaled:
                self.add_module(f"{name}_upscaler", nn.Linear(config.widths[name], config.upscaled_dim))
            branch = (branches or {}).get(name) or ModalityBranch(config, name)
            self.add_module(f"{name}_branch", branch)
            self.add_module(f"proj_{name}", nn.Linear(branch.qformer.config.hidden_size, width))
        self.language_model = language_model or fresh_language_model(config.text_config)  # type: ignore[arg-type]
        fuse(self.language_model)
        if config.separate_lm_head:
            separate_lm_head(self.language_model)
        lora = config.finetune == "lora"
        if lora and not config.lora_merged:
            self.text.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_target_modules)
        self.text.freeze(but_lora=lora)
        if next(self.parameters()).device.type != "meta":
            # All weights are set: transformers must not initialize them again (and undo pre-trained ones).
            for module in self.modules():
                module._is_hf_initialized = True
        self.post_init()
        self._keys_to_ignore_on_save = None  # a checkpoint has every tensor, even those that transformers can compute
        for module in self.modules():
            if isinstance(module, PreTrainedModel):  # submodels do not inherit it, and masks follow it
                module.config._attn_implementation = config._attn_implementation if module._supports_sdpa else "eager"

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """transformers' method, then freeze the language model again: loading makes every parameter trainable."""
        loaded = super().from_pretrained(*args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.text.freeze(but_lora=model.config.finetune == "lora")
        return loaded

    @property
    def text(self) -> LanguageModel:
        """The language model through its interface."""
        return LanguageModel(self.language_model, self.compiled_decoding, self.checkpointing)

    def encode(
        self,
        features: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        qformer_ids: Tensor,
        qformer_mask: Tensor,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run every Q-Former and the language model's encoder.

        Args:
            features, masks: [B,L,C] and [B,L] by modality; 1 where a row is real, all 0 if a video lacks it.
            qformer_ids, qformer_mask: the prompt in BERT word pieces, [B,P].
            prompt_ids, prompt_mask: the same prompt in the language model's pieces, [B,P'].

        Returns:
            Encoder states [B,S,E] and their mask [B,S], with S = M·Q + P'.
        """
        with recomputed(self, self.checkpointing):
            parts = []
            for name in self.config.modality_names:
                rows = self.upscaled(name, features[name])
                states = self.branch(name)(rows, masks[name], qformer_ids, qformer_mask)  # [B,Q,D]
                parts.append(self.get_submodule(f"proj_{name}")(states))
            queries = torch.cat(parts, dim=1)  # [B,M·Q,E]
            prompt = self.text.embed(prompt_ids)  # [B,P',E]
            mask = torch.cat([prompt_mask.new_ones(queries.shape[:2]), prompt_mask], dim=1)  # [B,S]
            inputs = torch.cat([queries, prompt.to(queries.dtype)], dim=1)
            return self.text.encode(inputs, mask), mask

    def branch(self, modality: str) -> ModalityBranch:
        """The part of the network that reads one modality."""
        return cast(ModalityBranch, self.get_submodule(f"{modality}_branch"))

    def upscaled(self, modality: str, features: Tensor) -> Tensor:
        """Features [B,L,C] in the width that their branch reads."""
        if not MODALITIES[modality].upscaled:
            return features
        return cast(Tensor, self.get_submodule(f"{modality}_upscaler")(features))

    @torch.inference_mode()
    def cross_attention(
        self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor], qformer_ids: Tensor, qformer_mask: Tensor
    ) -> dict[str, Tensor]:
        """The Q-Formers' attention, one weight per row of features; arguments as for `encode`.

        Returns:
            [B,L] of each modality: each row sums to 1, padding is exactly 0, and a missing modality has all 0.
        """
        text, names = (qformer_ids, qformer_mask), self.config.modality_names
        rows = {name: self.upscaled(name, features[name]) for name in names}
        return {name: self.branch(name).attention(rows[name], masks[name], *text) for name in names}

    def decode(self, states: Tensor, mask: Tensor, labels: Tensor, live: Tensor | None = None) -> Tensor:
        """Teacher forcing: states [B,S,E], mask [B,S], labels [B·N,T] → logits. See `LanguageModel.decode`."""
        return self.text.decode(states, mask, labels, live)

    def forward(self, labels: Tensor, live: Tensor | None = None, **inputs: Any) -> Tensor:
        """`encode`, then `decode`: logits [B·N,T,V], or [L,V] at the places `live`."""
        states, mask = self.encode(**inputs)
        return self.decode(states, mask, labels, live)

    @torch.no_grad()
    def generate(
        self,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        do_sample: bool = False,
        temperature: float | None = None,
        length_penalty: float | None = None,
        generator: torch.Generator | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Caption ids in the format of transformers' `generate`: `model.generate(**batch.inputs, num_beams=5)`.

        Args:
            inputs: the arguments of `encode`; what else is left out is as in `decoding`, but without its consensus.
            num_beams: 1 = the likeliest token at each step, or with `do_sample` one sampled from the whole
                distribution (no top-k, no top-p); more = beam search.

        Returns:
            [B,T+1]: the start token first, padding after the end.
        """
        options = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "length_penalty": length_penalty}
        decoding = self.decoding.but(do_sample, temperature=temperature, **options)
        out, _ = decode.generate(self.text, self.encode(**inputs), decoding, generator)
        return torch.cat([out.ids.new_full((len(out.ids), 1), self.text.tokens.start), out.ids], dim=1)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by name: Q-Formers, queries, upscaler, projections, norms, LoRA or language model."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: each module initializes its own weights when it is built."""


AutoModel.register(VideoBlip2Config, VideoBlip2, exist_ok=True)
