"""Texts that no model of ours has sampled, as tokens: held-out pairs, demonstrations, suites."""

from __future__ import annotations

from typing import Any

from pipelines.data.tokens import encode_completion, encode_prompt
from pipelines.models.soft_prompt import room

Tokens = tuple[list[int], list[int]]
"""A prompt's tokens and an answer's."""


def tokens_of(tokenizer: Any, prompt: str, answer: str, context: int, ended: bool = True) -> Tokens:
    """A prompt and its answer within the model's context: the prompt loses its beginning first, then the answer its end.

    An answer has one token or more: an empty one that was cut is its EOS.
    """
    asked = encode_prompt(tokenizer, prompt)
    said = encode_completion(tokenizer, answer, eos=ended) or encode_completion(tokenizer, answer, eos=True)
    said = said[: context - 1]
    return asked[-(context - len(said)) :], said


def context_of(model: Any) -> int:
    """How many tokens a model can read."""
    return room(getattr(model, "trunk", model))
