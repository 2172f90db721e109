"""What groups of people make of the same answers: pure functions of ratings, and a model's figures group by group.

Papers: Bradley and Terry 1952; Chakraborty et al. 2024 (MaxMin-RLHF), section 4. Axes: G groups, K answers.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pipelines.config import Evaluate
from pipelines.context import seed_for
from pipelines.evaluation.comparison import compare, sampled
from pipelines.evaluation.metrics import Floats

Answer = tuple[str, str, bool]
"""A prompt, an answer to it, and whether the answer ended by itself."""
DIGITS = 6
SHOWN = 3
"""Answers of a question whose preference tables are shown."""


def preference_tables(ratings_GK: ArrayLike) -> Floats:
    """P [G, K, K]: in group g answer i beats answer j with probability sigmoid(r_gi - r_gj) (Bradley and Terry)."""
    ratings = np.asarray(ratings_GK, dtype=np.float64)
    return 1.0 / (1.0 + np.exp(ratings[:, None, :] - ratings[:, :, None]))


def maxmin_choice(ratings_GK: ArrayLike) -> int:
    """The answer whose smallest rating over the groups is largest (the egalitarian rule); the first of several."""
    return int(np.asarray(ratings_GK, dtype=np.float64).min(axis=0).argmax())


def by_group(
    ours: pd.DataFrame, theirs: pd.DataFrame, scores: dict[str, dict[Answer, float]], evaluate: Evaluate, seed: int
) -> dict[str, dict[str, Any]]:
    """A model's figures by every group's own reward model: ``reward_mean``, ``win_rate`` against theirs, its 95 % interval.

    ``scores``: of each group, by answer. Only equal scores tie. The intervals resample prompts.
    """
    found = {}
    for name, worth in scores.items():
        tables = [sampled(table) for table in (ours, theirs)]
        own, other = (table.assign(reward=[worth[answer] for answer in answers_of(table)]) for table in tables)
        result = compare(own, other, "reward", 0.0, evaluate.bootstrap, seed_for(seed, "bootstrap"))
        found[name] = {
            "reward_mean": round(float(own["reward"].mean()), DIGITS),
            "win_rate": round(result.win_rate, DIGITS),
            "win_rate_ci": [round(end, DIGITS) for end in result.interval],
        }
    return found


def answers_of(samples: pd.DataFrame) -> list[Answer]:
    """The answers of a samples table, row by row."""
    return list(zip(samples["prompt"], samples["text"], samples["ended"].astype(bool), strict=True))


def worst_group(groups: dict[str, dict[str, Any]]) -> str:
    """The group with the smallest win rate against SFT."""
    return min(groups, key=lambda name: groups[name]["win_rate"])


def questions(scores: pd.DataFrame, count: int, prompts: list[str]) -> list[dict[str, Any]]:
    """The first ``count`` of ``prompts`` with the preference table of every group over (at most three) answers to them.

    ``scores`` is a GROUP_SCORES table. Of each: prompt, answers, the compared places, a row of probabilities a group, and the
    place of MaxMin's choice.
    """
    found = []
    for prompt in prompts[:count]:
        own = scores[scores["prompt"] == prompt].drop_duplicates(["answer", "group"])
        ratings = own.pivot(index="group", columns="answer", values="score")[list(dict.fromkeys(own["answer"]))[:SHOWN]]
        pairs = list(combinations(range(ratings.shape[1]), 2))
        tables = preference_tables(ratings)
        rows = {str(name): [float(table[i, j]) for i, j in pairs] for name, table in zip(ratings.index, tables, strict=True)}
        found.append(
            {"prompt": prompt, "answers": list(ratings.columns), "pairs": pairs, "rows": rows, "choice": maxmin_choice(ratings)}
        )
    return found
