"""The plain kernel is chosen for short bf16 rows on a CPU only, and gives the fused one's result."""

import contextlib

import pytest
import torch

from pipelines.config import Precision
from pipelines.models.attention import SHORT, attention_for


@pytest.mark.parametrize(
    ("precision", "device", "longest"), [("float32", "cpu", 8), ("bf16", "cuda", 8), ("bf16", "cpu", SHORT + 1)]
)
def test_elsewhere_pytorch_chooses(precision: Precision, device: str, longest: int) -> None:
    assert isinstance(attention_for(precision, device, longest), contextlib.nullcontext)


def test_both_kernels_agree_with_attention_written_out() -> None:
    """softmax(q k^T / sqrt(d)) v with a causal mask, in float64."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 16, 8) for _ in range(3))
    weights = (query.double() @ key.double().transpose(-1, -2) / 8**0.5).masked_fill(torch.ones(16, 16).triu(1) > 0, -torch.inf)
    expected = (weights.softmax(-1) @ value.double()).float()
    with attention_for("bf16", "cpu", 16):
        plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    fused = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(plain, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(fused, expected, atol=1e-6, rtol=0)
