"""Layers split over the workers (FSDP2): each keeps its part of a layer's weights, gradients and optimiser state.

Paper: Zhao et al. 2023, "PyTorch FSDP". A layer's weights are gathered for the time of a pass through it, its gradients are
summed and split. Embeddings, the final norm, output layer and value head stay whole on every worker, as without splitting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipelines.errors import ConfigurationError
from pipelines.training.distributed import all_sum


def shard(trunk: Any, mesh: DeviceMesh) -> None:
    """Split the layers of ``trunk``, a transformers model without output layer, over the workers of ``mesh``, in place."""
    kinds = set(getattr(trunk, "_no_split_modules", None) or ())
    layers = [module for module in trunk.modules() if type(module).__name__ in kinds]
    if not layers:
        kind = trunk.config.model_type
        raise ConfigurationError(
            f"runtime.shard: a model of type {kind} does not say which modules are its layers; set it to false"
        )
    split = {parameter for layer in layers for parameter in layer.parameters()}
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(trunk, mesh=mesh, ignored_params=set(trunk.parameters()) - split)  # the frame that prefetches layers
    for module in _sharded(trunk):
        module.set_gradient_divide_factor(1.0)  # losses are divided by the count over all workers already
        module.set_force_sum_reduction_for_comms(True)


@contextmanager
def gathered(*models: Any) -> Iterator[None]:
    """Every weight whole on this worker for the time of the block, so that workers may differ in their number of passes.

    All workers have to enter it. Without gradient only, and what is written into weights inside is lost.
    """
    modules = [module for model in models if model is not None for module in _sharded(model)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be split; all workers have to call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This worker's part of a whole ``tensor``, where ``parameter`` is split and of the same shape; else the tensor."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor


@torch.no_grad()
def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> float:
    """Scale all gradients so that their norm over all of them is at most ``max_norm``; the norm before."""
    split = [p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)]
    if not split:
        return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    whole = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    squares = all_sum(torch.nn.utils.get_total_norm(split).square()) + torch.nn.utils.get_total_norm(whole).square()
    norm = float(squares.sqrt())
    for gradient in [*split, *whole]:
        gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm


def is_split(parameter: torch.Tensor) -> bool:
    """Whether each worker holds a part only."""
    return isinstance(parameter, DTensor)


def _sharded(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
