"""Several judges as one: the mean of their scores, each standardised first, because one may count in nats, another in [-1, 1].

What a member is standardised by must not depend on who is judged, or every model would score 0 on the average: it is the
member's mean and standard deviation on the reference answers of the prompts in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, pstdev

from pipelines.data.schemas import PROMPTS
from pipelines.data.tables import read_table
from pipelines.errors import DataError

REFERENCES = 200
Texts = tuple[list[str], list[str]]
"""Prompts and answers."""
Scorer = Callable[[list[str], list[str]], list[float]]


def mean_of(members: Sequence[tuple[str, Scorer]], reference: Callable[[], Texts]) -> Scorer:
    """(1 / K) sum_k (s_k - m_k) / d_k over K named members; m_k and d_k from the reference texts, read at the first call.

    Raises DataError for a member that does not tell the reference answers apart.
    """

    @cache
    def scales() -> list[tuple[float, float]]:
        texts = reference()
        found = []
        for name, score in members:
            scores = score(*texts)
            deviation = pstdev(scores)
            if deviation == 0.0:
                raise DataError(
                    f"judge {name}: gives all {len(scores)} reference answers the same score, so it cannot be standardised; "
                    "take it out of the ensemble"
                )
            found.append((fmean(scores), deviation))
        return found

    def judge(prompts: list[str], answers: list[str]) -> list[float]:
        scored = [
            [(value - mean) / deviation for value in score(prompts, answers)]
            for (_, score), (mean, deviation) in zip(members, scales(), strict=True)
        ]
        return [fmean(values) for values in zip(*scored, strict=True)]

    return judge


def references(root: Path) -> Texts:
    """The first ``REFERENCES`` prompts in training that have a reference answer, with it."""
    table = read_table(root / "artifacts" / "prepared" / "prompts.parquet", PROMPTS)
    table = table[(table["split"] == "train") & (table["reference"].str.strip() != "")].head(REFERENCES)
    if len(table) < 2:
        raise DataError("prompts.parquet: an ensemble of judges is standardised on reference answers, and there are none")
    return table["prompt"].tolist(), table["reference"].tolist()
