"""What the prepared tables are like: counts, lengths, duplicates, leaks. Words are counted; no tokenizer is known yet.

A table comes in blocks; some bytes a row are kept of it: hashes of its texts and the number of their words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipelines.data.splits import SPLITS
from pipelines.data.streams import keys_of

SAMPLE = 500
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
TEXTS = ("prompt", "completion", "reference", "chosen", "rejected", "text")


def quality(tables: Mapping[str, Iterable[pd.DataFrame]], dropped: dict[str, int]) -> dict[str, Any]:
    """The whole report: one entry a table, what was dropped by which rule, and prompts that stand in two splits (0)."""
    found = {name: _Table(blocks) for name, blocks in sorted(tables.items())}
    asked = {split: [keys for table in found.values() for keys in table.asked[split]] for split in SPLITS}
    once = [np.unique(np.concatenate(keys)) for keys in asked.values() if keys]
    return {
        "tables": {name: table.facts() for name, table in found.items()},
        "dropped": dropped,
        "prompts_in_two_splits": int((np.unique(np.concatenate(once), return_counts=True)[1] > 1).sum()),
    }


def languages(rows: pd.DataFrame) -> dict[str, float]:
    """The share of every language among rows, told by py3langid; shares below 1 % together."""
    from py3langid.langid import classify

    texts = rows["prompt"] + rows["completion"].fillna("")
    counts = Counter(classify(text)[0] for text in texts)
    shares = {language: count / len(texts) for language, count in counts.items()}
    rare = sum(share for share in shares.values() if share < 0.01)
    found = {language: round(share, 4) for language, share in sorted(shares.items()) if share >= 0.01}
    return found | ({"other": round(rare, 4)} if rare else {})


class _Table:
    """What is kept of one table while its blocks go by."""

    def __init__(self, blocks: Iterable[pd.DataFrame]) -> None:
        self.rows, self.empty = 0, 0
        self.names: dict[str, Counter[str]] = {}
        self.words: dict[str, list[np.ndarray]] = {}
        self.keys: dict[str, list[np.ndarray]] = {"group": [], "texts": [], "turned": []}
        self.asked: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        """The keys of the prompts of every split."""
        for block in blocks:
            self._add(block)

    def _add(self, block: pd.DataFrame) -> None:
        self.rows += len(block)
        texts = {name: np.asarray(block[name], object) for name in TEXTS if name in block}
        for name, column in texts.items():
            counts = np.array([len(text.split()) for text in column], np.int32)
            self.words.setdefault(name, []).append(counts)
            self.empty += int((counts == 0).sum())
        for name in ("split", "source", "template"):
            if name in block:
                self.names.setdefault(name, Counter()).update(block[name].tolist())
        self.keys["group"].append(keys_of(block["group"]))
        self.keys["texts"].append(keys_of(*texts.values()))
        if "rejected" in texts:
            self.keys["turned"].append(keys_of(texts["prompt"], texts["rejected"], texts["chosen"]))
        if "prompt" in texts:
            keys, splits = keys_of(texts["prompt"]), np.asarray(block["split"], object)
            for split in SPLITS:
                self.asked[split].append(keys[splits == split])

    def facts(self) -> dict[str, Any]:
        """Counts, and quantiles of the words of every text."""
        groups, texts = (np.unique(np.concatenate(self.keys[name])) for name in ("group", "texts"))
        facts: dict[str, Any] = {
            "rows": self.rows,
            "groups": len(groups),
            "duplicates": self.rows - len(texts),
            "empty": self.empty,
            "words": {name: _lengths(np.concatenate(counts)) for name, counts in self.words.items()},
        }
        facts |= {f"per_{name}": dict(sorted(counts.items())) for name, counts in self.names.items()}
        if self.keys["turned"]:
            facts["contradictions"] = int(np.isin(np.unique(np.concatenate(self.keys["turned"])), texts).sum()) // 2
        return facts


def _lengths(words: np.ndarray) -> dict[str, float]:
    return {f"q{round(100 * q):02d}": round(float(np.quantile(words, q)), 1) for q in QUANTILES} if len(words) else {}
