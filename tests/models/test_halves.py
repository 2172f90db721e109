"""Rounding weights once gives what autocast gives, to the bit; so does putting them in order once."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pipelines.config import Sft
from pipelines.models.adapters import add_adapter
from pipelines.models.halves import half_linears, halve_frozen, packed_linears
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


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize("rows", [(1,), (3, 1), (2, 40)])
def test_packed_weights_give_the_same_products(precision: str, rows: tuple[int, ...]) -> None:
    """With a bias and without; a layer too small to gain is left alone, and after the block all are as they were."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 512), torch.nn.Linear(512, 256, bias=False), torch.nn.Linear(256, 4)]
    model, given = torch.nn.Sequential(*layers), torch.randn(*rows, 256)
    with half_linears(model, precision), autocast(precision, "cpu"):
        expected = model(given)
        with packed_linears(model):
            found = model(given)
            assert ["forward" in vars(layer) for layer in layers] == [True, True, False]
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if precision == "bf16" else 1e-6)
    assert not any("forward" in vars(layer) for layer in layers)


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_a_packed_layer_has_its_adapter_as_long_as_that_is_on(precision: str) -> None:
    """W x + (alpha / r) B A x, in float64 by hand; without the adapter W x alone; after the block PEFT's own call again."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(256, 512))
    config = LoraConfig(r=8, lora_alpha=24, target_modules=["0"], init_lora_weights=False)
    model, given = get_peft_model(plain, config), torch.randn(3, 1, 256)
    layer = model.base_model.model[0]
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    rounded = [part.to(kind).double() for part in (given, layer.base_layer.weight, layer.base_layer.bias)]
    x, weight, bias = rounded
    down, up = (part["default"].weight.to(kind).double() for part in (layer.lora_A, layer.lora_B))
    alone = x @ weight.T + bias
    error = 2e-2 if precision == "bf16" else 1e-6
    with half_linears(model, precision), autocast(precision, "cpu"):
        with packed_linears(model):
            assert "forward" in vars(layer)
            found = model(given)
        with model.disable_adapter(), packed_linears(model):
            assert "forward" not in vars(layer)
            torch.testing.assert_close(model(given).double(), alone, rtol=error, atol=error)
        torch.testing.assert_close(found.double(), alone + 3.0 * x @ down.T @ up.T, rtol=error, atol=error)
        torch.testing.assert_close(found, model(given), rtol=error, atol=2 * error)
    assert found.dtype == kind
    assert "forward" not in vars(layer)
