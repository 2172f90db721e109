"""Token rows and masks, token by token."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.lengths import bucketed, fit, quantiles
from pipelines.data.tokens import (
    decode,
    encode_completion,
    encode_completions,
    encode_prompt,
    examples,
    is_chat,
    left_pad,
    right_pad,
)
from pipelines.errors import ConfigurationError, DataError
from pipelines.training.distributed import shared_out
from tests import small

TEMPLATE = (
    "{% for message in messages %}<|im_end|>{{ message['role'] }}: {{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PLAIN = small.tokenizer()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ROWS = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=5)


def example(tokenizer: Any, prompt: str, completion: str, loss_on: str = "completion") -> dict[str, list[int]]:
    return examples(tokenizer, [prompt], [completion], loss_on)[0]


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


DIALOGUE = "\n\nHuman: To be?\n\nAssistant: or not\n\nHuman: why<|im_end|>?\n\nAssistant:"


def _tokens(text: str) -> list[int]:
    return PLAIN(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_a_plain_dialogue_token_by_token() -> None:
    parts = [("\n\nHuman: To be?\n\nAssistant:", 0), (" or not", 1), ("\n\nHuman: why<|im_end|>?\n\nAssistant:", 0)]
    ids = [token for text, _ in parts for token in _tokens(text)]
    assert encode_prompt(PLAIN, DIALOGUE) == ids
    every = example(PLAIN, DIALOGUE, " that is", "assistant")
    assert every["input_ids"] == [*ids, *_tokens(" that is"), PLAIN.eos_token_id]
    answered = [1] * (len(_tokens(" that is")) + 1)
    assert every["completion_mask"] == [learnt for text, learnt in parts for _ in _tokens(text)] + answered
    last = example(PLAIN, DIALOGUE, " that is")
    assert last["input_ids"] == every["input_ids"]
    assert last["completion_mask"] == [0] * len(ids) + answered


def test_a_chat_dialogue_token_by_token() -> None:
    """Every turn opens with the template's own <|im_end|>; the one behind an assistant's turn ends it and is learnt."""
    tokenizer, eos = _chat(), PLAIN.eos_token_id
    row = example(tokenizer, DIALOGUE, " that is", "assistant")
    expected = [
        ([eos, *_tokens("user: ")], 0), (_tokens("To be?"), 0), (_tokens("\n"), 0),
        ([eos, *_tokens("assistant: ")], 0), (_tokens("or not"), 1), (_tokens("\n"), 0),
        ([eos, *_tokens("user: ")], 0), (_tokens("why<|im_end|>?"), 0), (_tokens("\nassistant:"), 0),
        ([*_tokens("that is"), eos], 1),
    ]  # fmt: skip
    assert decode(PLAIN, row["input_ids"]) == decode(PLAIN, [token for ids, _ in expected for token in ids])
    assert row["input_ids"].count(eos) == 4, "three of the template, one behind the answer, none of the user's text"
    learnt = [token for token, kept in zip(row["input_ids"], row["completion_mask"], strict=True) if kept]
    assert learnt == _tokens("or not") + _tokens("that is") + [eos]
    only_last = example(tokenizer, DIALOGUE, " that is")
    assert sum(only_last["completion_mask"]) == len(_tokens("that is")) + 1


def test_the_end_of_turn_behind_an_answer_is_learnt_where_it_is_eos() -> None:
    tokenizer = _chat()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    row = example(tokenizer, DIALOGUE, " that is", "assistant")
    learnt = [token for token, kept in zip(row["input_ids"], row["completion_mask"], strict=True) if kept]
    assert learnt == [*_tokens("or not"), PLAIN.eos_token_id, *_tokens("that is"), PLAIN.eos_token_id]


def test_a_chat_template_that_drops_or_refuses_a_turn_is_named() -> None:
    tokenizer = _chat()
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(ConfigurationError, match=r"drops turn 1 \(user\)"):
        encode_prompt(tokenizer, DIALOGUE)
    tokenizer.chat_template = "{{ raise_exception('only one turn, please') }}"
    with pytest.raises(ConfigurationError, match="only one turn, please"):
        encode_prompt(tokenizer, DIALOGUE)


def test_rows_beyond_the_context_are_refused_dropped_or_cut_at_their_beginning() -> None:
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, -100, -100, 4, 5, 6]},
        {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, 2, 3, 4, 5, 6]},
    ]
    with pytest.raises(DataError, match=r"a row of 6 tokens .* context of 4 \(2 of 3 rows\) \| context 4 .*drop\|truncate"):
        fit(rows, 4, "raise", "demonstrations")
    assert fit(rows, 4, "drop", "x") == (rows[:1], {"rows_dropped_by_length": 2, "rows_truncated": 0})
    kept, counts = fit(rows, 4, "truncate", "x")
    assert kept == [rows[0], {"input_ids": [3, 4, 5, 6], "labels": [-100, 4, 5, 6]}]
    assert counts == {"rows_dropped_by_length": 1, "rows_truncated": 1}
    assert fit(rows, 6, "raise", "x") == (rows, {})
    with pytest.raises(DataError, match="0 of 1 rows left"):
        fit(rows[2:], 4, "truncate", "x")


def test_batches_of_like_length_hold_the_same_rows_with_less_padding() -> None:
    lengths = [(37 * number) % 101 for number in range(400)]
    order = list(range(400))
    found = bucketed(order, lengths, 8, 3)
    assert sorted(found) == order
    assert found != bucketed(order, lengths, 8, 4)
    assert found == bucketed(order, lengths, 8, 3)

    def padding(rows: list[int]) -> int:
        batches = [rows[start : start + 8] for start in range(0, 400, 8)]
        return sum(8 * max(lengths[n] for n in batch) - sum(lengths[n] for n in batch) for batch in batches)

    assert padding(found) < padding(order) / 5


def test_no_row_is_beside_itself_in_a_batch_of_like_length() -> None:
    """40 rows, three epochs: sorted over all epochs at once, every row would stand beside its own copies."""
    order = [(7 * number) % 40 for number in range(120)]
    found = bucketed(order, list(range(40)), 8, 3)
    assert sorted(found) == sorted(order)
    assert all(len(set(found[start : start + 8])) == 8 for start in range(0, 120, 8))


def test_quantiles_by_hand() -> None:
    assert quantiles("tokens", [11, *range(1, 11)]) == {
        "tokens_q00": 1.0,
        "tokens_q10": 2.0,
        "tokens_q50": 6.0,
        "tokens_q90": 10.0,
        "tokens_q100": 11.0,
    }


@pytest.mark.parametrize("tokenizer", [PLAIN, _chat()], ids=["plain", "chat"])
def test_many_texts_at_once_have_the_tokens_of_each_alone(tokenizer: Any) -> None:
    """Rows of every kind, some of them twice: texts, special tokens as text, an empty answer, dialogues."""
    prompts = ["To be,", DIALOGUE, "To<|im_end|> be,", "To be,", DIALOGUE + " more", "\u2063"]
    answers = [" or not", " that is", "", "<|im_end|>", " or not", "  x "]
    for loss_on in ("completion", "assistant"):
        alone = [example(tokenizer, *texts, loss_on) for texts in zip(prompts, answers, strict=True)]
        assert examples(tokenizer, prompts, answers, loss_on) == alone
    cut = [True, False] * 3
    assert encode_completions(tokenizer, answers, cut) == [
        encode_completion(tokenizer, text, ended) for text, ended in zip(answers, cut, strict=True)
    ]
    assert examples(tokenizer, [], []) == []


def test_texts_are_shared_out_in_batches_and_come_back_in_order() -> None:
    sizes = []

    def doubled(some: Any) -> list[int]:
        sizes.append(len(some))
        return [2 * number for number in some]

    assert shared_out(doubled, list(range(10)), 4) == list(range(0, 20, 2))
    assert sizes == [4, 4, 2]
