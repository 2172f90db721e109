"""Estimators of KL(pi || pi_ref) from samples of pi, and the controller of its price.

Papers: Schulman 2020, "Approximating KL divergence" (k1, k2, k3); Ziegler et al. 2019, section 2.2 (adaptive beta).
Axes: B answers, T tokens.
"""

from __future__ import annotations

import torch

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to +-20 before exp: e^20 = 4.9e8 is still finite in float32 sums."""


def log_ratio(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """log pi - log pi_ref, clamped to +-20; any shape."""
    return (logprobs - reference).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def k1(log_ratio_BT: torch.Tensor) -> torch.Tensor:
    """log pi - log pi_ref: unbiased, may be negative. The estimator that is subtracted from the reward."""
    return log_ratio_BT


def k2(log_ratio_BT: torch.Tensor) -> torch.Tensor:
    """(log pi - log pi_ref)^2 / 2: biased, low variance, never negative."""
    return 0.5 * log_ratio_BT.square()


def k3(log_ratio_BT: torch.Tensor) -> torch.Tensor:
    """exp(-k1) - 1 + k1: unbiased and never negative."""
    return torch.expm1(-log_ratio_BT) + log_ratio_BT


def adapted_beta(beta: float, kl: float, target: float, samples: int, horizon: int) -> float:
    """The price of KL for the next step (Ziegler et al., section 2.2): raised where ``kl`` is above ``target``.

    ``kl`` and ``target`` in nats per sequence; ``samples`` answers were seen of ``horizon``.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return beta * (1.0 + error * samples / horizon)
