"""Preference pairs as token rows: what the reward model and DPO train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.data.schemas import PAIRS
from pipelines.data.tables import read_table
from pipelines.data.tokens import encode_completion, encode_prompt

Row = dict[str, list[int]]


def read_rows(path: Path, tokenizer: Any, per_prompt: int = 0, ended_only: bool = False) -> dict[str, list[Row]]:
    """The pairs of each split as ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``; an answer that was cut has no EOS.

    ``ended_only`` leaves out pairs with such an answer; ``per_prompt`` keeps the most decisive of the others.
    """
    table = read_table(path, PAIRS)
    if ended_only:
        table = table[table["chosen_ended"] & table["rejected_ended"]]
    table = decisive(table, per_prompt)
    return {split: _rows(table[table["split"] == split], tokenizer) for split in ("train", "validation", "test")}


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
    return max((len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows), default=0)


def _rows(table: pd.DataFrame, tokenizer: Any) -> list[Row]:
    columns = [table[name] for name in ("prompt", "chosen", "rejected", "chosen_ended", "rejected_ended")]
    return [
        {
            "prompt_ids": encode_prompt(tokenizer, prompt),
            "chosen_ids": _answer(tokenizer, chosen, chosen_ended),
            "rejected_ids": _answer(tokenizer, rejected, rejected_ended),
        }
        for prompt, chosen, rejected, chosen_ended, rejected_ended in zip(*columns, strict=True)
    ]


def _answer(tokenizer: Any, text: str, ended: bool) -> list[int]:
    """At least one token: an empty answer that was cut cannot be, so an empty one is its EOS."""
    return encode_completion(tokenizer, text, eos=ended) or encode_completion(tokenizer, text, eos=True)
