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

SLOT = "\u2063slot\u2063"
"""Stands for the user's text while the chat template is rendered; invisible separators, found in no text."""


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a prompt, inside the chat template's user turn where the model is spoken to in chat format."""
    if not is_chat(tokenizer):
        return _plain(tokenizer, text)
    turns = [{"role": "user", "content": SLOT}]
    before, _, after = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True).partition(SLOT)
    return _marked(tokenizer, before) + _plain(tokenizer, text) + _marked(tokenizer, after)


def encode_completion(tokenizer: Any, text: str, eos: bool = True) -> list[int]:
    """The tokens of an answer, ended by EOS unless it was cut. In chat format its leading space is dropped."""
    ids = _plain(tokenizer, text.lstrip() if is_chat(tokenizer) else text)
    return [*ids, tokenizer.eos_token_id] if eos else ids


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, without the special ones, otherwise untouched."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def example(tokenizer: Any, prompt: str, completion: str) -> dict[str, list[int]]:
    """One training row: ``input_ids`` [T] and ``completion_mask`` [T], 1 on the completion's tokens and its EOS."""
    asked, answered = encode_prompt(tokenizer, prompt), encode_completion(tokenizer, completion)
    return {"input_ids": asked + answered, "completion_mask": [0] * len(asked) + [1] * len(answered)}


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


def _plain(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _marked(tokenizer: Any, text: str) -> list[int]:
    """Text of the chat template itself: its special tokens are meant."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"] if text else []


def _tensor(rows: list[list[int]], width: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), width)
