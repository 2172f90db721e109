"""The report's plots as tables: CSV files that DVC draws and compares between runs (``dvc plots show``, ``dvc plots diff``)."""

from __future__ import annotations

import pandas as pd

from pipelines.evaluation.findings import SFT, Findings
from pipelines.evaluation.reward_quality import reliability


def draw(found: Findings) -> dict[str, pd.DataFrame]:
    """File name -> table. Every table is there in every run, maybe without rows: DVC knows its name."""
    metrics = found.metrics
    models = {SFT: metrics["sft"]} | metrics["policies"]
    frontier = [
        {"model": name, "kl": row["kl"], "kl_se": row["kl_se"], "gold": row["gold_mean"], "gold_se": row["gold_se"]}
        for name, row in models.items()
    ]
    wins = [
        {"model": name, "win_rate": row["win_rate"], "low": row["win_rate_ci"][0], "high": row["win_rate_ci"][1],
         "length_controlled": row["length_controlled_win_rate"], "rating": row["rating"]}
        for name, row in metrics["policies"].items()
    ]  # fmt: skip
    curves = [
        points.assign(series="best of n" if name == SFT else name, score=score, mean=points[score], se=points[f"{score}_se"])
        for name, points in found.curves.items()
        for score in ("gold", "reward")
    ]
    return {
        "frontier": pd.DataFrame(frontier, columns=["model", "kl", "kl_se", "gold", "gold_se"]),
        "over_optimisation": pd.concat(curves)[["series", "score", "step", "kl", "distance", "mean", "se"]],
        "reliability": reliability(found.scored_pairs),
        "win_rates": pd.DataFrame(wins, columns=["model", "win_rate", "low", "high", "length_controlled", "rating"]),
    }
