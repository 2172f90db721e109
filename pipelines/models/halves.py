"""Linear layers whose weights are rounded to bfloat16 once, where autocast would round them at every call.

The numbers are autocast's own, bit for bit; what is saved is the reading and writing of the float32 weights: half of the
time of sampling, token by token, and a fifth of a training step with an adapter on frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipelines.config import Precision

PACKED_FROM = 2**16
"""Weights of a layer."""


@contextmanager
def half_linears(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Round every linear layer of ``model`` under ``bf16`` for the time of the block; not for training inside it."""
    layers = _float_linears(model) if precision == "bf16" else []
    whole: list[Any] = [layer.weight for layer in layers]
    try:
        for layer in layers:
            layer.weight = _rounded(layer.weight)
        yield
    finally:
        for layer, weight in zip(layers, whole, strict=True):
            layer.weight = weight


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """Keep the weights of a CPU's linear layers in the order in which oneDNN reads them, for the time of the block.

    Without that, every product in bfloat16 puts all of its weights in order first: half of its time where rows are as few as
    in sampling. In float32 another library's product takes twice as long for few rows. Not for training inside the block.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and _packs(m.weight)]
    try:
        for layer in layers:
            vars(layer)["forward"] = _packed(layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _packs(weight: torch.Tensor) -> bool:
    """Whether there is such an order here, and the weights are enough (LoRA's are not) to gain from it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or weight.numel() < PACKED_FROM:
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    kind, ordered = layer.weight.dtype, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    bias = None if layer.bias is None else layer.bias.detach().to(kind)

    def product(rows: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows.to(kind), ordered, bias, "none", [], "")

    return product


def halve_frozen(model: Any, precision: Precision) -> None:
    """Round the frozen linear layers of ``model`` for good under ``bf16``; layers that learn stay float32.

    An output layer that shares its weight with the embedding gets a rounded one of its own.
    """
    if precision == "bf16":
        for layer in _float_linears(model):
            if not layer.weight.requires_grad:
                layer.weight = _rounded(layer.weight)


def _float_linears(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.dtype == torch.float32]


def _rounded(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
