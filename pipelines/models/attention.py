"""Which of PyTorch's attention kernels trains short rows fastest on a CPU; the mathematics is the same."""

from __future__ import annotations

import contextlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.config import Precision

SHORT = 160
"""Tokens up to which the whole [T, T] matrix of weights is small enough to be kept for the backward pass."""


def attention_for(precision: Precision, device: str, longest: int) -> contextlib.AbstractContextManager:
    """PyTorch's plain attention for short rows in bf16 on a CPU, its own choice otherwise.

    There the fused kernel's backward pass takes four times as long (43 against 10 ms for 32 rows of 45 tokens and 9 heads):
    a sixth of a training step of SmolLM2. The choice depends on the data and parameters alone, so results repeat.
    """
    if torch.device(device).type == "cpu" and precision == "bf16" and longest <= SHORT:
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()
