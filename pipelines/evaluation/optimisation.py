"""Over-optimisation: what the proxy (the reward model) and gold (the judge) gain as a policy moves away from SFT.

Paper: Gao, Schulman and Hilton 2023, "Scaling Laws for Reward Model Overoptimization". d = sqrt(KL), in sqrt(nats); gains are
relative to SFT's answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pipelines.evaluation.comparison import sampled
from pipelines.evaluation.metrics import Floats, cluster_mean, k1

COLUMNS = ["step", "kl", "distance", "reward", "reward_se", "gold", "gold_se", "answers"]
"""``step``: optimiser steps of a policy, n of best-of-n; 0 (1) is the SFT model itself."""

DIGITS = 6
FEWEST = 3
"""Points away from SFT that a fit of two parameters needs."""

Form = Literal["best_of", "policy"]


@dataclass(frozen=True)
class Fit:
    """R(d) = d (alpha - beta d) for best-of-n, d (alpha - beta log d) for a policy (equation 1), and its share of variance.

    ``peak`` is the distance at which the fit is highest, None where it has no maximum away from 0.
    """

    form: Form
    alpha: float
    beta: float
    r2: float
    peak: float | None

    def gain(self, distance: ArrayLike) -> Floats:
        """The fitted gain at distances above 0."""
        return _features(self.form, distance) @ np.array([self.alpha, self.beta])


def best_of_kl(n: ArrayLike) -> Floats:
    """KL(best-of-n || SFT) = log n - (n - 1) / n, exact for scores without ties (Stiennon et al. 2020, appendix G.3)."""
    n = np.asarray(n, dtype=np.float64)
    return np.log(n) - (n - 1.0) / n


def best_of(samples: pd.DataFrame) -> pd.DataFrame:
    """What the best of n answers by the reward model scores, by reward model and judge, for n = 1, 2, 3, 4, 6, 8, 12, ...

    Of a prompt's m answers in the order of their rewards, the i-th is the best of n drawn without replacement with chance
    C(i - 1, n - 1) / C(m, n), so all m answers are used without bias (Nakano et al. 2021, appendix I). Columns: COLUMNS.
    """
    drawn = sampled(samples).sort_values(["prompt_id", "reward", "answer"])
    groups = list(drawn.groupby("prompt_id", sort=True))
    least = min(len(group) for _, group in groups)
    rows = []
    for n in [n for n in _counts() if n <= least]:
        means: dict[str, list[float]] = {"reward": [], "gold": []}
        for _, group in groups:
            m = len(group)
            weights = np.array([math.comb(i - 1, n - 1) / math.comb(m, n) for i in range(1, m + 1)])
            for score, found in means.items():
                found.append(float(weights @ group[score].to_numpy(dtype=np.float64)))
        rows.append({"step": n, "kl": float(best_of_kl(n))} | _scores(means, range(len(groups))) | {"answers": len(groups)})
    return _table(rows)


def curve(points: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """Scores and KL to SFT of the samples tables of one policy by step, 0 being the SFT model's. Columns: COLUMNS."""
    rows = []
    for step, samples in sorted(points.items()):
        drawn = sampled(samples)
        prompts = drawn["prompt_id"].tolist()
        kl, _ = cluster_mean(k1(drawn["logprob"], drawn["logprob_sft"]), prompts)
        scores = {score: drawn[score].tolist() for score in ("reward", "gold")}
        rows.append({"step": step, "kl": kl} | _scores(scores, prompts) | {"answers": len(drawn)})
    return _table(rows)


def fit(form: Form, distance: ArrayLike, gain: ArrayLike) -> Fit | None:
    """Least squares of one of the two forms to gains [N] at distances [N]; None with fewer than three points above 0."""
    d, r = np.asarray(distance, dtype=np.float64), np.asarray(gain, dtype=np.float64)
    d, r = d[d > 0], r[d > 0]
    if len(d) < FEWEST:
        return None
    x = _features(form, d)
    (alpha, beta), *_ = np.linalg.lstsq(x, r, rcond=None)
    total = float(((r - r.mean()) ** 2).sum())
    r2 = 1.0 - float(((r - x @ np.array([alpha, beta])) ** 2).sum()) / total if total > 0 else float("nan")
    return Fit(form, float(alpha), float(beta), r2, _peak(form, float(alpha), float(beta)))


def summary(form: Form, points: pd.DataFrame) -> dict[str, Any]:
    """The fit of gold, and where gold was highest among the points, for the report's metrics."""
    start = points.iloc[0]
    best = points.iloc[int(points["gold"].to_numpy().argmax())]
    found: dict[str, Any] = {
        "gold_peak_step": int(best["step"]),
        "gold_peak_kl": round(float(best["kl"]), DIGITS),
        "gold_peak": round(float(best["gold"]), DIGITS),
        "gold_last": round(float(points.iloc[-1]["gold"]), DIGITS),
    }
    fitted = fit(form, points["distance"], points["gold"] - start["gold"])
    if fitted is not None:
        peak_kl = None if fitted.peak is None else round(fitted.peak**2, DIGITS)
        r2 = round(fitted.r2, DIGITS) if fitted.r2 == fitted.r2 else None
        found |= {"alpha": round(fitted.alpha, DIGITS), "beta": round(fitted.beta, DIGITS), "r2": r2, "fitted_peak_kl": peak_kl}
    return found


def _features(form: Form, distance: ArrayLike) -> Floats:
    """What alpha and beta are multiplied by: [N, 2]."""
    d = np.asarray(distance, dtype=np.float64)
    return np.stack([d, -d * d if form == "best_of" else -d * np.log(d)], axis=-1)


def _peak(form: Form, alpha: float, beta: float) -> float | None:
    """Where the derivative is 0: alpha / (2 beta), or exp(alpha / beta - 1)."""
    if beta <= 0 or (form == "best_of" and alpha <= 0) or alpha / beta > 50:
        return None
    return alpha / (2 * beta) if form == "best_of" else math.exp(alpha / beta - 1)


def _counts() -> list[int]:
    return [1, *(n for k in range(1, 12) for n in (2**k, 3 * 2 ** (k - 1)))]


def _scores(values: dict[str, list[float]], prompts: Any) -> dict[str, float]:
    found = {}
    for score, own in values.items():
        found[score], found[f"{score}_se"] = cluster_mean(own, list(prompts))
    return found


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    table["distance"] = np.sqrt(table["kl"].clip(lower=0.0))
    return table[COLUMNS].round(DIGITS)
