"""Token rows and masks, token by token."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.tokens import decode, encode_completion, encode_prompt, example, is_chat, left_pad, right_pad
from tests import small

TEMPLATE = (
    "{% for message in messages %}<|im_end|>{{ message['role'] }}: {{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PLAIN = small.tokenizer()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ROWS = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=5)


def _chat() -> Any:
    tokenizer = small.tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.init_kwargs["prompt_format"] = "chat"
    return tokenizer


def test_an_example_token_by_token() -> None:
    row = example(PLAIN, "HAMLET: To be,", " or not")
    asked = PLAIN("HAMLET: To be,", add_special_tokens=False)["input_ids"]
    answered = PLAIN(" or not", add_special_tokens=False)["input_ids"]
    assert row["input_ids"] == [*asked, *answered, PLAIN.eos_token_id]
    assert row["completion_mask"] == [0] * len(asked) + [1] * len(answered) + [1]


def test_the_boundary_is_the_one_that_generation_sees() -> None:
    """Tokenised together "question." would merge across the cut; apart, the prompt is what is sampled from."""
    row = example(PLAIN, "that is the ques", "tion.")
    assert row["input_ids"][: row["completion_mask"].index(1)] == encode_prompt(PLAIN, "that is the ques")


def test_a_cut_answer_has_no_eos() -> None:
    assert encode_completion(PLAIN, " or", eos=False) + [PLAIN.eos_token_id] == encode_completion(PLAIN, " or")


@pytest.mark.parametrize("tokenizer", [PLAIN, _chat()], ids=["plain", "chat"])
def test_text_of_users_that_looks_like_a_special_token_stays_text(tokenizer: Any) -> None:
    text = "To be<|im_end|>, or<|endoftext|>not"
    specials = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    plain = encode_prompt(PLAIN, text)
    assert not specials & set(plain)
    assert decode(PLAIN, plain) == text
    assert not specials & set(encode_completion(tokenizer, text, eos=False))
    asked = encode_prompt(tokenizer, text)
    assert sum(token in specials for token in asked) == (1 if is_chat(tokenizer) else 0)


def test_chat_wraps_the_prompt_and_drops_the_answers_leading_space() -> None:
    tokenizer = _chat()
    asked = encode_prompt(tokenizer, "To be, or ")
    middle = encode_prompt(PLAIN, "To be, or ")
    before = [PLAIN.eos_token_id, *encode_prompt(PLAIN, "user: ")]
    assert asked == before + middle + encode_prompt(PLAIN, "\nassistant:")
    assert encode_completion(tokenizer, " not") == encode_completion(PLAIN, "not")


def test_how_a_model_is_spoken_to_travels_with_its_folder(tmp_path: Any) -> None:
    from pipelines.models.loading import load_tokenizer, save_model

    save_model(small.llama(), _chat(), tmp_path)
    assert is_chat(load_tokenizer(tmp_path))
    assert encode_prompt(load_tokenizer(tmp_path), "To be") == encode_prompt(_chat(), "To be")


@given(prompt=TEXTS, completion=TEXTS)
def test_every_text_comes_back_and_every_token_has_its_mask(prompt: str, completion: str) -> None:
    row = example(PLAIN, prompt, completion)
    cut = len(row["completion_mask"]) - sum(row["completion_mask"])
    assert len(row["input_ids"]) == len(row["completion_mask"])
    assert row["completion_mask"] == sorted(row["completion_mask"])
    assert decode(PLAIN, row["input_ids"][:cut]) == prompt
    assert decode(PLAIN, row["input_ids"][cut:-1]) == completion
    assert row["input_ids"].count(PLAIN.eos_token_id) == 1
    assert row["input_ids"][-1] == PLAIN.eos_token_id


def test_padding_by_hand() -> None:
    ids, mask = left_pad([[1, 2], [3]], 9)
    assert ids.tolist() == [[1, 2], [9, 3]]
    assert mask.tolist() == [[1, 1], [0, 1]]
    ids, mask = right_pad([[1, 2], [3]], 9)
    assert ids.tolist() == [[1, 2], [3, 9]]
    assert mask.tolist() == [[1, 1], [1, 0]]


@given(rows=ROWS, pad=st.integers(0, 9))
def test_masks_count_tokens_even_where_a_token_equals_the_pad(rows: list[list[int]], pad: int) -> None:
    for pads, first in ((left_pad, False), (right_pad, True)):
        ids, mask = pads(rows, pad)
        width = max(map(len, rows))
        assert ids.shape == mask.shape == (len(rows), width)
        assert ids.dtype == mask.dtype == torch.long
        for index, row in enumerate(rows):
            assert ids[index][mask[index].bool()].tolist() == row
            held = mask[index].tolist()
            assert held == sorted(held, reverse=first)
