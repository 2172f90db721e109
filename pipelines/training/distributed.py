"""Sums over the workers of a training group; with one worker everything is returned as it came."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of ``tensor`` over all workers (the tensor itself with one worker)."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def all_max(tensor: torch.Tensor) -> torch.Tensor:
    """The largest of ``tensor`` over all workers, element by element (the tensor itself with one worker)."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over all workers, through one flat buffer; absent ones count as 0."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    found = list(parameters)
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in found])
    dist.all_reduce(flat)
    for parameter, part in zip(found, flat.split([p.numel() for p in found]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def barrier() -> None:
    """Wait for all workers."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def share(total: int, rank: int, world_size: int) -> range:
    """This worker's run of neighbours among ``total`` rows; the shares differ by one row at the most."""
    return range(total * rank // world_size, total * (rank + 1) // world_size)
