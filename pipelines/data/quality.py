"""What the prepared tables are like: counts, lengths, duplicates, leaks. Words are counted; no tokenizer is known yet.

A table comes in blocks; of its rows only hashes are kept, on disk.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.data.spill import Spill, numbered, once
from pipelines.data.splits import SPLITS
from pipelines.data.streams import asked_keys, keys_of

SAMPLE = 500
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
TEXTS = ("prompt", "completion", "reference", "chosen", "rejected", "text")
RANKS = {split: number for number, split in enumerate(SPLITS)}
GROUP, WHOLE, TURNED = range(3)
"""What a key is of: a row's group, all its texts, its pair the other way round."""


def quality(tables: Mapping[str, Iterable[pd.DataFrame]], dropped: dict[str, int], folder: Path) -> dict[str, Any]:
    """The whole report: one entry a table, what was dropped by which rule, and prompts that stand in two splits (0).

    Below ``folder`` lie hashes meanwhile.
    """
    with Spill(folder / "splits") as asked:
        found = {name: _facts(blocks, asked, folder) for name, blocks in sorted(tables.items())}
        twice = sum(_in_two(part) for part in asked.parts())
    return {"tables": found, "dropped": dropped, "prompts_in_two_splits": twice}


def languages(rows: pd.DataFrame) -> dict[str, float]:
    """The share of every language among rows, told by py3langid; shares below 1 % together."""
    from py3langid.langid import classify

    texts = rows["prompt"] + rows["completion"].fillna("")
    counts = Counter(classify(text)[0] for text in texts)
    shares = {language: count / len(texts) for language, count in counts.items()}
    rare = sum(share for share in shares.values() if share < 0.01)
    found = {language: round(share, 4) for language, share in sorted(shares.items()) if share >= 0.01}
    return found | ({"other": round(rare, 4)} if rare else {})


def _facts(blocks: Iterable[pd.DataFrame], asked: Spill, folder: Path) -> dict[str, Any]:
    """Counts of one table, and quantiles of the words of every text; its prompts go to ``asked`` with their splits."""
    rows = empty = 0
    names: dict[str, Counter[str]] = {}
    words: dict[str, Counter[int]] = {}
    with Spill(folder / "keys") as keys:
        for block in blocks:
            rows += len(block)
            texts = {name: np.asarray(block[name], object) for name in TEXTS if name in block}
            for name, column in texts.items():
                counts = Counter(len(text.split()) for text in column)
                words.setdefault(name, Counter()).update(counts)
                empty += counts[0]
            for name in ("split", "source", "template"):
                if name in block:
                    names.setdefault(name, Counter()).update(block[name].fillna("as_given").tolist())
            keys.add(numbered(keys_of(block["group"]), GROUP))
            keys.add(numbered(keys_of(*texts.values()), WHOLE))
            if "rejected" in texts:
                keys.add(numbered(keys_of(texts["prompt"], texts["rejected"], texts["chosen"]), TURNED))
            if "prompt" in texts:
                asked.add(numbered(asked_keys(texts["prompt"]), block["split"].map(RANKS).to_numpy()))
        groups = different = both = 0
        for part in keys.parts():
            of = [np.unique(part["key"][part["number"] == what]) for what in (GROUP, WHOLE, TURNED)]
            groups, different = groups + len(of[0]), different + len(of[1])
            both += int(np.isin(of[2], of[1]).sum())
    facts: dict[str, Any] = {
        "rows": rows,
        "groups": groups,
        "duplicates": rows - different,
        "empty": empty,
        "words": {name: _quantiles(counts) for name, counts in words.items()},
    }
    facts |= {f"per_{name}": dict(sorted(counts.items())) for name, counts in names.items()}
    return facts | ({"contradictions": both // 2} if "rejected" in words else {})


def _in_two(asked: np.ndarray) -> int:
    """How many prompts stand in more than one split."""
    return int((np.unique(once(asked)[0], return_counts=True)[1] > 1).sum())


def _quantiles(counts: Counter[int]) -> dict[str, float]:
    """Of numbers that come so often; between two of them by linear interpolation."""
    values = sorted(counts)
    ends = np.cumsum([counts[value] for value in values])
    if not values:
        return {}
    places = [q * (ends[-1] - 1) for q in QUANTILES]
    found = [[values[np.searchsorted(ends, place, side="right")] for place in (math.floor(p), math.ceil(p))] for p in places]
    between = [low + (high - low) * (place % 1) for (low, high), place in zip(found, places, strict=True)]
    return {f"q{round(100 * q):02d}": round(float(value), 1) for q, value in zip(QUANTILES, between, strict=True)}
