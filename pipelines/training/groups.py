"""Who belongs together, the pairs of each group, and how far the groups agree.

Paper: Chakraborty et al. 2024 (MaxMin-RLHF), section 4.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from pipelines.algorithms.groups import find_groups
from pipelines.errors import DataError
from pipelines.models.scoring import Answer, sides_of

SPLITS = ("train", "validation", "test")
DIGITS = 6


def annotators(pairs: pd.DataFrame) -> pd.Series:
    """Who compared: the annotator where one is named, else the group."""
    return pairs["annotator"].fillna(pairs["group"]) if "annotator" in pairs else pairs["group"]


def found_groups(pairs: pd.DataFrame, worth: dict[Answer, np.ndarray], clusters: int, seed: int) -> dict[str, str]:
    """The group of each annotator, ``group-1`` ..., by what they prefer in the training split (``algorithms.groups``).

    ``worth``: features [H] of each answer. Each feature's differences are scaled to a mean square of 1 / H, so that a typical
    difference has length 1. Raises DataError where there are fewer annotators than groups.
    """
    people = annotators(pairs).astype(str)
    names = list(dict.fromkeys(people))
    if len(names) < clusters:
        raise DataError(
            f"pairs.parquet (train): {len(names)} annotators (column annotator, else group) cannot make reward.clusters"
            f" {clusters} groups; lower it, or take groups: given"
        )
    chosen, rejected = (np.stack([worth[answer] for answer in side]) for side in sides_of(pairs))
    differences = (chosen - rejected).astype(np.float64)
    spread = np.sqrt(np.mean(differences**2, axis=0))
    scaled = differences / np.where(spread > 1e-12, spread, 1.0) / np.sqrt(differences.shape[1])
    found = find_groups(torch.from_numpy(scaled), [names.index(name) for name in people], clusters, seed)
    return {name: f"group-{number + 1}" for name, number in zip(names, found.members, strict=True)}


def parts(pairs: pd.DataFrame, belongs: pd.Series) -> dict[str, pd.DataFrame]:
    """The pairs of each group, by name in order. Raises DataError for a single group, or one without pairs in some split."""
    names = sorted(belongs.dropna().unique())
    if len(names) < 2:
        raise DataError(f"pairs.parquet: reward.groups needs two groups or more, there is {', '.join(names) or 'none'}")
    found = {name: pairs[belongs == name].reset_index(drop=True) for name in names}
    for name, part in found.items():
        for split in SPLITS:
            if not (part["split"] == split).any():
                raise DataError(
                    f"pairs.parquet: group {name} has 0 pairs in the split {split}, and a reward model of its own needs all"
                    " three; add pairs, raise prepare's fractions, or take groups: found with fewer clusters"
                )
    return found


def agreement(
    chosen: list[dict[str, float]], rejected: list[dict[str, float]], belongs: pd.Series, names: list[str]
) -> dict[str, dict[str, float]]:
    """How likely group u finds what group v has chosen the better answer: the mean of sigmoid(r_u(chosen) - r_u(rejected)) over
    the held-out pairs of v, by u and then by v.

    ``chosen`` and ``rejected``: each pair's answers' scores by group; ``belongs``: whose pair it is.
    """
    one, other = pd.DataFrame(chosen, index=belongs.index), pd.DataFrame(rejected, index=belongs.index)
    likely = {u: 1.0 / (1.0 + np.exp(other[u] - one[u])) for u in names}
    return {u: {v: round(float(likely[u][belongs == v].mean()), DIGITS) for v in names} for u in names}
