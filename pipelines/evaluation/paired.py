"""What paired outcomes say beyond their mean: the sign test, length control, Bradley-Terry ratings. Pure functions.

Legend of shapes: N comparisons, P prompts (clusters of comparisons), M models, R resamples. An outcome is 1 (won), 0 (lost)
or 0.5 (a tie).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, expit

from pipelines.evaluation.metrics import Floats, cluster_sums

STEPS, CONVERGED = 60, 1e-10
"""Newton's method is at its end after some ten steps; separable outcomes take more."""
RIDGE = 1e-3
"""Keeps the weight of length finite where every longer answer wins; of no weight beside real comparisons."""
ELO = 400.0 / np.log(10.0)
"""Elo points a nat of log odds: 400 points are odds of 10 to 1."""


@dataclass(frozen=True)
class Signs:
    """Prompts on which ours wins more often than it loses, the opposite, and the two-sided p-value of that split."""

    won: int
    lost: int
    p: float


def sign_test(outcomes: ArrayLike, clusters: Sequence[Hashable]) -> Signs:
    """The exact sign test over prompts (a prompt's answers are alike, so each counts once); balanced prompts are left out.

    p is the two-sided binomial probability under 1/2 (Conover 1999, section 3.4); 1 where every prompt is balanced.
    """
    sums, counts = cluster_sums(outcomes, clusters)
    balance = np.round(sums / counts - 0.5, 9)
    won, lost = int((balance > 0).sum()), int((balance < 0).sum())
    return Signs(won, lost, min(1.0, 2.0 * float(bdtr(min(won, lost), won + lost, 0.5))))


def length_controlled(outcomes: ArrayLike, gaps: ArrayLike, clusters: Sequence[Hashable]) -> tuple[float, float, float]:
    """The win rate that equal lengths would give, and the ends of its 95 % interval.

    logit P(ours wins) = a + b tanh(gap / sd(gap)) by maximum likelihood, a tie half a win; the rate is sigmoid(a) (Dubois et
    al. 2024, "Length-Controlled AlpacaEval", equation 2, without the term of the instruction's difficulty, which takes many
    models). ``gaps`` [N] are our length less theirs. The interval is that of a ± 1.96 standard errors, robust to clusters
    (Cameron and Miller 2015, equation 11). Where all outcomes are wins (or losses) length explains nothing: the rate is theirs.
    """
    y = np.asarray(outcomes, dtype=np.float64)
    gap = np.asarray(gaps, dtype=np.float64)
    if y.min() == y.max() and y[0] in (0.0, 1.0):
        return float(y[0]), float(y[0]), float(y[0])
    spread = gap.std()
    x = np.stack([np.ones_like(y), np.tanh(gap / spread) if spread else np.zeros_like(gap)], axis=1)
    ridge = np.diag([0.0, RIDGE])
    theta = np.zeros(2)
    for _ in range(STEPS):
        p = expit(x @ theta)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge
        theta += np.clip(np.linalg.solve(hessian, x.T @ (y - p) - ridge @ theta), -2.0, 2.0)
    p = expit(x @ theta)
    bread = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x + ridge)
    scores = np.stack([cluster_sums(column, clusters)[0] for column in (x * (y - p)[:, None]).T], axis=1)
    many = len(scores)
    if many < 2:
        return float(expit(theta[0])), 0.0, 1.0
    error = float(np.sqrt((bread @ (scores.T @ scores * many / (many - 1)) @ bread)[0, 0]))
    low, high = expit(theta[0] - 1.96 * error), expit(theta[0] + 1.96 * error)
    return float(expit(theta[0])), float(low), float(high)


def bradley_terry(wins: ArrayLike, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Ratings [M] in Elo points, the first model at 0, and their 95 % intervals [M, 2] under resampling of prompts.

    ``wins`` [P, M, M] holds on each prompt the comparisons that the row's model won against the column's, a tie half for
    each. P(i beats j) = sigmoid((r_i - r_j) / ELO) by maximum likelihood (Bradley and Terry 1952; Hunter 2004). Every pair of
    models that was compared is given half a win each way (Haldane 1956), so that a model that never loses has a finite rating.
    """
    wins = np.asarray(wins, dtype=np.float64)
    prompts, models, _ = wins.shape
    drawn = np.random.default_rng(seed).integers(0, prompts, size=(resamples, prompts))
    weights = np.apply_along_axis(np.bincount, 1, drawn, minlength=prompts).astype(np.float64)
    many = (weights @ wins.reshape(prompts, -1)).reshape(resamples, models, models)
    ratings = _ratings(wins.sum(0)[None])[0]
    low, high = np.quantile(_ratings(many), [0.025, 0.975], axis=0, method="inverted_cdf")
    return ratings, np.stack([low, high], axis=1)


def _ratings(wins: Floats) -> Floats:
    """Ratings [R, M] in Elo points for matrices of wins [R, M, M], by Newton's method; the first model is the origin."""
    there = (wins.sum(0) + wins.sum(0).T > 0) & ~np.eye(wins.shape[1], dtype=bool)
    won = wins * there + 0.5 * there
    total = won + won.transpose(0, 2, 1)
    models, free = wins.shape[1], slice(1, None)
    r = np.zeros((len(wins), models))
    for _ in range(STEPS if models > 1 else 0):
        p = expit(r[:, :, None] - r[:, None, :])
        gradient = (won - total * p).sum(2)[:, free]
        weight = total * p * (1 - p)
        hessian = weight.sum(2)[:, :, None] * np.eye(models) - weight
        step = np.linalg.solve(hessian[:, free, free], gradient[:, :, None])[:, :, 0]
        r[:, free] += np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < CONVERGED:
            break
    return ELO * r
