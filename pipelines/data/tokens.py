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

PLAIN, SAID, TEMPLATE, BEHIND = "plain", "said", "template", "behind"
"""What a piece of text is: words of users, words of an assistant, the chat template's own, the template's behind an assistant."""

Piece = tuple[str, str]
"""A text and what it is."""


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """The tokens of one prompt; see ``encode_prompts``."""
    return encode_prompts(tokenizer, [text])[0]


def encode_prompts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of prompts, inside the chat template's turns where the model is spoken to in chat format.

    A prompt in dialogue form (``dialogues``) has several turns, any other is one turn of the user. Raises
    ConfigurationError for a chat template that does not take the turns.
    """
    return [[token for token, _ in row] for row in _asked(tokenizer, texts)]


def encode_completion(tokenizer: Any, text: str, eos: bool = True) -> list[int]:
    """The tokens of one answer; see ``encode_completions``."""
    return encode_completions(tokenizer, [text], [eos])[0]


def encode_completions(tokenizer: Any, texts: Sequence[str], ended: Sequence[bool]) -> list[list[int]]:
    """The tokens of answers, ended by EOS unless they were cut. In chat format their leading space is dropped."""
    texts = [text.lstrip() for text in texts] if is_chat(tokenizer) else texts
    found = _encoded(tokenizer, texts, plain=True)
    eos = [tokenizer.eos_token_id]
    return [found[text] + (eos if whole else []) for text, whole in zip(texts, ended, strict=True)]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, without the special ones, otherwise untouched."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def examples(
    tokenizer: Any, prompts: Sequence[str], completions: Sequence[str], loss_on: str = "completion"
) -> list[dict[str, list[int]]]:
    """Training rows: ``input_ids`` [T] and ``completion_mask`` [T], 1 on the completion's tokens and its EOS.

    With ``loss_on`` = ``assistant`` it is 1 on every assistant turn of a dialogue, not only on the last.
    """
    rows = []
    answers = encode_completions(tokenizer, completions, [True] * len(completions))
    for asked, answered in zip(_asked(tokenizer, prompts), answers, strict=True):
        learnt = [int(said and loss_on == "assistant") for _, said in asked]
        rows.append({"input_ids": [token for token, _ in asked] + answered, "completion_mask": learnt + [1] * len(answered)})
    return rows


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


def _asked(tokenizer: Any, texts: Sequence[str]) -> list[list[tuple[int, bool]]]:
    """Every token of every prompt, and whether an assistant has said it.

    In chat format the end-of-turn token behind an assistant's turn counts as said, where it is the tokenizer's EOS.
    """
    cut = _chat_pieces if is_chat(tokenizer) else _plain_pieces
    made = [cut(tokenizer, text, turns(text)) for text in texts]
    every = [piece for pieces in made for piece in pieces]
    words = _encoded(tokenizer, [text for text, kind in every if kind in (PLAIN, SAID)], plain=True)
    marks = _encoded(tokenizer, [text for text, kind in every if kind in (TEMPLATE, BEHIND)], plain=False)
    rows = []
    for pieces in made:
        row: list[tuple[int, bool]] = []
        for text, kind in pieces:
            ids = words[text] if kind in (PLAIN, SAID) else marks[text]
            ends = int(kind == BEHIND and ids[:1] == [tokenizer.eos_token_id])
            row += [(token, kind == SAID or place < ends) for place, token in enumerate(ids)]
        rows.append(row)
    return rows


def _plain_pieces(_: Any, text: str, found: list[Turn]) -> list[Piece]:
    made: list[Piece] = []
    rest = "" if found else text
    for role, content in found:
        rest += MARKS[role]
        if role == "assistant" and content:
            made += [(rest, PLAIN), (content, SAID)]
            rest = ""
        else:
            rest += content
    return [*made, (rest, PLAIN)]


def _chat_pieces(tokenizer: Any, text: str, found: list[Turn]) -> list[Piece]:
    """The chat template is rendered with slots; each text is put into its own as plain text, so that none can forge a turn."""
    said = [(role, content.strip()) for role, content in found if content.strip()] or [("user", text)]
    messages = [{"role": role, "content": SLOT.format(place)} for place, (role, _) in enumerate(said)]
    try:
        rest = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ConfigurationError(f"chat template: {error}; the roles of the data do not fit this model") from error
    made: list[Piece] = []
    kind = TEMPLATE
    for place, (role, content) in enumerate(said):
        before, slot, rest = rest.partition(SLOT.format(place))
        if not slot:
            raise ConfigurationError(f"chat template: it drops turn {place + 1} ({role}); use prompt_format: plain")
        made += [(before, kind), (content, SAID if role == "assistant" else PLAIN)]
        kind = BEHIND if role == "assistant" else TEMPLATE
    return [*made, (rest, kind)]


def _encoded(tokenizer: Any, texts: Sequence[str], plain: bool) -> dict[str, list[int]]:
    """The tokens of every different text, in one call of the tokenizer; as ``plain`` text or with special tokens meant."""
    different = [text for text in dict.fromkeys(texts) if text]
    if not different:
        return {"": []}
    ids = tokenizer(different, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
    return {"": [], **dict(zip(different, ids, strict=True))}


def _tensor(rows: list[list[int]], width: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), width)
