"""Sums and shares over the workers of a training group; with one worker everything is returned as it came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of ``tensor`` over all workers (the tensor itself with one worker)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    total = tensor.detach().to(_device(tensor), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def all_max(tensor: torch.Tensor) -> torch.Tensor:
    """The largest of ``tensor`` over all workers, element by element (the tensor itself with one worker)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    largest = tensor.detach().to(_device(tensor), copy=True)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.to(tensor.device)


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


def _device(tensor: torch.Tensor) -> torch.device:
    """Where a collective takes ``tensor``: nccl knows GPUs only."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else tensor.device


def share(total: int, rank: int, world_size: int) -> range:
    """This worker's run of neighbours among ``total`` rows; the shares differ by one row at the most."""
    return range(total * rank // world_size, total * (rank + 1) // world_size)


def shared_out(function: Callable[[Sequence[Any]], list], items: Sequence[Any], size: int = 1024) -> list:
    """``function`` of all items, ``size`` at a time, a share a worker; every worker gets all results, in the items' order.

    What ``function`` makes of an item must not depend on the others.
    """
    whole = dist.is_initialized() and dist.get_world_size() > 1
    mine = share(len(items), dist.get_rank(), dist.get_world_size()) if whole else range(len(items))
    starts = range(mine.start, mine.stop, size)
    made = [result for start in starts for result in function(items[start : min(start + size, mine.stop)])]
    if not whole:
        return made
    parts: list[list] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, made)
    return [result for part in parts for result in part]
