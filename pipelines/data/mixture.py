"""Instruction mixtures: which tasks and templates are used, and how many rows of each task are drawn.

Papers: Wei et al. 2021 (FLAN), section 2.1: examples-proportional mixing with a cap; Raffel et al. 2020 (T5), section 3.5.2:
temperature-scaled mixing.
"""

from __future__ import annotations

import math

import pandas as pd

from pipelines.config.data import Mixture
from pipelines.data.templates import in_seed_order


def selected(rows: pd.DataFrame, mixture: Mixture, seed: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows of the tasks and templates that are used, and how many others there were by rule.

    Rows of a held-out template stay in the test split only, so that answers to unseen phrasings can be told apart.
    """
    dropped: dict[str, int] = {}
    if mixture.tasks:
        used = in_seed_order(rows["task"].unique(), seed, "tasks")[: mixture.tasks]
        rows = _kept(rows, rows["task"].isin(used), "task_not_used", dropped)
    held_out = rows["template"].isin(mixture.held_out_templates)
    rows = _kept(rows, ~held_out | (rows["split"] == "test"), "held_out_template", dropped)
    if mixture.templates:
        names = rows.groupby("task")["template"].unique()
        free = {task: [name for name in own if name not in mixture.held_out_templates] for task, own in names.items()}
        used_of = {task: in_seed_order(own, seed, str(task))[: mixture.templates] for task, own in free.items()}
        keep = [
            template in used_of[task] or template in mixture.held_out_templates
            for task, template in zip(rows["task"], rows["template"], strict=True)
        ]
        rows = _kept(rows, pd.Series(keep, index=rows.index, dtype=bool), "template_not_used", dropped)
    return rows.reset_index(drop=True), dropped


def rates(sizes: dict[str, int], weights: dict[str, float], mixture: Mixture) -> dict[str, float]:
    """The share of every task in the draw, summing to 1. ``sizes`` are its rows, ``weights`` its source's."""
    capped = {task: float(min(size, mixture.size_cap)) for task, size in sizes.items()}
    raw = {
        "all": {task: float(size) for task, size in sizes.items()},
        "weights": {task: weights.get(task, 1.0) for task in sizes},
        "size": capped,
        "temperature": {task: size ** (1.0 / mixture.temperature) for task, size in capped.items()},
    }[mixture.sampling]
    total = math.fsum(raw.values())
    return {task: value / total for task, value in raw.items()}


def quotas(shares: dict[str, float], sizes: dict[str, int], count: int) -> dict[str, int]:
    """Whole numbers of rows that follow the shares, none above a task's rows: what one lacks, the others give.

    Largest remainders; equal ones in the order of the names.
    """
    found = dict.fromkeys(shares, 0)
    while True:
        left = min(count, sum(sizes.values())) - sum(found.values())
        open_ = {task: share for task, share in shares.items() if found[task] < sizes[task]}
        if not left or not open_:
            return found
        total = math.fsum(open_.values())
        exact = {task: left * share / total for task, share in open_.items()}
        given = {task: min(math.floor(part), sizes[task] - found[task]) for task, part in exact.items()}
        if not any(given.values()):
            order = sorted(open_, key=lambda task: (math.floor(exact[task]) - exact[task], task))
            given = dict.fromkeys(order[:left], 1)
        for task, part in given.items():
            found[task] += part


def draw(rows: pd.DataFrame, count: int, weights: dict[str, float], mixture: Mixture) -> pd.DataFrame:
    """The first ``count`` rows; where the mixture says so, the first of every task by its quota, in the rows' order."""
    if mixture.sampling == "all" or "task" not in rows:
        return rows.head(count)
    tasks = rows["task"].astype(str)
    sizes = {str(task): int(size) for task, size in tasks.value_counts().sort_index().items()}
    quota = quotas(rates(sizes, weights, mixture), sizes, count)
    return rows[rows.groupby(tasks).cumcount() < tasks.map(quota)]


def _kept(rows: pd.DataFrame, keep: pd.Series, rule: str, dropped: dict[str, int]) -> pd.DataFrame:
    if not keep.all():
        dropped[rule] = int((~keep).sum())
    return rows[keep]
