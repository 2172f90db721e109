"""Preference pairs as token rows: what the reward model and DPO train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.data import lengths
from pipelines.data.schemas import PAIRS
from pipelines.data.tables import read_table
from pipelines.data.tokens import encode_completions, encode_prompts
from pipelines.training.distributed import shared_out

Row = dict[str, Any]
"""Tokens, as lists; and what was asked for beside them."""


def read_rows(
    path: Path, tokenizer: Any, per_prompt: int = 0, ended_only: bool = False, beside: Sequence[str] = ()
) -> dict[str, list[Row]]:
    """The pairs of each split as ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``; an answer that was cut has no EOS.

    ``ended_only`` leaves out pairs with such an answer; ``per_prompt`` keeps the most decisive of the others. The columns
    ``beside`` come as they are, None where the table has none.
    """
    table = read_table(path, PAIRS)
    if ended_only:
        table = table[table["chosen_ended"] & table["rejected_ended"]]
    table = decisive(table, per_prompt)
    return {split: _rows(table[table["split"] == split], tokenizer, beside) for split in ("train", "validation", "test")}


def decisive(table: pd.DataFrame, per_prompt: int) -> pd.DataFrame:
    """The ``per_prompt`` pairs of each prompt that its labels put furthest apart (0 = all pairs), in the table's order.

    An answer's standing is its wins minus its losses among the prompt's pairs (Copeland's score): of all pairs of four
    answers, one a prompt sets the one that wins most against the one that loses most. Only labels are read, no score.
    """
    if not per_prompt:
        return table
    won = table.groupby(["prompt_id", "chosen"]).size()
    lost = table.groupby(["prompt_id", "rejected"]).size()
    standing = won.sub(lost.rename_axis(won.index.names), fill_value=0)
    gaps = [
        standing[prompt, chosen] - standing[prompt, rejected]
        for prompt, chosen, rejected in zip(table["prompt_id"], table["chosen"], table["rejected"], strict=True)
    ]
    ranks = table.assign(gap=gaps).sort_values("gap", ascending=False, kind="stable").groupby("prompt_id").cumcount()
    return table[ranks.reindex(table.index) < per_prompt]


def longest(rows: list[Row]) -> int:
    """Tokens of the longest prompt with its answer."""
    return max(map(length, rows), default=0)


def length(row: Row) -> int:
    """Tokens of a prompt with the longer of its two answers."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def token_counts(rows: list[Row]) -> dict[str, float]:
    """Quantiles of the tokens of prompts and answers."""
    names = {"prompt_tokens": "prompt_ids", "chosen_tokens": "chosen_ids", "rejected_tokens": "rejected_ids"}
    found = [lengths.quantiles(name, [len(row[ids]) for row in rows]) for name, ids in names.items()]
    return {key: value for quantiles in found for key, value in quantiles.items()}


def _rows(table: pd.DataFrame, tokenizer: Any, beside: Sequence[str]) -> list[Row]:
    columns = [table[name] for name in ("prompt", "chosen", "rejected", "chosen_ended", "rejected_ended")]
    rows = shared_out(lambda some: _encoded(some, tokenizer), list(zip(*columns, strict=True)))
    for name in beside:
        for row, value in zip(rows, table[name] if name in table else [None] * len(table), strict=True):
            row[name] = value
    return rows


def _encoded(pairs: Sequence[tuple[str, str, str, bool, bool]], tokenizer: Any) -> list[Row]:
    prompts, chosen, rejected, chosen_ended, rejected_ended = zip(*pairs, strict=True)
    sides = {
        "prompt_ids": encode_prompts(tokenizer, prompts),
        "chosen_ids": _answers(tokenizer, chosen, chosen_ended),
        "rejected_ids": _answers(tokenizer, rejected, rejected_ended),
    }
    return [dict(zip(sides, row, strict=True)) for row in zip(*sides.values(), strict=True)]


def _answers(tokenizer: Any, texts: Sequence[str], ended: Sequence[bool]) -> list[list[int]]:
    """At least one token each: an empty answer that was cut cannot be, so an empty one is its EOS."""
    return [ids or [tokenizer.eos_token_id] for ids in encode_completions(tokenizer, texts, ended)]
