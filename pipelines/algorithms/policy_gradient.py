"""The losses of policy-gradient methods, token by token; who calls them sums and divides by the global token count.

Papers: Schulman et al. 2017, "Proximal policy optimization algorithms" (eq. 7); Huang et al. 2024, "The N+ implementation
details of RLHF with PPO" (value clipping); Yao et al. 2025, "On the rollout-training mismatch in modern RL systems", after
Espeholt et al. 2018, "IMPALA" (section 4.1: truncated importance weights). Axes: N tokens, B answers, T tokens of an answer.
"""

from __future__ import annotations

import torch

from pipelines.algorithms.advantages import Reduce, masked_moments
from pipelines.algorithms.kl import log_ratio

TRUNCATION = 2.0
"""Importance weights end here (Yao et al. 2025)."""


def clipped_policy_loss(
    logprobs_N: torch.Tensor, old_N: torch.Tensor, advantages_N: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) and the ratio rho, both [N] (eq. 7).

    ``old_N`` are the log-probabilities of the policy that sampled; ``cliprange`` eps = 0 stands for no clipping.
    """
    ratio_N = log_ratio(logprobs_N, old_N).exp()
    if cliprange == 0.0:
        return -ratio_N * advantages_N, ratio_N
    clipped_N = ratio_N.clamp(1.0 - cliprange, 1.0 + cliprange)
    return torch.maximum(-ratio_N * advantages_N, -clipped_N * advantages_N), ratio_N


def truncated_weights(logprobs: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """min(pi / mu, C): what a token's loss counts when it was drawn from mu (log-probabilities ``sampled``) and not from pi.

    Any shape; no gradient. C bounds the variance and leaves a bias where pi / mu is above it (Yao et al.; IMPALA's rho-bar).
    """
    return log_ratio(logprobs, sampled).exp().clamp(max=TRUNCATION).detach()


def clipped_value_loss(
    values_N: torch.Tensor, old_N: torch.Tensor, returns_N: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """0.5 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2), and where the clipped term was the larger, both [N].

    ``cliprange`` eps = 0 stands for no clipping.
    """
    plain_N = (values_N - returns_N).square()
    if cliprange == 0.0:
        return 0.5 * plain_N, torch.zeros_like(plain_N)
    kept_N = torch.minimum(torch.maximum(values_N, old_N - cliprange), old_N + cliprange)
    clipped_N = (kept_N - returns_N).square()
    return 0.5 * torch.maximum(plain_N, clipped_N), (clipped_N > plain_N).float()


def explained_variance(values_BT: torch.Tensor, returns_BT: torch.Tensor, mask_BT: torch.Tensor, reduce: Reduce) -> float:
    """1 - Var(R - V) / Var(R): 1 = perfect, 0 = as good as the mean, below 0 = worse; 0 where R is constant."""
    _, variance = masked_moments(returns_BT, mask_BT, reduce)
    _, unexplained = masked_moments(returns_BT - values_BT, mask_BT, reduce)
    return 1.0 - unexplained / variance if variance > 1e-12 else 0.0
