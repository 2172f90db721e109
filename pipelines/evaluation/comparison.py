"""Which of two models answers better: the same prompts, answer A with A, B with B, ..., by any score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from pipelines.errors import DataError
from pipelines.evaluation.metrics import Floats, bootstrap_interval
from pipelines.evaluation.paired import Signs, bradley_terry, length_controlled, sign_test

GREEDY = "greedy"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Better = Callable[[list[str], list[str], list[str]], Sequence[float]]
"""Of prompts, our answers and theirs: by how much each of ours is better."""


@dataclass(frozen=True)
class Paired:
    """Comparisons one by one: outcome [N] (1 won, 0 lost, 0.5 tied), the prompt of each, our tokens less theirs [N]."""

    outcomes: Floats
    prompts: list[str]
    gaps: Floats


@dataclass(frozen=True)
class Comparison:
    """Shares of all comparisons in which ours wins, loses or ties; ``win_rate`` = win + tie / 2, with its 95 % interval.

    ``length_controlled`` is the win rate that answers of equal length would give, ``signs`` counts prompts (see ``paired``).
    """

    win: float
    lose: float
    tie: float
    win_rate: float
    interval: tuple[float, float]
    comparisons: int
    length_controlled: float
    length_controlled_interval: tuple[float, float]
    signs: Signs


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


def paired(ours: pd.DataFrame, theirs: pd.DataFrame, score: str, margin: float) -> Paired:
    """The sampled answers of two samples tables, A with A, B with B, compared by the column ``score``.

    Raises DataError when the two do not hold the same answers to the same prompts.
    """
    left, right = _aligned([ours, theirs])
    return _paired(left, right, outcomes(left[score].to_numpy(), right[score].to_numpy(), margin))


def paired_by(ours: pd.DataFrame, theirs: pd.DataFrame, better: Better, margin: float) -> Paired:
    """The same by a judge who is shown the answers now, A with A, B with B."""
    left, right = _aligned([ours, theirs])
    differences = np.asarray(better(left["prompt"].tolist(), left["text"].tolist(), right["text"].tolist()), dtype=np.float64)
    return _paired(left, right, outcomes(differences, np.zeros_like(differences), margin))


def _paired(left: pd.DataFrame, right: pd.DataFrame, result: Floats) -> Paired:
    return Paired(result, left["prompt_id"].tolist(), (left["tokens"] - right["tokens"]).to_numpy(dtype=np.float64))


def summed(pairs: Paired, resamples: int, seed: int) -> Comparison:
    """The figures of a comparison; intervals resample prompts, not answers."""
    result, prompts = pairs.outcomes, pairs.prompts
    controlled, low, high = length_controlled(result, pairs.gaps, prompts)
    return Comparison(
        win=float(np.mean(result == 1.0)),
        lose=float(np.mean(result == 0.0)),
        tie=float(np.mean(result == 0.5)),
        win_rate=float(np.mean(result)),
        interval=bootstrap_interval(result, prompts, resamples, seed),
        comparisons=len(result),
        length_controlled=controlled,
        length_controlled_interval=(low, high),
        signs=sign_test(result, prompts),
    )


def compare(ours: pd.DataFrame, theirs: pd.DataFrame, score: str, margin: float, resamples: int, seed: int) -> Comparison:
    """Compare two samples tables by the column ``score``: ``paired``, then ``summed``."""
    return summed(paired(ours, theirs, score, margin), resamples, seed)


def ratings(
    tables: Mapping[str, pd.DataFrame], score: str, margin: float, resamples: int, seed: int
) -> dict[str, tuple[float, tuple[float, float]]]:
    """Bradley-Terry ratings of all models in Elo points with 95 % intervals, the first one's at 0; every pair is compared."""
    aligned = dict(zip(tables, _aligned(list(tables.values())), strict=True))
    first = next(iter(aligned.values()))
    prompts, rows = np.unique(first["prompt_id"].to_numpy(), return_inverse=True)
    wins = np.zeros((len(prompts), len(aligned), len(aligned)))
    for i, j in combinations(range(len(aligned)), 2):
        one, other = (list(aligned.values())[model][score].to_numpy() for model in (i, j))
        result = outcomes(one, other, margin)
        wins[:, i, j] = np.bincount(rows, weights=result)
        wins[:, j, i] = np.bincount(rows, weights=1.0 - result)
    points, intervals = bradley_terry(wins, resamples, seed)
    return {name: (float(points[i]), (float(intervals[i, 0]), float(intervals[i, 1]))) for i, name in enumerate(aligned)}


def _aligned(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The sampled answers of every table in one order. Raises DataError where they are not answers to the same prompts."""
    keys = ["prompt_id", "answer"]
    ordered = [sampled(table).sort_values(keys, ignore_index=True) for table in tables]
    if any(table[keys].values.tolist() != ordered[0][keys].values.tolist() for table in ordered[1:]):
        raise DataError("samples.parquet: the two models answered different prompts; evaluate both again with equal parameters")
    return ordered
