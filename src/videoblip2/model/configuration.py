"""The network's sizes, as a transformers configuration that a checkpoint carries (`config.json`)."""

from typing import Any

from transformers import AutoConfig, InstructBlipQFormerConfig, PreTrainedConfig, T5Config


class VideoBlip2Config(PreTrainedConfig):
    """Everything needed to rebuild the network with no other file than its weights.

    Args:
        text_config: the frozen T5.
        video_qformer_config, audio_qformer_config: one Q-Former a modality; `encoder_hidden_size` is the width its
            cross-attention reads.
        modalities: "both", "video" or "audio".
        separate_lm_head: T5 v1.1 and Flan-T5 keep `lm_head` apart from `shared`.
        finetune: "lora" (T5 frozen) or "full" (all of T5 trains, no LoRA).
        lora_merged: LoRA is folded into T5's weights, so a rebuilt network has no LoRA of its own.
    """

    model_type = "videoblip2"
    sub_configs = {  # noqa: RUF012
        "text_config": T5Config,
        "video_qformer_config": InstructBlipQFormerConfig,
        "audio_qformer_config": InstructBlipQFormerConfig,
    }

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    video_qformer_config: dict[str, Any] | PreTrainedConfig | None = None
    audio_qformer_config: dict[str, Any] | PreTrainedConfig | None = None
    num_queries: int = 32
    video_dim: int = 768
    audio_dim: int = 512
    upscaled_dim: int = 768
    modalities: str = "both"
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
        self.text_config = _as(T5Config, self.text_config)
        self.video_qformer_config = _as(InstructBlipQFormerConfig, self.video_qformer_config)
        self.audio_qformer_config = _as(InstructBlipQFormerConfig, self.audio_qformer_config)
        super().__post_init__(**kwargs)

    @property
    def modality_names(self) -> tuple[str, ...]:
        """("video", "audio"), or the single one."""
        return ("video", "audio") if self.modalities == "both" else (self.modalities,)


def _as(kind: type[PreTrainedConfig], value: dict[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    return kind(**(value or {}))


# The habit of the transformers ecosystem: whoever imports the class can load it through AutoConfig.
AutoConfig.register(VideoBlip2Config.model_type, VideoBlip2Config, exist_ok=True)
