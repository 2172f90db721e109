"""Model folders: the same bytes wherever they are written, the same model back, nothing that runs code."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pipelines.errors import DataError
from pipelines.models.loading import autocast, load_causal_lm, load_tokenizer, save_model
from tests import small


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_model_comes_back_in_float32_without_dropout(tmp_path: Path) -> None:
    model = small.llama(seed=3)
    save_model(model, small.tokenizer(), tmp_path)
    loaded = load_causal_lm(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not loaded.training
    assert loaded.config.attention_dropout == 0.0
    assert loaded.config._attn_implementation == "sdpa"
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.pad_token, tokenizer.eos_token) == (small.PAD, small.EOS)
    assert tokenizer("To be, or not")["input_ids"] == small.tokenizer()("To be, or not")["input_ids"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_no_dropout_is_left(tmp_path: Path, kind: str) -> None:
    """A model that was saved with dropout answers in training mode as in evaluation mode."""
    model = small.llama()
    if kind == "llama":
        model.config.attention_dropout = 0.5
    else:
        shape = {"vocab_size": 300, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
        dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
        model = GPT2LMHeadModel(GPT2Config(**shape, **dropout, bos_token_id=None, eos_token_id=None))
    save_model(model, small.tokenizer(), tmp_path)
    loaded, ids = load_causal_lm(tmp_path), torch.tensor([[5, 6, 7, 8]])
    expected = loaded(ids).logits
    assert torch.equal(loaded.train()(ids).logits, expected)


def test_the_bytes_do_not_depend_on_the_folder_nor_on_a_round_trip(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second/deep", "third"))
    save_model(small.llama(), small.tokenizer(), first)
    save_model(small.llama(), small.tokenizer(), second)
    save_model(load_causal_lm(first), load_tokenizer(first), third)
    assert _hashes(first) == _hashes(second)
    assert _hashes(second) == _hashes(third)
    for file in third.glob("*.json"):
        assert str(tmp_path) not in file.read_text(encoding="utf-8")


def test_code_pickles_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model here"):
        load_causal_lm(tmp_path)
    folder = small.model_folder(tmp_path / "model")
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    with pytest.raises(DataError, match=r"holds code \(modeling\.py\)"):
        load_causal_lm(folder)
    (folder / "modeling.py").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "x.Y"}}))
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(DataError, match="auto_map"):
            load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match="is a pickle"):
        load_causal_lm(folder)


def test_autocast_is_bfloat16_or_nothing() -> None:
    weights = torch.ones(2, 2)
    with autocast("float32", "cpu"):
        assert (weights @ weights).dtype == torch.float32
    with autocast("bf16", "cpu"):
        assert (weights @ weights).dtype == torch.bfloat16
    assert weights.dtype == torch.float32
