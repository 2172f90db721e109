"""LoRA on and off: oracles are eq. 3 of Hu et al. 2021 worked on the model's own matrices, and bytes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.config import Training
from pipelines.errors import DataError
from pipelines.models.adapters import add_adapter, is_adapted, load_adapter, merge, merged_weights, save_adapter
from tests import small

LORA = Training(lora_r=4, lora_alpha=8)
IDS = torch.tensor([[5, 6, 7, 8]])


def _trained(seed: int = 3) -> torch.nn.Module:
    """A model whose adapter does something: B is drawn too."""
    torch.manual_seed(seed)
    model = add_adapter(small.llama(), LORA)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_a_fresh_adapter_changes_nothing_and_leaves_only_itself_trainable() -> None:
    plain = small.llama()
    before = plain(input_ids=IDS).logits
    model = add_adapter(small.llama(), LORA)
    assert torch.equal(model(input_ids=IDS).logits, before)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    # rank 4 on q, k, v, o (32 x 32), gate, up (64 x 32), down (32 x 64), in two layers: 2 * (4 * 4 * 64 + 3 * 4 * 96)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (4 * 4 * 64 + 3 * 4 * 96)


def test_the_merged_weight_is_w0_plus_alpha_over_r_times_ba() -> None:
    model = _trained()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight + 8 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = merge(model)
    assert not is_adapted(merged)
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight, expected, rtol=0, atol=1e-7)


def test_merged_weights_are_those_of_the_merged_model_and_leave_the_adapter_on() -> None:
    model = _trained()
    before = model(input_ids=IDS).logits
    found = {name: weight.clone() for name, weight in merged_weights(model)}
    assert torch.equal(model(input_ids=IDS).logits, before)
    expected = dict(merge(model).named_parameters())
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-7)
    plain = small.llama()
    assert all(torch.equal(weight, plain.get_parameter(name)) for name, weight in merged_weights(plain))


def test_no_adapter_trains_everything() -> None:
    model = add_adapter(small.llama(), Training(adapter="none"))
    assert not is_adapted(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert merge(model) is model


def test_an_adapter_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model = _trained()
    save_adapter(model, tmp_path / "adapter", "../../base")
    again = load_adapter(small.llama(), tmp_path / "adapter")
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_adapter(_trained(), tmp_path / "adapter")
    with pytest.raises((DataError, RuntimeError)):
        load_adapter(small.llama(hidden=64), tmp_path / "adapter")
    with pytest.raises(DataError, match="no adapter here"):
        load_adapter(small.llama(), tmp_path / "nowhere")


@pytest.mark.parametrize("hashseed", [pytest.param("1", marks=pytest.mark.slow), "7"])
def test_the_files_do_not_depend_on_the_hash_seed(tmp_path: Path, hashseed: str) -> None:
    save_adapter(_trained(), tmp_path / "here", "../../base")
    code = (
        "from pathlib import Path; from pipelines.models.adapters import save_adapter;"
        "from tests.models.test_adapters import _trained;"
        f"save_adapter(_trained(), Path({str(tmp_path / 'there')!r}), '../../base')"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {"PYTHONHASHSEED": hashseed, "PATH": "/usr/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=root)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
