"""How much better an action was than expected: GAE, leave-one-out, group and batch baselines, whitening.

Papers: Schulman et al. 2016, "High-dimensional continuous control using GAE" (eq. 11, 16); Ahmadian et al. 2024, "Back to
basics" (RLOO, eq. 8); Shao et al. 2024, "DeepSeekMath" (group advantage, section 4.1.2); Williams 1992 (REINFORCE).
Axes: B answers, T tokens of an answer (padded on the right, mask 1 on its tokens), G answers of one prompt (neighbours).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over all workers."""


def token_rewards(scores_B: torch.Tensor, log_ratios_BT: torch.Tensor, mask_BT: torch.Tensor, beta: float) -> torch.Tensor:
    """Rewards [B, T]: -beta * k1 at every token, and the answer's score on top at its last token, which is EOS if it ended.

    Ziegler et al. 2019, eq. 2, token by token. The score never lands on padding.
    """
    rewards_BT = -beta * log_ratios_BT * mask_BT
    last_B = mask_BT.long().sum(1) - 1
    rewards_BT[torch.arange(len(last_B), device=rewards_BT.device), last_B] += scores_B
    return rewards_BT


def gae(
    rewards_BT: torch.Tensor, values_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns, both [B, T] (eq. 16): delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}.

    V is 0 past an answer's end. Returns are A + V, the target of the value function.
    """
    values_BT = values_BT * mask_BT
    advantages_BT = torch.zeros_like(rewards_BT)
    following_B = torch.zeros_like(rewards_BT[:, 0])
    next_value_B = torch.zeros_like(following_B)
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        following_B = (delta_B + gamma * lam * following_B) * mask_BT[:, t]
        next_value_B = values_BT[:, t]
        advantages_BT[:, t] = following_B
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def rloo(totals_B: torch.Tensor, group: int) -> torch.Tensor:
    """Total reward minus the mean of the prompt's other answers, [B] (RLOO, eq. 8); ``group`` neighbours share a prompt."""
    totals_PG = totals_B.view(-1, group)
    others_PG = (totals_PG.sum(1, keepdim=True) - totals_PG) / (group - 1)
    return (totals_PG - others_PG).flatten()


def group_normalised(totals_B: torch.Tensor, group: int, eps: float = 1e-4) -> torch.Tensor:
    """(total - mean) / (standard deviation + eps) over a prompt's answers, [B] (GRPO): not the KL objective's optimum."""
    totals_PG = totals_B.view(-1, group)
    centred_PG = totals_PG - totals_PG.mean(1, keepdim=True)
    return (centred_PG / (totals_PG.std(1, keepdim=True) + eps)).flatten()


def batch_baseline(totals_B: torch.Tensor, reduce: Reduce) -> torch.Tensor:
    """Total reward minus the mean of all other answers of the step on all workers, [B]: REINFORCE with an unbiased baseline."""
    sums = reduce(torch.stack([totals_B.double().sum(), torch.tensor(float(len(totals_B)), dtype=torch.float64)]))
    total, count = sums.tolist()
    return totals_B - (total - totals_B) / max(count - 1.0, 1.0)


def masked_moments(values_BT: torch.Tensor, mask_BT: torch.Tensor, reduce: Reduce) -> tuple[float, float]:
    """Mean and unbiased variance over the masked tokens of all workers, summed in float64 in two passes."""
    valid = values_BT[mask_BT.bool()].double()
    total, count = reduce(torch.stack([valid.sum(), torch.tensor(float(len(valid)), dtype=torch.float64)])).tolist()
    mean = total / count
    squares = reduce((valid - mean).square().sum()).item()
    return mean, squares / max(count - 1.0, 1.0)


def whiten(values_BT: torch.Tensor, mask_BT: torch.Tensor, reduce: Reduce) -> torch.Tensor:
    """Mean 0 and variance 1 over the valid tokens of the whole batch on all workers; 0 on padding."""
    mean, variance = masked_moments(values_BT, mask_BT, reduce)
    return (values_BT - mean) * (variance + 1e-8) ** -0.5 * mask_BT
