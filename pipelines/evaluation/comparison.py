"""Which of two models answers better: the same prompts, answer A with A, B with B, ..., by any score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipelines.errors import DataError
from pipelines.evaluation.metrics import Floats, bootstrap_interval

GREEDY = "greedy"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Comparison:
    """Shares of all comparisons in which ours wins, loses or ties; ``win_rate`` = win + tie / 2, with its 95 % interval."""

    win: float
    lose: float
    tie: float
    win_rate: float
    interval: tuple[float, float]
    comparisons: int


def answer_letters(count: int) -> list[str]:
    """The names of ``count`` sampled answers to a prompt: A, B, C, ..., Z, A1, B1, ..."""
    return [LETTERS[i % 26] + (str(i // 26) if i >= 26 else "") for i in range(count)]


def sampled(samples: pd.DataFrame) -> pd.DataFrame:
    """The sampled answers of a samples table, without the greedy ones."""
    return samples[samples["answer"] != GREEDY].reset_index(drop=True)


def outcomes(ours: Floats, theirs: Floats, margin: float) -> Floats:
    """Per comparison [N] 1 = ours is better by more than ``margin``, 0 = worse by more than it, 0.5 = tie.

    Differences are rounded to nine decimals, so that a difference equal to the margin is a tie in floating point too.
    """
    difference = np.round(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64), 9)
    return np.where(difference > margin, 1.0, np.where(difference < -margin, 0.0, 0.5))


def compare(ours: pd.DataFrame, theirs: pd.DataFrame, score: str, margin: float, resamples: int, seed: int) -> Comparison:
    """Compare two samples tables by the column ``score``; the interval resamples prompts, not answers.

    Raises DataError when the two do not hold the same answers to the same prompts.
    """
    keys = ["prompt_id", "answer"]
    left, right = sampled(ours).sort_values(keys), sampled(theirs).sort_values(keys)
    if left[keys].values.tolist() != right[keys].values.tolist():
        raise DataError("samples.parquet: the two models answered different prompts; evaluate both again with equal parameters")
    result = outcomes(left[score].to_numpy(), right[score].to_numpy(), margin)
    interval = bootstrap_interval(result, left["prompt_id"].tolist(), resamples, seed)
    return Comparison(
        win=float(np.mean(result == 1.0)),
        lose=float(np.mean(result == 0.0)),
        tie=float(np.mean(result == 0.5)),
        win_rate=float(np.mean(result)),
        interval=interval,
        comparisons=len(result),
    )
