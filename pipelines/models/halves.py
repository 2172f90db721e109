"""Linear layers whose weights are rounded to bfloat16 once, where autocast would round them at every call.

The numbers are autocast's own, bit for bit (but for an adapter's part in ``packed_linears``); what is saved is the reading and
writing of the float32 weights: half of the time of sampling, token by token, and a fifth of a training step with an adapter
on frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipelines.config import Precision

_Product = Callable[[torch.Tensor], torch.Tensor]

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
    in sampling. In float32 another library's product takes twice as long for few rows. What a LoRA adapter adds comes in one
    call, and so is not rounded on its own. Not for training inside the block.
    """
    products: dict[Any, _Product] = {m: _packed(m) for m in model.modules() if isinstance(m, nn.Linear) and _packs(m.weight)}
    adapted: list[Any] = [m for m in model.modules() if _plain_lora(m)]
    products |= {m: _with_lora(m, products[m.base_layer]) for m in adapted if m.base_layer in products}
    try:
        for layer, product in products.items():
            vars(layer)["forward"] = product
        yield
    finally:
        for layer in products:
            vars(layer).pop("forward", None)


def _packs(weight: torch.Tensor) -> bool:
    """Whether there is such an order here, and the weights are enough (LoRA's are not) to gain from it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or weight.numel() < PACKED_FROM:
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed(layer: nn.Linear) -> _Product:
    kind, ordered = layer.weight.dtype, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    bias = None if layer.bias is None else layer.bias.detach().to(kind)

    def product(rows: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows.to(kind), ordered, bias, "none", [], "")

    return product


def _plain_lora(layer: Any) -> bool:
    """Whether this is PEFT's LoRA around a linear layer, with one adapter switched on and nothing but B A x added."""
    if not hasattr(layer, "lora_A") or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    plain = name in layer.lora_A and name not in layer.lora_variant and layer.lora_B[name].bias is None
    return plain and isinstance(layer.lora_dropout[name], nn.Identity)


def _with_lora(layer: Any, product: _Product) -> _Product:
    """The same sum in two calls: PEFT's own call, which asks and casts each time, takes as long as the products of few rows."""
    name = layer.active_adapters[0]
    down, up = (part[name].weight.detach().T for part in (layer.lora_A, layer.lora_B))
    scaling = layer.scaling[name]

    def summed(rows: torch.Tensor) -> torch.Tensor:
        whole = product(rows)
        flat = rows.to(down.dtype).flatten(0, -2)
        whole.flatten(0, -2).addmm_(flat @ down, up, alpha=scaling)
        return whole

    return summed


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
