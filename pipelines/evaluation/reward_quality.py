"""What the reward model's scores are worth, from its scores of the held-out pairs. Pure functions of a SCORED_PAIRS table.

P(chosen is better) = sigmoid(r(chosen) - r(rejected)) (Bradley and Terry 1952): its accuracy, and whether it means what it says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from pipelines.evaluation.metrics import Floats, bootstrap_interval, cluster_mean, rank_correlation

BINS = 10
DIGITS = 6
ALIKE = 1 / 3
"""Answers are alike in length where the difference is at most this share of the longer one."""
LENGTHS = ("shorter", "alike", "longer")
"""The chosen answer against the rejected one."""


def quality(pairs: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    """The figures for the report's metrics; {} without pairs.

    ``calibration_error`` is the expected calibration error over ten bins of confidence (Guo et al. 2017, equation 3).
    ``by_source``, ``by_group`` and ``by_length`` (the chosen answer shorter, alike, longer) hold pairs, accuracy with its
    95 % interval, and what preferring the longer answer would reach. ``people``: agreement with people's pairs, and the rank
    correlation with their grades where they gave any. ``filler``: what filler behind an answer does to its score, in
    standard deviations of all scores, and the share of answers that it makes better.
    """
    if pairs.empty:
        return {}
    found = _group(pairs, resamples, seed)
    bins = reliability(pairs)
    people = pairs[pairs["judge"] == "people"]
    error = float((bins["pairs"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / bins["pairs"].sum())
    return {
        "pair_accuracy_ci": found["accuracy_ci"],
        "calibration_error": round(error, DIGITS),
        "by_source": _groups(pairs, pairs["source"], resamples, seed),
        "by_group": _groups(pairs, pairs["group"], resamples, seed),
        "by_length": _groups(pairs, pd.Series(_lengths(pairs), index=pairs.index), resamples, seed),
        "filler": _filler(pairs),
    } | ({"people": _people(people, resamples, seed)} if len(people) else {})


def reliability(pairs: pd.DataFrame) -> pd.DataFrame:
    """How often the preferred answer is the chosen one, by the model's confidence in it: a row a bin that holds pairs.

    Columns: confidence (mean of sigmoid(|margin|)), accuracy (a tie counts half), pairs. Bins are of equal width in [0.5, 1].
    """
    margins = _margins(pairs)
    confidence, correct = expit(np.abs(margins)), _above_zero(margins)
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    rows = [
        {"confidence": confidence[place == i].mean(), "accuracy": correct[place == i].mean(), "pairs": int((place == i).sum())}
        for i in range(BINS)
        if (place == i).any()
    ]
    return pd.DataFrame(rows, columns=["confidence", "accuracy", "pairs"]).round(DIGITS)


def _groups(pairs: pd.DataFrame, names: pd.Series, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    return {str(name): _group(pairs[names == name], resamples, seed) for name in sorted(names.unique())}


def _group(pairs: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    correct = _above_zero(_margins(pairs))
    interval = bootstrap_interval(correct, pairs["prompt_id"].tolist(), resamples, seed)
    longer = _above_zero((pairs["chosen_tokens"] - pairs["rejected_tokens"]).to_numpy(dtype=np.float64))
    return {
        "pairs": len(pairs),
        "accuracy": round(float(correct.mean()), DIGITS),
        "accuracy_ci": [round(end, DIGITS) for end in interval],
        "longer_wins": round(float(longer.mean()), DIGITS),
    }


def _people(pairs: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    found = _group(pairs, resamples, seed)
    graded = pairs[pairs["margin"].notna()]
    correlation = rank_correlation(_margins(graded), graded["margin"]) if len(graded) > 1 else float("nan")
    return {
        "pairs": found["pairs"],
        "agreement": found["accuracy"],
        "agreement_ci": found["accuracy_ci"],
        "graded": len(graded),
        "grade_correlation": round(correlation, DIGITS) if correlation == correlation else None,
    }


def _filler(pairs: pd.DataFrame) -> dict[str, float | None]:
    """A pair's chosen answer may stand in several pairs; it counts once."""
    once = pairs.drop_duplicates(["prompt_id", "chosen_reward", "filler_reward"])
    change = (once["filler_reward"] - once["chosen_reward"]).to_numpy()
    spread = float(pd.concat([pairs["chosen_reward"], pairs["rejected_reward"]]).std(ddof=0))
    mean, error = cluster_mean(change, once["prompt_id"].tolist())
    shown = [round(value / spread, DIGITS) if spread and value == value else None for value in (mean, error)]
    return {"change_sd": shown[0], "change_sd_se": shown[1], "rises": round(float(np.mean(change > 0)), DIGITS)}


def _lengths(pairs: pd.DataFrame) -> list[str]:
    chosen, rejected = pairs["chosen_tokens"].to_numpy(), pairs["rejected_tokens"].to_numpy()
    gap = (chosen - rejected) / np.maximum(chosen, rejected)
    return [LENGTHS[0] if share < -ALIKE else LENGTHS[2] if share > ALIKE else LENGTHS[1] for share in gap]


def _margins(pairs: pd.DataFrame) -> Floats:
    return (pairs["chosen_reward"] - pairs["rejected_reward"]).to_numpy(dtype=np.float64)


def _above_zero(values: Floats) -> Floats:
    return (values > 0) + 0.5 * (values == 0)
