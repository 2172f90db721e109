"""Rows that are longer than a model's context, and batches of rows of like length. Axes: T tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from pipelines.errors import DataError

IGNORED = -100
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
WINDOW = 50
"""Batches that are sorted by length together: the order stays random at a larger scale."""

Row = dict[str, list[int]]


def fit(rows: list[Row], context: int, policy: str, table: str) -> tuple[list[Row], dict[str, float]]:
    """Rows (``input_ids`` [T], ``labels`` [T]) within the context, and how many were dropped or truncated (none: no counts).

    ``raise`` stops with DataError. ``truncate`` cuts the beginning, which is the prompt's; a row whose learnt tokens alone
    fill the context is dropped and counted.
    """
    over = [number for number, row in enumerate(rows) if len(row["input_ids"]) > context]
    if not over:
        return rows, {}
    if policy == "raise":
        _refuse_long(table, max(len(rows[number]["input_ids"]) for number in over), len(over), len(rows), context)
    counts: dict[str, float] = {"rows_dropped_by_length": 0, "rows_truncated": 0}
    kept = []
    for row in rows:
        cut = {name: values[-context:] for name, values in row.items()}
        if len(row["input_ids"]) <= context:
            kept.append(row)
        elif policy == "truncate" and _learnt(cut) == _learnt(row):
            counts["rows_truncated"] += 1
            kept.append(cut)
        else:
            counts["rows_dropped_by_length"] += 1
    if not kept:
        _refuse_none_left(table, len(rows), context)
    return kept, counts


def fit_pairs(
    rows: list[Row], context: int, policy: str, table: str, answers: Sequence[str] = ("chosen_ids", "rejected_ids")
) -> tuple[list[Row], dict[str, float]]:
    """The same for pairs (``prompt_ids`` and the named ``answers``): only the prompt is cut, alike for both answers."""
    room = [context - max(len(row[name]) for name in answers) for row in rows]
    over = [number for number, row in enumerate(rows) if len(row["prompt_ids"]) > room[number]]
    if not over:
        return rows, {}
    if policy == "raise":
        longest = max(len(rows[number]["prompt_ids"]) - room[number] for number in over) + context
        _refuse_long(table, longest, len(over), len(rows), context)
    counts: dict[str, float] = {"rows_dropped_by_length": 0, "rows_truncated": 0}
    kept = []
    for row, left in zip(rows, room, strict=True):
        if len(row["prompt_ids"]) <= left:
            kept.append(row)
        elif policy == "truncate" and left > 0:
            counts["rows_truncated"] += 1
            kept.append(row | {"prompt_ids": row["prompt_ids"][-left:]})
        else:
            counts["rows_dropped_by_length"] += 1
    if not kept:
        _refuse_none_left(table, len(rows), context)
    return kept, counts


def quantiles(name: str, counts: Sequence[int]) -> dict[str, float]:
    """How long rows are, in tokens: ``NAME_q00`` (the shortest), ``_q10``, ``_q50``, ``_q90``, ``_q100`` (the longest)."""
    return {f"{name}_q{round(100 * q):02d}": round(float(np.quantile(counts, q)), 1) for q in QUANTILES}


def bucketed(order: list[int], lengths: Sequence[int], batch: int, seed: int) -> list[int]:
    """The same rows in batches of like length: sorted within windows of 50 batches, whole batches shuffled by ``seed``.

    A window holds no more than one epoch, so that a row is not put beside itself.
    """
    draw = random.Random(seed)
    found: list[int] = []
    size = batch * max(min(WINDOW, len(lengths) // batch), 1)
    for start in range(0, len(order), size):
        window = sorted(order[start : start + size], key=lambda number: lengths[number])
        batches = [window[place : place + batch] for place in range(0, len(window), batch)]
        draw.shuffle(batches)
        found += [number for each in batches for number in each]
    return found


def _refuse_long(table: str, longest: int, over: int, rows: int, context: int) -> NoReturn:
    raise DataError(
        f"long-row {table}: a row of {longest} tokens exceeds the model's context of {context} ({over} of {rows} rows)"
        f" | context {context} | shorten, or excess_length: raise|drop|truncate"
    )


def _refuse_none_left(table: str, rows: int, context: int) -> NoReturn:
    raise DataError(
        f"all-filtered {table}: 0 of {rows} rows left: all longer than {context} tokens | context {context} | shorten the texts"
    )


def _learnt(row: Row) -> int:
    return sum(label != IGNORED for label in row["labels"])
