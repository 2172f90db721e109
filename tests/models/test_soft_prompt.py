"""Soft prompts: PEFT's own prompt tuning is the oracle of the logits; a cache, files and copies change nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.config import Generation, Ppo, Sft, Training
from pipelines.errors import ConfigurationError
from pipelines.models.adapters import add_adapter, load_adapter, save_adapter
from pipelines.models.generation import response_logprobs, sample
from pipelines.models.loading import load_causal_lm, load_tokenizer, save_model
from pipelines.models.soft_prompt import prompt_of, room
from tests import small

PROMPT = Training(adapter="prompt", prompt_length=3)
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def adapted(seed: int = 3, training: Training = PROMPT) -> torch.nn.Module:
    """A model with a soft prompt that matters."""
    torch.manual_seed(seed)
    model = add_adapter(small.llama(), training)
    torch.nn.init.normal_(prompt_of(model).weight, std=0.5)
    return model


def test_the_logits_are_those_of_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    model = adapted()
    save_adapter(model, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(small.llama(), str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, 3:]
        found = model(input_ids=IDS).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert not torch.allclose(found, small.llama()(input_ids=IDS).logits, atol=1e-3)


def test_only_the_vectors_are_trained_and_begin_as_asked(tmp_path: Path) -> None:
    model = add_adapter(small.llama(), PROMPT)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name: tuple(weight.shape) for name, weight in trained.items()} == {"model.soft_prompt.weight": (3, 32)}
    words = model.get_input_embeddings().weight
    for vector in trained["model.soft_prompt.weight"]:
        assert bool((words == vector).all(dim=1).any()), "a token's of the vocabulary"
    model = load_causal_lm(small.model_folder(tmp_path / "model"))
    ids = load_tokenizer(tmp_path / "model")("HAMLET: To be", add_special_tokens=False).input_ids
    add_adapter(model, Training(adapter="prompt", prompt_length=4, prompt_init="text", prompt_text="HAMLET: To be"))
    assert len(ids) >= 4
    assert torch.equal(prompt_of(model).weight, model.get_input_embeddings().weight[ids[:4]])


def test_a_cache_and_padding_change_nothing() -> None:
    """Greedy answers token by token are the argmax of one pass over all, for prompts of unequal length in one batch."""
    model = adapted().eval()
    prompts = [[5, 6, 7, 8, 9], [10, 11], [12]]
    settings = Generation(max_new_tokens=5, batch_size=3)
    drawn = sample(model, 1, 0, prompts, settings, [1, 2, 3], "float32", greedy=True)
    for prompt, answer in zip(prompts, drawn.tokens, strict=True):
        for place, token in enumerate(answer):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + answer[:place]])).logits[0, -1]
            assert int(logits.argmax()) == token
    found = response_logprobs(model, prompts, drawn.tokens, 1.0, "float32", 2)
    for mine, theirs in zip(found, drawn.logprobs, strict=True):
        assert mine.tolist() == pytest.approx(theirs, abs=1e-5)


def test_a_saved_model_keeps_it_beside_its_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = adapted(), small.tokenizer()
    save_model(model, tokenizer, tmp_path / "model")
    small.model_folder(tmp_path / "plain")
    assert load_file(tmp_path / "model/model.safetensors").keys() == load_file(tmp_path / "plain/model.safetensors").keys()
    again = load_causal_lm(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        torch.testing.assert_close(plain(input_ids=IDS).logits, small.llama()(input_ids=IDS).logits)
    assert not any(weight.requires_grad for name, weight in again.named_parameters() if "soft_prompt" in name)
    assert room(again) == room(plain) - 3
    loaded = load_adapter(small.llama(), tmp_path / "model/soft_prompt")
    assert torch.equal(prompt_of(loaded).weight, prompt_of(model).weight)


def test_a_copy_is_one_of_its_own() -> None:
    model = adapted()
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        other = copy.deepcopy(model)
        prompt_of(model).weight.zero_()
        assert torch.equal(other(input_ids=IDS).logits, before)
        assert not torch.equal(model(input_ids=IDS).logits, before)


def test_a_model_that_has_one_goes_on_with_it() -> None:
    model = adapted()
    before = prompt_of(model).weight.detach().clone()
    assert torch.equal(prompt_of(add_adapter(model.requires_grad_(False), PROMPT)).weight, before)
    with pytest.raises(ConfigurationError, match="has a soft prompt of 3 vectors"):
        add_adapter(model, Training(adapter="prompt", prompt_length=4))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="leave packing out"):
        Sft(adapter="prompt", packing=True)
    with pytest.raises(ValueError, match="engine: hf"):
        Ppo(method="ppo", adapter="prompt", engine="vllm")
    with pytest.raises(ValueError, match="prompt_init: text and prompt_text: go together"):
        Training(adapter="prompt", prompt_init="text")
