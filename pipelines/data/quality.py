"""What the prepared tables are like: counts, lengths, duplicates, leaks. Words are counted; no tokenizer is known yet."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd

SAMPLE = 500
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


def quality(tables: dict[str, pd.DataFrame], dropped: dict[str, int]) -> dict[str, Any]:
    """The whole report: one entry a table, what was dropped by which rule, and prompts that stand in two splits (0)."""
    return {
        "tables": {name: _table(rows) for name, rows in sorted(tables.items())},
        "dropped": dropped,
        "prompts_in_two_splits": leaks(tables),
    }


def languages(rows: pd.DataFrame, seed: int) -> dict[str, float]:
    """The share of every language among up to ``SAMPLE`` rows drawn by seed, told by py3langid; shares below 1 % together."""
    from py3langid.langid import classify

    texts = (rows["prompt"] + rows["completion"].fillna("")).sample(min(SAMPLE, len(rows)), random_state=seed)
    counts = Counter(classify(text)[0] for text in texts)
    shares = {language: count / len(texts) for language, count in counts.items()}
    rare = sum(share for share in shares.values() if share < 0.01)
    found = {language: round(share, 4) for language, share in sorted(shares.items()) if share >= 0.01}
    return found | ({"other": round(rare, 4)} if rare else {})


def leaks(tables: dict[str, pd.DataFrame]) -> int:
    """How many prompts stand in more than one split, over all tables together."""
    asked = [rows[["prompt", "split"]] for rows in tables.values() if "prompt" in rows]
    return int((pd.concat(asked).groupby("prompt")["split"].nunique() > 1).sum())


def _table(rows: pd.DataFrame) -> dict[str, Any]:
    texts = [name for name in ("prompt", "completion", "reference", "chosen", "rejected", "text") if name in rows]
    facts: dict[str, Any] = {
        "rows": len(rows),
        "per_split": _counts(rows, "split"),
        "groups": int(rows["group"].nunique()),
        "duplicates": int(rows.duplicated(subset=texts).sum()),
        "empty": int(sum((rows[name].str.strip() == "").sum() for name in texts)),
        "words": {name: _lengths(rows[name]) for name in texts},
    }
    for name in ("source", "template"):
        if name in rows:
            facts[f"per_{name}"] = _counts(rows, name)
    if "rejected" in rows:
        facts["contradictions"] = _contradictions(rows)
    return facts


def _counts(rows: pd.DataFrame, column: str) -> dict[str, int]:
    return {str(name): int(count) for name, count in rows[column].value_counts().sort_index().items()}


def _lengths(texts: pd.Series) -> dict[str, float]:
    words = texts.map(lambda text: len(text.split()))
    return {f"q{round(100 * q):02d}": round(float(words.quantile(q)), 1) for q in QUANTILES} if len(words) else {}


def _contradictions(rows: pd.DataFrame) -> int:
    """How many pairs of answers are preferred both ways."""
    seen = {(row.prompt, row.chosen, row.rejected) for row in rows.itertuples()}
    return sum((prompt, rejected, chosen) in seen for prompt, chosen, rejected in seen) // 2
