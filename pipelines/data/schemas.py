"""One pandera schema a table, shared by every stage that reads or writes it. Strict: no column more, none less."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pandera.pandas as pa

from pipelines.data.splits import SPLITS

_filled = pa.Check(lambda texts: texts.str.strip().str.len() > 0, name="empty after strip")


def _text(unique: bool = False, empty: bool = False) -> pa.Column:
    return pa.Column(pd.StringDtype(na_value=float("nan")), [] if empty else [_filled], unique=unique)


def _split() -> pa.Column:
    return pa.Column(pd.StringDtype(na_value=float("nan")), pa.Check.isin(SPLITS))


def _optional(kind: Any) -> pa.Column:
    """A column that only some sources bring."""
    return pa.Column(kind, nullable=True, required=False)


_STRING = pd.StringDtype(na_value=float("nan"))


def _table(name: str, columns: dict[str, pa.Column], **options: Any) -> pa.DataFrameSchema:
    return pa.DataFrameSchema(columns, name=name, strict=True, ordered=True, **options)


def empty(schema: pa.DataFrameSchema) -> pd.DataFrame:
    """A table without rows, with the schema's required columns."""
    return pd.DataFrame(columns=[name for name, column in schema.columns.items() if column.required])


CORPUS = _table("corpus", {"id": _text(unique=True), "group": _text(), "split": _split(), "text": _text()})
"""Whole documents: what a base model learns from."""

DEMONSTRATIONS = _table(
    "demonstrations",
    {
        "id": _text(unique=True),
        "prompt": _text(),
        "completion": _text(),
        "template": _text(),
        "source": _text(),
        "group": _text(),
        "split": _split(),
        "task": _optional(_STRING),
    },
)
"""What the SFT model should answer. A completion starts with the space or newline that parts it from its prompt."""

PROMPTS = _table(
    "prompts",
    {
        "id": _text(unique=True),
        "prompt": _text(unique=True),
        "reference": _text(),
        "template": _text(),
        "source": _text(),
        "group": _text(),
        "split": _split(),
        "task": _optional(_STRING),
    },
)
"""What is asked in reinforcement learning and evaluation; ``reference`` is the true continuation."""

PHRASINGS = _table("phrasings", {"intent": _text(), "template": _text(), "prompt": _text()}, unique=["intent", "template"])
"""Held-out prompts in every phrasing that the recipe has for them; ``intent`` is the prompt's id."""

PAIRS = _table(
    "pairs",
    {
        "id": _text(unique=True),
        "prompt_id": _text(),
        "prompt": _text(),
        "chosen": _text(empty=True),
        "rejected": _text(empty=True),
        "judge": _text(),
        "group": _text(),
        "margin": pa.Column(float, nullable=True),
        "source": _text(),
        "split": _split(),
        "chosen_ended": pa.Column(bool),
        "rejected_ended": pa.Column(bool),
        "annotator": _optional(_STRING),
        "weight": _optional(float),
        "chosen_grade": _optional(float),
        "rejected_grade": _optional(float),
        "template": _optional(_STRING),
    },
    checks=pa.Check(lambda rows: rows["chosen"] != rows["rejected"], name="chosen equals rejected"),
)
"""Preferences of a judge or of people. ``margin`` is the judge's score of chosen minus rejected; NaN where unknown.
A sampled answer may be empty (the model ended at once), or cut at the longest length: ``..._ended`` False, no EOS is
trained on. People's answers have ended. ``..._grade``: what each answer was worth on one scale, where that is known."""

GROUP_SCORES = _table(
    "group_scores",
    {"prompt": _text(), "answer": _text(empty=True), "ended": pa.Column(bool), "group": _text(), "score": pa.Column(float)},
    unique=["prompt", "answer", "ended", "group"],
)
"""What every group's own reward model gives to the answers of the held-out pairs (split test), whoever compared them."""

LABELS = _table(
    "labels",
    {
        "id": _text(unique=True),
        "prompt_id": _text(),
        "prompt": _text(),
        "completion": _text(),
        "label": pa.Column(bool),
        "judge": _text(),
        "group": _text(),
        "source": _text(),
        "split": _split(),
        "annotator": _optional(_STRING),
        "weight": _optional(float),
        "template": _optional(_STRING),
    },
)
"""Single answers that people found good (``label``) or not: what KTO learns from."""

GOLD = _table(
    "gold",
    {
        "prompt_id": _text(),
        "prompt": _text(),
        "answer_index": pa.Column(int, pa.Check.ge(0)),
        "answer": _text(empty=True),
        "gold": pa.Column(float),
        "split": _split(),
    },
)
"""The known true reward of sampled answers: read by evaluation, by no training stage."""
