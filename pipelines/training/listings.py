"""Pairs taken together, so that an answer is scored once: all comparisons of a prompt, or single answers with their grades.

Paper: Ouyang et al. 2022, section 3.5 (a prompt's comparisons in one batch). Axes: A answers of a batch, C comparisons,
P prompts, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pipelines.errors import DataError
from pipelines.models.reward import collate
from pipelines.training.pairs import Row

WHOSE = ("group", "annotator")
"""Beside the tokens of a pair: those who agree on nothing are not put into one ranking."""
GRADES = ("chosen_grade", "rejected_grade")
"""Beside the tokens of a pair: what its two answers were worth, as numbers of one scale."""


def listings(rows: Sequence[Row]) -> list[Row]:
    """A row for each prompt of each group and annotator: ``prompt_ids``, its distinct ``answers``, and of each comparison the
    places of ``winners`` and ``losers`` among them."""
    found: dict[tuple[tuple[int, ...], str, str], Row] = {}
    for row in rows:
        key = (tuple(row["prompt_ids"]), str(row["group"]), str(row["annotator"]))
        listing = found.setdefault(key, {"prompt_ids": row["prompt_ids"], "answers": {}, "winners": [], "losers": []})
        for side, places in (("chosen_ids", "winners"), ("rejected_ids", "losers")):
            listing[places].append(listing["answers"].setdefault(tuple(row[side]), len(listing["answers"])))
    return [listing | {"answers": [list(answer) for answer in listing["answers"]]} for listing in found.values()]


def collate_listings(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Listings as a batch: ``comparisons`` [P] of each prompt, ``winners`` and ``losers`` [C] among the answers [A, T]."""
    starts = [sum(len(row["answers"]) for row in rows[:place]) for place in range(len(rows))]
    told = {
        name: torch.tensor([start + place for row, start in zip(rows, starts, strict=True) for place in row[name]])
        for name in ("winners", "losers")
    }
    # first, because the Trainer takes the length of a batch's first tensor for its number of rows, and weighs losses by it
    counts = {"comparisons": torch.tensor([len(row["winners"]) for row in rows])}
    return counts | told | collate([(row["prompt_ids"], answer) for row in rows for answer in row["answers"]])


def graded(rows: Sequence[Row], table: str) -> list[Row]:
    """A row for each answer with a grade: ``prompt_ids``, ``answer_ids``, ``grade`` (the mean of several).

    Raises DataError where no answer of ``table`` has one.
    """
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}
    for row in rows:
        for side, name in zip(("chosen_ids", "rejected_ids"), GRADES, strict=True):
            if row[name] is not None and not math.isnan(row[name]):
                found.setdefault((tuple(row["prompt_ids"]), tuple(row[side])), []).append(row[name])
    if not found:
        raise DataError(
            f"{table}: no answer has a grade (columns {', '.join(GRADES)}): reward.loss regression learns from ranked rows with"
            " scores, or from a judge that is not gold; or take another loss"
        )
    return [
        {"prompt_ids": list(prompt), "answer_ids": list(answer), "grade": math.fsum(grades) / len(grades)}
        for (prompt, answer), grades in found.items()
    ]


def standardised(splits: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Grades less the training grades' mean, in their standard deviations; only centred where they do not vary."""
    grades = torch.tensor([row["grade"] for row in splits["train"]], dtype=torch.float64)
    mean, spread = float(grades.mean()), float(grades.std(correction=0))
    return {
        split: [row | {"grade": (row["grade"] - mean) / (spread if spread > 1e-12 else 1.0)} for row in rows]
        for split, rows in splits.items()
    }


def collate_graded(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Graded answers as a batch: ``grades`` [A] and the answers [A, T]."""
    grades = {"grades": torch.tensor([row["grade"] for row in rows], dtype=torch.float32)}
    return grades | collate([(row["prompt_ids"], row["answer_ids"]) for row in rows])
