"""Text to token rows and masks: the only place where masks are born.

A prompt and its completion are tokenised apart, so that training sees the boundary that generation sees. Text of users
that looks like a special token stays plain text. How a model is spoken to (``plain`` or ``chat``) is a property of its
tokenizer folder (``prompt_format``, set by the base stage), so every stage speaks to it in the same way.

Axes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError

from pipelines.data.dialogues import MARKS, Turn, turns
from pipelines.errors import ConfigurationError

SLOT = "\u2063slot{}\u2063"
"""Stands for the text of a turn while the chat template is rendered; invisible separators, found in no text."""

Piece = tuple[list[int], bool]
"""Tokens, and whether an assistant has said them."""


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a prompt, inside the chat template's turns where the model is spoken to in chat format.

    A prompt in dialogue form (``dialogues``) has several turns, any other is one turn of the user.
    """
    return [token for ids, _ in pieces(tokenizer, text) for token in ids]


def pieces(tokenizer: Any, text: str) -> list[Piece]:
    """The tokens of a prompt, what assistants have said in it apart. Raises ConfigurationError for an unfit chat template.

    In chat format the end-of-turn token behind an assistant's turn counts as said, where it is the tokenizer's EOS.
    """
    found = turns(text)
    return _chat_pieces(tokenizer, text, found) if is_chat(tokenizer) else _plain_pieces(tokenizer, text, found)


def encode_completion(tokenizer: Any, text: str, eos: bool = True) -> list[int]:
    """The tokens of an answer, ended by EOS unless it was cut. In chat format its leading space is dropped."""
    ids = _plain(tokenizer, text.lstrip() if is_chat(tokenizer) else text)
    return [*ids, tokenizer.eos_token_id] if eos else ids


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, without the special ones, otherwise untouched."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def example(tokenizer: Any, prompt: str, completion: str, loss_on: str = "completion") -> dict[str, list[int]]:
    """One training row: ``input_ids`` [T] and ``completion_mask`` [T], 1 on the completion's tokens and its EOS.

    With ``loss_on`` = ``assistant`` it is 1 on every assistant turn of a dialogue, not only on the last.
    """
    asked, answered = pieces(tokenizer, prompt), encode_completion(tokenizer, completion)
    learnt = [int(said and loss_on == "assistant") for ids, said in asked for _ in ids]
    ids = [token for ids, _ in asked for token in ids]
    return {"input_ids": ids + answered, "completion_mask": learnt + [1] * len(answered)}


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [B, T], the rows' ends aligned. The mask counts tokens: a real token may equal ``pad_id``."""
    width = max((len(row) for row in rows), default=0)
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return _tensor(ids, width), _tensor(mask, width)


def right_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [B, T], the rows' starts aligned. The mask counts tokens: a real token may equal ``pad_id``."""
    width = max((len(row) for row in rows), default=0)
    ids = [list(row) + [pad_id] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return _tensor(ids, width), _tensor(mask, width)


def is_chat(tokenizer: Any) -> bool:
    """Whether the model is spoken to through its chat template."""
    return tokenizer.init_kwargs.get("prompt_format", "plain") == "chat"


def _plain_pieces(tokenizer: Any, text: str, found: list[Turn]) -> list[Piece]:
    made: list[Piece] = []
    rest = "" if found else text
    for role, content in found:
        rest += MARKS[role]
        if role == "assistant" and content:
            made += [(_plain(tokenizer, rest), False), (_plain(tokenizer, content), True)]
            rest = ""
        else:
            rest += content
    return [*made, (_plain(tokenizer, rest), False)] if rest else made


def _chat_pieces(tokenizer: Any, text: str, found: list[Turn]) -> list[Piece]:
    """The chat template is rendered with slots; each text is put into its own as plain text, so that none can forge a turn."""
    said = [(role, content.strip()) for role, content in found if content.strip()] or [("user", text)]
    messages = [{"role": role, "content": SLOT.format(place)} for place, (role, _) in enumerate(said)]
    try:
        rest = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ConfigurationError(f"chat template: {error}; the roles of the data do not fit this model") from error
    made: list[Piece] = []
    spoken = False
    for place, (role, content) in enumerate(said):
        before, slot, rest = rest.partition(SLOT.format(place))
        if not slot:
            raise ConfigurationError(f"chat template: it drops turn {place + 1} ({role}); use prompt_format: plain")
        made += [*_after(tokenizer, before, spoken), (_plain(tokenizer, content), role == "assistant")]
        spoken = role == "assistant"
    return made + _after(tokenizer, rest, spoken)


def _after(tokenizer: Any, text: str, spoken: bool) -> list[Piece]:
    """Text of the template; the EOS that ends what an assistant has said belongs to it."""
    ids = _marked(tokenizer, text)
    ends = int(spoken and ids[:1] == [tokenizer.eos_token_id])
    return [(ids[:ends], True), (ids[ends:], False)]


def _plain(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _marked(tokenizer: Any, text: str) -> list[int]:
    """Text of the chat template itself: its special tokens are meant."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"] if text else []


def _tensor(rows: list[list[int]], width: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), width)
