"""Train, validation and test: by the hash of a group (a play, a prompt), so that rows that are added move no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.context import seed_for
from pipelines.data.texts import normal

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
SCALE = 2**63


def split_of(group: str, validation_fraction: float, test_fraction: float) -> str:
    """The split of a group: a pure function of its name and the fractions, the same for every seed and data set."""
    place = seed_for("held out", group) / SCALE
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def without_leaks(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Drop rows whose prompt, however written, also stands in a later split (test before validation before train); their count.

    Only where rows are split by something coarser than their prompt can one stand in two splits.
    """
    rank = rows["split"].map({split: index for index, split in enumerate(SPLITS)})
    kept = rank == rank.groupby(rows["prompt"].map(normal)).transform("max")
    return rows[kept].reset_index(drop=True), int((~kept).sum())
