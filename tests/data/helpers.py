"""What several tests of the data look at."""

from __future__ import annotations

import unicodedata
from typing import Any

import pandas as pd

from pipelines.data.rows import Ingested


def rows_of(found: Ingested, *names: str) -> list[tuple[Any, ...]]:
    """Columns of the rows that are used, row by row."""
    blocks = (block for _, block in found.blocks(list(names)))
    return [row for block in blocks for row in zip(*(block[name].to_pylist() for name in names), strict=True)]


def leaks(tables: dict[str, pd.DataFrame]) -> int:
    """How many prompts stand in more than one split, over all tables together, however they are spaced and written."""
    asked = pd.concat([rows[["prompt", "split"]] for rows in tables.values() if "prompt" in rows])
    same = asked["prompt"].map(lambda prompt: " ".join(unicodedata.normalize("NFKC", prompt).casefold().split()))
    return int((asked["split"].groupby(same).nunique() > 1).sum())
