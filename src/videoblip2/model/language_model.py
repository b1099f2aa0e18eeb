"""The language model behind the Q-Formers: any encoder-decoder of transformers, behind one small interface.

To add one, add an entry to `LANGUAGE_MODELS`. It decodes with transformers' own cache until a faster stepper is
registered in `decode.stepper.STEPPERS`.

Letters: B videos · N captions per video · S encoder places · E width · P prompt pieces · T caption tokens ·
V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING as CLASSES
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from videoblip2.config import InputError
from videoblip2.errors import first_line, refused
from videoblip2.imports import hub_answers, quiet_transformers


@dataclass(frozen=True)
class Family:
    """Facts about one kind of language model that transformers' common interface lacks.

    projections: its names for attention's q, k, v and o, where they differ; for `model.lora.target_modules`.
    """

    label: str
    projections: Mapping[str, str] = field(default_factory=dict)


_T5 = {"t5": "T5", "mt5": "mT5", "umt5": "umT5", "longt5": "LongT5"}
_BART = {
    "bart": "BART", "mbart": "mBART", "pegasus": "Pegasus", "marian": "Marian", "m2m_100": "M2M100",
    "blenderbot": "Blenderbot", "led": "LED",
}  # fmt: skip
_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
#: By the `model_type` of config.json.
LANGUAGE_MODELS = {
    **{kind: Family(label) for kind, label in _T5.items()},
    **{kind: Family(label, _PROJECTIONS) for kind, label in _BART.items()},
}
#: transformers' names for a decoder's cross-attention.
CROSS_ATTENTION = (".EncDecAttention", ".encoder_attn", ".cross_attn", ".cross_attention")


def family_of(model_type: str) -> Family:
    """The entry of a kind of language model. Raises InputError if it is not in the table."""
    if model_type not in LANGUAGE_MODELS:
        known = ", ".join(LANGUAGE_MODELS)
        raise InputError(f"its config.json is for a {model_type}; give a folder or hub name with one of {known}")
    return LANGUAGE_MODELS[model_type]


@dataclass(frozen=True)
class SpecialTokens:
    """Start, end and padding tokens; `first` and `last`, if any, are forced on the best caption."""

    start: int
    pad: int
    end: int
    first: int | None = None
    last: int | None = None

    def before(self, labels: Tensor) -> Tensor:
        """The token before each label [N,T] (-100 = padding); transformers' own shift differs by family."""
        return functional.pad(labels.masked_fill(labels < 0, self.pad), (1, -1), value=self.start)

    def imposed(self, at: int | Tensor, max_new_tokens: int) -> int | None:
        """The token that `generate` forces at place `at`, if the model's configuration asks for one."""
        if self.first is self.last is None:
            return None
        return self.first if at == 0 and self.first is not None else self.last if at + 1 == max_new_tokens else None


@dataclass(frozen=True)
class LanguageModel:
    """An encoder-decoder of transformers as the network uses it.

    compiled: decode with a `StaticDecoder` if the model is a T5.
    checkpointing: see `recomputed`.
    """

    network: Any
    compiled: bool = False
    checkpointing: bool = False

    @property
    def tokens(self) -> SpecialTokens:
        """The special tokens of its configuration."""
        config = self.network.config
        start, pad, end = (_first(getattr(config, f"{name}_token_id")) for name in ("decoder_start", "pad", "eos"))
        imposed = (_first(getattr(config, f"forced_{name}_token_id", None)) for name in ("bos", "eos"))
        return SpecialTokens(int(start or 0), int(pad or 0), int(end or 0), *imposed)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B,P] → the encoder's input embeddings [B,P,E]."""
        return cast(Tensor, self.network.get_encoder().get_input_embeddings()(ids))

    def encode(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Input embeddings [B,S,E], mask [B,S] → encoder states [B,S,E]."""
        output = self.network.get_encoder()(inputs_embeds=embeddings, attention_mask=mask)
        return cast(Tensor, output.last_hidden_state)

    def decode(self, states: Tensor, mask: Tensor, labels: Tensor, live: Tensor | None = None) -> Tensor:
        """Teacher forcing: states [B,S,E], mask [B,S], labels [B·N,T] (-100 = padding) → logits [B·N,T,V].

        Labels contain N captions per video, video by video. Captions of a video share its states and cross-attention's
        keys and values, forward and backward.

        Args:
            live: flat places in [B·N·T], for logits [L,V] at these only.
        """
        captions = len(labels) // len(states)
        shared = partial(self._shared, captions)
        if self.network.training:  # each caption has its own dropout
            states, mask = states.repeat_interleave(captions, dim=0), mask.repeat_interleave(captions, dim=0)
        with ExitStack() as hooks:
            hooks.enter_context(shared())
            hooks.enter_context(recomputed(self.network.get_decoder(), self.checkpointing, shared))
            if live is not None:
                head = self.network.get_output_embeddings()
                hooks.enter_context(head.register_forward_pre_hook(lambda _, given: given[0].flatten(0, 1)[live]))
            output = self.network(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                decoder_input_ids=self.tokens.before(labels),
                use_cache=False,
            )
        return cast(Tensor, output.logits)

    @contextmanager
    def _shared(self, captions: int) -> Iterator[None]:
        """Within the block, the captions of a video share its cross-attention's keys and values."""
        before, after = (_repeated if self.network.training else _longer)(captions)
        with ExitStack() as hooks:
            for module in self._sharing() if captions > 1 else ():
                hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(after))
            yield

    def _sharing(self) -> list[nn.Module]:
        """Cross-attention; in training only its keys and values without LoRA, whose dropout is per caption."""
        names = family_of(self.network.config.model_type).projections
        parts = [f".{names.get(kind, kind)}" for kind in ("k", "v")] if self.network.training else [""]
        ends = tuple(f"{name}{part}" for name in CROSS_ATTENTION for part in parts)
        found = [module for name, module in self.network.get_decoder().named_modules() if name.endswith(ends)]
        return [getattr(module, "base_layer", module) for module in found]

    def freeze(self, but_lora: bool = True) -> None:
        """Freeze everything but LoRA; with `but_lora=False` freeze nothing."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not but_lora or "lora_" in name)

    def halve(self) -> None:
        """Store the frozen linear layers in bf16, since autocast would cast them in each pass: the same numbers.

        Norms, embeddings and a head tied to them are unchanged, since autocast does not cast them.
        """
        embeddings = self.network.get_input_embeddings().weight
        for linear in self.network.modules():
            if isinstance(linear, nn.Linear) and linear.weight is not embeddings and not linear.weight.requires_grad:
                linear.to(torch.bfloat16)

    def add_lora(self, r: int, alpha: float, dropout: float, targets: Sequence[str]) -> None:
        """Add LoRA to every linear layer named by `targets`, where q, k, v and o are attention's projections."""
        from peft import LoraConfig, inject_adapter_in_model

        from videoblip2.model.fused import Adapted

        names = family_of(self.network.config.model_type).projections
        modules = [names.get(target, target) for target in targets]
        lora = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules)  # type: ignore[arg-type]
        lora._register_custom_module({nn.Linear: Adapted})
        fault = f"model.lora.target_modules={','.join(targets)}: do not fit"
        with refused(fault, "name linear layers of the language model, such as q and v", ValueError):
            inject_adapter_in_model(lora, self.network)


@contextmanager
def recomputed(
    module: nn.Module, wanted: bool, again: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[None]:
    """Within the block, if `wanted`, layers store only their inputs: the backward pass reruns them within `again()`.

    transformers' own gradient checkpointing is off in eval mode, which self-critical training uses.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    layers = layers if wanted and torch.is_grad_enabled() else []
    run = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))
    for layer in layers:
        layer.forward = partial(run, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _repeated(captions: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Hooks for a linear layer whose input [B·N,S,E] is the same for the N captions of a video."""
    return lambda _, given, __: ((given[0][::captions],), {}), lambda _, __, out: out.repeat_interleave(captions, 0)


def _longer(captions: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Hooks for cross-attention that turn the captions of a video, [B·N,T,E], into one query [B,N·T,E]."""

    def before(_: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        rows, *rest = given or (named["hidden_states"],)
        query = rows.unflatten(0, (-1, captions)).flatten(1, 2)
        masks = {name: mask for name, mask in named.items() if name.endswith("mask") and mask is not None}
        masks = {name: mask[:, :, :1].expand(-1, -1, query.shape[1], -1) for name, mask in masks.items()}
        return (query, *rest), {name: value for name, value in {**named, **masks}.items() if name != "hidden_states"}

    return before, lambda _, __, output: (output[0].unflatten(1, (captions, -1)).flatten(0, 1), *output[1:])


def _first(token: int | list[int] | None) -> int | None:
    return token[0] if isinstance(token, list) else token


def fresh_language_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A language model with the sizes of its configuration and fresh weights."""
    family_of(config.model_type)
    return cast(PreTrainedModel, CLASSES[type(config)](config))


def load_language_model(source: str | Path) -> PreTrainedModel:
    """From a folder or hub name, by `from_pretrained`; `lm_head` stays untied from the embeddings if files have both.

    Raises InputError for a model that is not in the table, and for files that lack some of its tensors.
    """
    here = not hub_answers(str(source))
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(str(source), local_files_only=here)
            family_of(config.model_type)
            options = {"config": config, "local_files_only": here, "output_loading_info": True}
            model, info = CLASSES[type(config)].from_pretrained(str(source), **options)
        if missing := info["missing_keys"]:
            what = f"{len(missing)} tensors are not in its files, first {min(missing)}"
            raise InputError(f"{what}; copy or download it again")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        remedy = "" if isinstance(error, InputError) else "; give a folder with a language model, or a hub name online"
        raise InputError(f"model.language_model={source}: {first_line(error)}{remedy}") from error
    if has_own_head(model):
        separate_lm_head(model)
    return model


def has_own_head(model: PreTrainedModel) -> bool:
    """Whether `lm_head` has its own matrix, as in T5 v1.1 and Flan-T5, untied from the input embeddings."""
    head: Any = model.get_output_embeddings()
    return head.weight is not model.get_input_embeddings().weight


def separate_lm_head(model: PreTrainedModel) -> None:
    """Untie `lm_head` from the input embeddings, permanently.

    transformers 5 declares every T5 as tied: loading a state dict would write `lm_head` over `shared`, and any
    `tie_weights` would tie them again.
    """
    tied = {k: v for k, v in (type(model)._tied_weights_keys or {}).items() if k != "lm_head.weight"}
    model._tied_weights_keys, model.all_tied_weights_keys = tied, dict(tied)
    if not has_own_head(model):
        embeddings = model.get_input_embeddings().weight
        model.get_output_embeddings().weight = nn.Parameter(embeddings.detach().clone())
