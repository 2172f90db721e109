"""For the time of a sampling: every linear layer as one bfloat16 matrix, its adapter merged into it.

Autocast rounds float32 weights to bfloat16 at every call, and an adapter costs two more products a layer; token by token
that is half of the time. The rounding is autocast's own, so what is sampled from differs from the training pass by
bfloat16 noise only; log-probabilities are recomputed by the trainer in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipelines.config import Precision


@contextmanager
@torch.no_grad()
def half_linears(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Swap the linear layers of ``model`` for merged bfloat16 ones under ``bf16``; put them back at the end."""
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    if precision == "bf16":
        for parent in list(model.modules()):
            if _is_adapted(parent):
                continue
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear) or _is_adapted(child):
                    swapped.append((parent, name, child))
    try:
        for parent, name, child in swapped:
            setattr(parent, name, _half(child))
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)


def _is_adapted(module: Any) -> bool:
    """A linear layer that carries a LoRA adapter."""
    return isinstance(getattr(module, "base_layer", None), nn.Linear)


def _half(layer: Any) -> nn.Linear:
    """One bfloat16 layer that computes what ``layer`` does."""
    base = layer.base_layer if _is_adapted(layer) else layer
    weight = base.weight
    if base is not layer and not layer.disable_adapters:
        for adapter in layer.active_adapters:
            weight = weight + layer.get_delta_weight(adapter)
    merged = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    merged.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
    merged.bias = base.bias
    return merged
