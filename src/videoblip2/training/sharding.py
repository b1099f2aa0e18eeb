"""Full training of a large language model, its layers sharded over the processes: FSDP2, `train.shard`.

Each process stores a shard of every layer's weights, gradients and moments, and gathers a layer while it runs. All
else (embeddings, head, Q-Formers) is replicated in every process, as without sharding.

A forward pass is a collective: every process must run the same number. Decoding cannot be one, since captions differ
in number and length, so the weights are gathered around it (`unsharded`).
"""

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from transformers.modeling_layers import GradientCheckpointingLayer

from videoblip2.config import Config, InputError
from videoblip2.model.network import VideoBlip2
from videoblip2.training.distributed import World


def shard(model: VideoBlip2, config: Config, world: World, device: torch.device) -> None:
    """Shard the language model's layers. Raises InputError for an unsuitable configuration."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if config.model.finetune != "full" or config.scst.kl_weight:
        raise InputError("train.shard=true: for model.finetune=full without scst.kl_weight; leave train.shard out")
    if config.train.batch_size % world.size:
        fault = f"with train.shard=true the {world.size} processes need equal shares"
        raise InputError(f"train.batch_size={config.train.batch_size}: {fault}; set it to a multiple of {world.size}")
    # T5's layers pass their position bias on as a view, which is never written to.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world.size,))
    for layer in model.language_model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            fully_shard(layer, mesh=mesh)
            layer.set_gradient_divide_factor(1.0)  # losses are shares of one mean, so gradients are summed
            layer.set_force_sum_reduction_for_comms(True)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is sharded over the processes."""
    return hasattr(tensor, "full_tensor")


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Within the block, this module's layers are whole in every process, and running them is not a collective."""
    layers: list[Any] = [layer for layer in module.modules() if hasattr(layer, "unshard")]
    for layer in layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.reshard()
            layer.set_reshard_after_forward(True)


def clip(parameters: Collection[nn.Parameter], most: float, world: World) -> Tensor:
    """`clip_grad_norm_` for a mix of sharded and whole gradients; returns their joint norm."""
    gradients: list[Any] = [weight.grad for weight in parameters if weight.grad is not None]
    sharded = [gradient.to_local() for gradient in gradients if is_sharded(gradient)]
    if not sharded:
        return clip_grad_norm_(parameters, most)
    whole = [gradient for gradient in gradients if not is_sharded(gradient)]
    norm = (world.sum(get_total_norm(sharded) ** 2) + get_total_norm(whole) ** 2).sqrt()
    torch._foreach_mul_([*sharded, *whole], torch.clamp(most / (norm + 1e-6), max=1.0))
    return norm


def whole(tensor: Any) -> Tensor:
    """The whole tensor; if it is sharded, every process must call this."""
    tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return cast(Tensor, tensor.detach().cpu().contiguous())


def part(tensor: Tensor, like: Any) -> Tensor:
    """The reverse of `whole`: this process's shard of a tensor, sharded as `like`."""
    from torch.distributed.tensor import distribute_tensor

    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
