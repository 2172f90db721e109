"""Sampling and log-probabilities on a tiny Llama with random weights."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pipelines.config import Generation
from pipelines.errors import DataError
from pipelines.models.generation import response_logprobs, sample
from pipelines.models.policy import pack, response_states, token_logprobs

EOS, PAD = 2, 0
PROMPTS = [[1, 2, 3], [4, 5], [6] * 7, [3] * 5]
SEEDS = [11, 12, 13, 14]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=12, num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.3, **shape)
    return LlamaForCausalLM(config).eval()


def generation(**changes: float) -> Generation:
    return Generation(**{"max_new_tokens": 10, "temperature": 0.8, "batch_size": 4, **changes})


def test_positions_count_the_mask() -> None:
    """A model with learned positions sees where a row begins; padding on the left must not move it. (A Llama's rotary
    positions are relative: it would give the same answers with any.)"""
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": None, "eos_token_id": None}
    absolute = GPT2LMHeadModel(GPT2Config(vocab_size=12, initializer_range=0.3, **shape)).eval()
    together = sample(absolute, EOS, PAD, PROMPTS, generation(), SEEDS, "float32")
    alone = sample(absolute, EOS, PAD, PROMPTS, generation(batch_size=1), SEEDS, "float32")
    assert together.tokens == alone.tokens
    for one, other in zip(together.logprobs, alone.logprobs, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_rows_that_have_ended_cost_nothing(model: LlamaForCausalLM) -> None:
    """A row of a pass for each distinct prompt and for each token but an answer's last, and there are no other rows."""
    rows: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    answers = sample(model, EOS, PAD, PROMPTS * 4, generation(batch_size=16), list(range(16)), "float32")
    handle.remove()
    assert sum(rows) == len(PROMPTS) + sum(len(tokens) - 1 for tokens in answers.tokens)
    assert len({len(answer) for answer in answers.tokens}) > 1


def test_answers_do_not_depend_on_batching_or_order(model: LlamaForCausalLM) -> None:
    together = sample(model, EOS, PAD, PROMPTS, generation(), SEEDS, "float32")
    alone = sample(model, EOS, PAD, PROMPTS, generation(batch_size=1), SEEDS, "float32")
    turned = sample(model, EOS, PAD, PROMPTS[::-1], generation(batch_size=3), SEEDS[::-1], "float32")
    assert together.tokens == alone.tokens == turned.tokens[::-1]
    assert len({len(answer) for answer in together.tokens}) > 1, "rows should leave the batch at different steps"


def test_answers_end_with_eos_or_at_the_limit(model: LlamaForCausalLM) -> None:
    answers = sample(model, EOS, PAD, PROMPTS * 8, generation(), list(range(32)), "float32")
    for tokens, ended in zip(answers.tokens, answers.ended, strict=True):
        assert EOS not in tokens[:-1]
        assert ended == (tokens[-1] == EOS)
        assert ended or len(tokens) == 10


def test_pad_equal_to_eos_changes_nothing(model: LlamaForCausalLM) -> None:
    """Masks count tokens and never compare ids with pad, so pad == eos samples the same answers."""
    prompts = [[EOS, 1, 2], [1], [EOS]]
    apart = sample(model, EOS, PAD, prompts, generation(), SEEDS[:3], "float32")
    same = sample(model, EOS, EOS, prompts, generation(), SEEDS[:3], "float32")
    assert apart == same


def test_logprobs_of_sampling_and_of_one_pass_agree(model: LlamaForCausalLM) -> None:
    answers = sample(model, EOS, PAD, PROMPTS, generation(), SEEDS, "float32")
    logprobs = response_logprobs(model, PROMPTS, answers.tokens, 0.8, "float32", batch_size=3)
    for sampled, recomputed in zip(answers.logprobs, logprobs, strict=True):
        torch.testing.assert_close(torch.tensor(sampled), recomputed, atol=2e-6, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_a_prompt_of_several_answers_is_read_once(model: LlamaForCausalLM, batch_size: int) -> None:
    """Oracle: every row alone. Prompts and answers of unequal length, out of order, one token among the answers."""
    prompts = [PROMPTS[row % len(PROMPTS)] for row in range(12)]
    answers = sample(model, EOS, PAD, prompts, generation(), list(range(12)), "float32").tokens
    answers[5] = [7]
    read: list[int] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    together = response_logprobs(model, prompts, answers, 0.8, "float32", batch_size)
    handle.remove()
    for prompt, answer, found in zip(prompts, answers, together, strict=True):
        torch.testing.assert_close(found.double(), _whole(model, prompt, answer)[range(len(answer)), answer], atol=3e-6, rtol=0)
    if batch_size == 1:
        assert sum(read) == sum(map(len, PROMPTS)) + sum(len(answer) - 1 for answer in answers)


def test_logprobs_against_the_whole_model(model: LlamaForCausalLM) -> None:
    """Oracle: the model's own logits of one unpadded row and log_softmax in float64."""
    prompt, answer = [4, 5, 1], [7, 3, EOS]
    expected = _whole(model, prompt, answer)[range(3), answer]
    logprobs = response_logprobs(model, [[9], prompt], [[8], answer], 0.8, "float32", batch_size=2)
    torch.testing.assert_close(logprobs[1].double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"top_k": 2}, {"repetition_penalty": 5.0}, {"min_new_tokens": 6}])
def test_what_is_read_while_sampling_is_the_models_own(model: LlamaForCausalLM, changes: dict[str, float]) -> None:
    """Whatever the settings make of the draw: the whole model's log-probabilities and entropies in float64."""
    drawn = sample(model, EOS, PAD, PROMPTS, generation(**changes), SEEDS, "float32", read=True)
    for prompt, tokens, own, entropies in zip(PROMPTS, drawn.tokens, drawn.own, drawn.entropies, strict=True):
        expected = _whole(model, prompt, tokens)
        torch.testing.assert_close(torch.tensor(own).double(), expected[range(len(tokens)), tokens], atol=3e-6, rtol=0)
        torch.testing.assert_close(torch.tensor(entropies).double(), -(expected.exp() * expected).sum(-1), atol=3e-6, rtol=0)


def _whole(model: LlamaForCausalLM, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probabilities [T, V] at temperature 0.8 of one unpadded row."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.double() / 0.8, -1)


def test_sampled_frequencies_follow_the_distribution(model: LlamaForCausalLM) -> None:
    """First tokens of 4,000 answers: each frequency within 4 standard errors of its probability."""
    count = 4000
    one = generation(max_new_tokens=1, batch_size=count)
    answers = sample(model, EOS, PAD, [[5, 6]] * count, one, list(range(count)), "float32")
    packed = pack([[5, 6]] * 12, [[token] for token in range(12)])
    with torch.no_grad():
        logprobs = token_logprobs(model, response_states(model, packed), packed.targets, 0.8)
    seen = Counter(tokens[0] for tokens in answers.tokens)
    for token, p in enumerate(logprobs.exp().tolist()):
        assert abs(seen[token] / count - p) < 4 * math.sqrt(p * (1 - p) / count) + 1e-9


@pytest.mark.parametrize("changes", [{"top_k": 2}, {"repetition_penalty": 5.0}, {"min_new_tokens": 6}])
def test_shaped_sampling_does_not_depend_on_batching(model: LlamaForCausalLM, changes: dict[str, float]) -> None:
    together = sample(model, EOS, PAD, PROMPTS, generation(**changes), SEEDS, "float32")
    alone = sample(model, EOS, PAD, PROMPTS, generation(batch_size=1, **changes), SEEDS, "float32")
    assert together.tokens == alone.tokens
    assert together.tokens != sample(model, EOS, PAD, PROMPTS, generation(), SEEDS, "float32").tokens


def test_what_shapes_the_sampling(model: LlamaForCausalLM) -> None:
    """At the first token: one of the two likeliest with top_k 2; no EOS below the minimum; less is said again."""
    count = 64
    many = {"prompts": [[5, 6]] * count, "seeds": list(range(count)), "precision": "float32"}
    likeliest = set(model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].topk(2).indices.tolist())
    top = sample(model, EOS, PAD, generation=generation(max_new_tokens=1, top_k=2), **many)
    assert {answer[0] for answer in top.tokens} == likeliest
    least = sample(model, EOS, PAD, generation=generation(min_new_tokens=6), **many)
    assert min(len(answer) for answer in least.tokens) == 7
    again = [
        sum(token in [5, 6, *answer[:place]] for answer in answers.tokens for place, token in enumerate(answer))
        / sum(map(len, answers.tokens))
        for answers in (sample(model, EOS, PAD, generation=generation(repetition_penalty=p), **many) for p in (1.0, 5.0))
    ]
    assert again[1] < 0.7 * again[0]


def test_greedy_takes_the_likeliest_token(model: LlamaForCausalLM) -> None:
    answers = sample(model, EOS, PAD, [[1, 2, 3]], generation(max_new_tokens=3), [0], "float32", greedy=True)
    row = [1, 2, 3]
    for token in answers.tokens[0]:
        assert token == int(model(input_ids=torch.tensor([row])).logits[0, -1].argmax())
        row.append(token)


@pytest.mark.parametrize(("precision", "adapter"), list(product(["float32", "bf16"], [False, True])))
def test_runs_in_both_precisions_and_with_an_adapter(model: LlamaForCausalLM, precision: str, adapter: bool) -> None:
    import copy

    from peft import LoraConfig, get_peft_model

    subject = copy.deepcopy(model)
    if adapter:
        subject = get_peft_model(subject, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    answers = sample(subject, EOS, PAD, PROMPTS, generation(), SEEDS, precision)
    logprobs = response_logprobs(subject, PROMPTS, answers.tokens, 0.8, precision, batch_size=4)
    gap = max((torch.tensor(a) - b).abs().max().item() for a, b in zip(answers.logprobs, logprobs, strict=True))
    assert gap < (2e-6 if precision == "float32" else 0.1)


def test_bad_prompts_are_refused_with_their_row(model: LlamaForCausalLM) -> None:
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        sample(model, EOS, PAD, [[1], []], generation(), [1, 2], "float32")
    with pytest.raises(DataError, match="prompt 0 has 23 tokens.*context of 32"):
        sample(model, EOS, PAD, [[1] * 23], generation(), [1], "float32")
