"""Rounding weights once gives what autocast gives, to the bit."""

from __future__ import annotations

import pytest
import torch

from pipelines.config import Sft
from pipelines.models.adapters import add_adapter
from pipelines.models.halves import half_linears, halve_frozen
from pipelines.models.loading import autocast
from tests.small import llama

IDS = torch.arange(20).reshape(2, 10)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    with autocast("bf16", "cpu"):
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_for_a_while(adapter: str) -> None:
    torch.manual_seed(0)
    model = add_adapter(llama(), Sft(adapter=adapter, lora_r=2)).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = logits(model)
    with half_linears(model, "bf16"):
        assert any(weight.dtype == torch.bfloat16 for weight in model.state_dict().values())
        assert torch.equal(logits(model), expected)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    with half_linears(model, "float32"):
        assert all(weight.dtype == torch.float32 for weight in model.state_dict().values())


def test_for_good_with_gradients_of_the_adapter() -> None:
    """Frozen weights rounded: the same logits and the same gradients of the adapter; the adapter and embedding stay float32."""
    found = []
    for halved in (False, True):
        torch.manual_seed(0)
        model = add_adapter(llama(), Sft(adapter="lora", lora_r=2)).eval()
        if halved:
            halve_frozen(model, "bf16")
        with autocast("bf16", "cpu"):
            model(input_ids=IDS).logits.float().square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert all("lora" in name for name in found[-1])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert model.get_base_model().model.embed_tokens.weight.dtype == torch.float32
    assert model.get_base_model().lm_head.weight.dtype == torch.bfloat16
