"""The network's sizes, as a transformers configuration, stored in a checkpoint as `config.json`."""

from typing import Any, TypeAlias

from transformers import CONFIG_MAPPING, AutoConfig, InstructBlipQFormerConfig, PreTrainedConfig

from videoblip2.modality import BOTH, MODALITIES, modality_names

Part: TypeAlias = dict[str, Any] | PreTrainedConfig | None  # JSON, a configuration, or None for its defaults


class VideoBlip2Config(PreTrainedConfig):
    """Everything needed to rebuild the network from its weights alone.

    Args:
        text_config: the language model; a dictionary without `model_type` is a T5's.
        NAME_qformer_config, NAME_dim: the Q-Former of each modality, whose `encoder_hidden_size` is the width that
            cross-attention reads, and the width of the features. Other modalities use keyword arguments.
        modalities: as `model.modalities` of the configuration.
        upscaled_dim: width of the features that pass through an upscaler.
        separate_lm_head: `lm_head` is not tied to the input embeddings, as in T5 v1.1 and Flan-T5.
        finetune: "lora" (language model frozen) or "full" (trained in full, no LoRA).
        lora_merged: LoRA is merged into the language model's weights, as earlier versions could do.
    """

    model_type = "videoblip2"
    sub_configs = {  # noqa: RUF012
        "text_config": AutoConfig,
        "video_qformer_config": InstructBlipQFormerConfig,
        "audio_qformer_config": InstructBlipQFormerConfig,
    }

    text_config: Part = None
    video_qformer_config: Part = None
    audio_qformer_config: Part = None
    num_queries: int = 32
    video_dim: int = 768
    audio_dim: int = 512
    upscaled_dim: int = 768
    modalities: str | list[str] | tuple[str, ...] = BOTH
    temporal_embedding: bool = True
    max_positions: int = 256
    separate_lm_head: bool = False
    finetune: str = "lora"
    lora_r: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.05
    lora_target_modules: list[str] | tuple[str, ...] = ("q", "v")
    lora_merged: bool = False
    prompt: str = "a video of"

    def __post_init__(self, **kwargs: Any) -> None:
        text = self.text_config
        kind = text.get("model_type", "t5") if isinstance(text, dict) else "t5"
        self.text_config = _as(CONFIG_MAPPING[kind], text)
        for name in modality_names((*modality_names(BOTH), *self.modality_names)):
            key = f"{name}_qformer_config"
            setattr(self, key, _as(InstructBlipQFormerConfig, kwargs.pop(key, getattr(self, key, None))))
        super().__post_init__(**kwargs)

    @property
    def modality_names(self) -> tuple[str, ...]:
        """The modalities that the network reads, in the table's order."""
        return modality_names(self.modalities)

    @property
    def widths(self) -> dict[str, int]:
        """Width of the features of each modality that the network reads."""
        return {name: getattr(self, f"{name}_dim", MODALITIES[name].width) for name in self.modality_names}


def _as(kind: type[PreTrainedConfig], value: Part) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    return kind(**(value or {}))


# As usual with transformers, importing the class registers it with AutoConfig.
AutoConfig.register(VideoBlip2Config.model_type, VideoBlip2Config, exist_ok=True)
